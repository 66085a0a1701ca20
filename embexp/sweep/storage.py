"""Where a study is kept: a journal file in the sweep's folder, or a PostgreSQL database that many machines reach.

Called by `sweep.trial` and `sweep.study`, each in its own process.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from embexp.errors import UserError
from embexp.sweep.reference import JOURNAL, SCHEMES, Address

SECONDS_TO_CONNECT = 10
BLOCK = 2**16

optuna.logging.set_verbosity(optuna.logging.ERROR)  # a sweep tells of its trials itself
warnings.filterwarnings("ignore", category=ExperimentalWarning)  # samplers' arguments that conf/ chooses knowingly


def opened(address: Address) -> BaseStorage:
    """The storage. Raises UserError when a database can't be reached, or a journal can't be written or read."""
    if address.url is not None or address.variable is not None:
        return _database(address)
    try:
        Path(address.folder).mkdir(parents=True, exist_ok=True)
        path = str(Path(address.folder, JOURNAL))  # absolute: with a relative one Optuna's own lock can hang
        return JournalStorage(JournalFileBackend(path, lock_obj=_MendingLock(path)))  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        raise UserError(f"the study {address.setting} can't be opened ({error})") from error


def _database(address: Address) -> BaseStorage:
    url = address.url if address.variable is None else os.environ.get(address.variable)
    if not url:
        raise UserError(
            f"{address.setting}: there is no such environment variable; set it to a PostgreSQL address, such as "
            "postgresql://user:password@host:5432/database"
        )
    scheme, found, rest = url.partition("://")
    if not found or scheme not in SCHEMES:
        raise UserError(f"{address.setting}: an address starts with postgresql://; this one does not")
    if rest.count("@") > 1:  # the driver would take a part of the password for the host, and say it
        raise UserError(f"{address.setting}: write an @ in the password as %40")
    _refuse_unreadable(f"postgresql+psycopg://{rest}", address)
    arguments = {"connect_timeout": SECONDS_TO_CONNECT}
    try:
        return RDBStorage(
            f"postgresql+psycopg://{rest}", engine_kwargs={"pool_pre_ping": True, "connect_args": arguments}
        )
    except ImportError as error:
        raise UserError(f"{address.setting} needs the package psycopg: pip install .[postgresql]") from error
    except Exception as error:  # SQLAlchemy's and the driver's, which do not repeat a password
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{address.setting}: the database can't be reached ({reason[:300]})") from error


def _refuse_unreadable(url: str, address: Address) -> None:
    import sqlalchemy

    try:
        sqlalchemy.make_url(url)
    except ValueError:  # whose text has what stands in the place of the port: the password, where the host was left out
        raise UserError(
            f"{address.setting} can't be read as an address: it must be like "
            "postgresql://user:password@host:5432/database, with a number for the port"
        ) from None


@contextmanager
def alone(address: Address, storage: BaseStorage, name: str) -> Iterator[None]:
    """Hold the study's lock: whoever holds it decides which trial is next. It is free when its holder is killed."""
    if not isinstance(storage, RDBStorage):
        with FileLock(Path(address.folder, f".{name.replace('/', '.')}.lock")):
            yield
        return
    import sqlalchemy

    with storage.engine.connect() as connection:  # the database frees it with the connection
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": f"embexp {name}"})
        try:
            yield
        finally:
            connection.execute(
                sqlalchemy.text("SELECT pg_advisory_unlock(hashtext(:name))"), {"name": f"embexp {name}"}
            )


class _MendingLock:  # Optuna's base class for these is private
    """A journal's lock that is free when its holder is killed, and cuts off the line that one left unfinished.

    Appended to, such a line would make the study unreadable for good.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = FileLock(Path(path).with_name(f".{JOURNAL}.lock"))  # not the name that Optuna's own lock takes

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            _cut_unfinished(self._path)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def _cut_unfinished(path: str) -> None:
    with Path(path).open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
