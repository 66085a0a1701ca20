"""Where a study is kept: a journal file in the sweep's folder, or a PostgreSQL database that many machines reach.

Called by `sweep.trial` and `sweep.study`, each in its own process.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from embexp.errors import UserError
from embexp.sweep.reference import JOURNAL, SCHEMES, Address

log = logging.getLogger(__name__)
T = TypeVar("T")

SECONDS_TO_CONNECT = 10
PATIENCE, AGAIN = 300.0, 2.0  # seconds with a database that is away, and between tries
# else the locks of a machine that lost its power or network are kept for hours
FOR_A_LOST_MACHINE = {"tcp_keepalives_idle": 20, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
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
    url = _as_driver_takes_it(url, address)
    arguments = {"connect_timeout": SECONDS_TO_CONNECT}
    try:
        # alone, since two that make Optuna's tables at once get in each other's way
        with _locked(sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=arguments), "embexp"):
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "connect_args": arguments})
    except ImportError as error:
        raise UserError(f"{address.setting} needs the package psycopg: pip install .[postgresql]") from error
    except Exception as error:  # SQLAlchemy's and the driver's, which do not repeat a password
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{address.setting}: the database can't be reached ({reason[:300]})") from error


def _as_driver_takes_it(url: str, address: Address) -> str:
    """The address with the driver named. Raises UserError, which never repeats a part that may be a password."""
    scheme, found, rest = url.partition("://")
    if not found or scheme not in SCHEMES:
        raise UserError(f"{address.setting}: an address starts with postgresql://; this one does not")
    if rest.count("@") > 1:  # the driver would take a part of the password for the host, and say it
        raise UserError(f"{address.setting}: write an @ in the password as %40")
    try:
        sqlalchemy.make_url(f"postgresql+psycopg://{rest}")
    except (ValueError, SQLAlchemyError):  # without an @, the password stands where the port is, and is said
        raise UserError(
            f"{address.setting} can't be read as an address; write it as postgresql://user:password@host:5432/database"
        ) from None
    return f"postgresql+psycopg://{rest}"


def is_away(error: BaseException) -> bool:
    """Whether an error means that the database does not answer now, as while it is started again."""
    return any(isinstance(each, OperationalError) for each in _chain(error))


def said_first(error: Exception) -> Exception:
    """The error that the others came from, such as the driver's own: Optuna's text guesses at invalid data."""
    return [each for each in _chain(error) if isinstance(each, Exception)][-1]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it; `raise error.__cause__` makes circles."""
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def patiently(act: Callable[[], T], *, seconds: float = PATIENCE) -> T:
    """What `act` returns, tried again for some seconds while the database is away; it must bear being called again."""
    end: float | None = None
    while True:
        try:
            return act()
        except Exception as error:
            if not is_away(error):
                raise
            if end is None:
                end = time.monotonic() + seconds
                log.warning("the database does not answer; trying again for %.0f s", seconds)
            elif time.monotonic() > end:
                raise
        time.sleep(AGAIN)


@contextmanager
def alone(address: Address, storage: BaseStorage, name: str) -> Iterator[None]:
    """Hold the study's lock: whoever holds it decides which trial is next. It is free when its holder is killed."""
    if isinstance(storage, RDBStorage):
        with _locked(storage.engine, f"embexp {name}"):
            yield
    else:
        with FileLock(Path(address.folder, f".{name.replace('/', '.')}.lock")):
            yield


@contextmanager
def _locked(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    """Hold a lock of the database, which frees it with the connection."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for key, value in FOR_A_LOST_MACHINE.items():
            connection.execute(sqlalchemy.text(f"SET {key} = {value}"))
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": name})
        try:
            yield
        finally:
            with suppress(SQLAlchemyError):  # the connection is gone, and the lock with it
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(hashtext(:name))"), {"name": name})


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
