"""Real servers for marked tests: PostgreSQL and a one-node SLURM, from Debian's packages, thrown away afterwards.

In a test: `with postgresql(folder) as server`. By hand, `python tests/servers.py postgresql` (or slurm) prints what to
export and keeps the server running until Ctrl-C; exit code 3 says which packages are missing. Linux only; every
server listens on 127.0.0.1 alone, on a free port, and ends with the thread that started it, even when that is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

POSTGRESQL_PACKAGES = ("postgresql",)
SLURM_PACKAGES = ("slurm-wlm", "munge")
SECONDS = 60  # for a server to answer, and to end when it is told to


class NotInstalled(Exception):
    """Programs are missing; says which packages have them."""

    def __init__(self, programs: list[str], packages: tuple[str, ...]) -> None:
        command = f"apt-get install --no-install-recommends {' '.join(packages)}"
        super().__init__(f"{', '.join(programs)} not installed; try `{command}`")


@dataclass(frozen=True)
class Postgresql:
    """A server with one user, who owns one database. url has no password; passfile is what PGPASSFILE may point at."""

    host: str
    port: int
    user: str
    database: str
    password: str
    passfile: Path
    stop: Callable[[], None]
    start: Callable[[], None]  # again, with the same data

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{self.user}@{self.host}:{self.port}/{self.database}"

    @property
    def url_with_password(self) -> str:
        return self.url.replace(f"{self.user}@", f"{self.user}:{self.password}@")

    @property
    def environment(self) -> dict[str, str]:
        """With it, `url` needs no password."""
        return {"PGPASSFILE": str(self.passfile)}


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[Postgresql]:
    """A new cluster; passwords are checked with scram. folder gets the log and a password file.

    The data lie in a temporary folder of their own: PostgreSQL refuses to run as root, and whom it runs as instead
    could not enter pytest's folders.
    """
    program = _postgresql_programs()
    as_user = ["--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    host, port, password, passfile = "127.0.0.1", free_port(), secrets.token_hex(16), folder / "pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text(f"{host}:{port}:*:*:{password}\n")
    where = ["--host", host, "--port", str(port)]
    with _owned_folder(as_user) as own, contextlib.ExitStack() as running:
        (own / "password").write_text(password)
        options = ["--auth=scram-sha-256", "--username=postgres", f"--pwfile={own}/password"]
        options += ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        _done([program["setpriv"], *as_user, program["initdb"], f"--pgdata={own}/data", *options], cwd=own)
        options = ["listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=", "fsync=off"]
        command = [*as_user, program["postgres"], "-D", f"{own}/data", *(f"-c{option}" for option in options)]

        def start() -> None:
            process = running.enter_context(_running(command, folder / "postgresql.log", cwd=own))
            _wait(lambda: not _code([program["pg_isready"], *where]), process, folder / "postgresql.log")

        start()
        server = Postgresql(host, port, "tester", "tests", password, passfile, running.close, start)
        create = (
            f"CREATE ROLE {server.user} LOGIN PASSWORD '{server.password}';\n"
            f"CREATE DATABASE {server.database} OWNER {server.user};\n"
        )
        psql = [program["psql"], *where, "--username=postgres", "--set=ON_ERROR_STOP=1", "--no-psqlrc"]
        _done(psql, text=create, environment=server.environment)
        yield server


@contextlib.contextmanager
def slurm(folder: Path, *, remembers: int = 300) -> Iterator[dict[str, str]]:
    """A cluster of this machine alone, without accounting. Yields the environment that its commands need.

    remembers: for how many seconds at least it can be asked about a job that ended; 300 is what SLURM comes with.

    Jobs run as whoever starts it, at least two at a time, and are killed at the end. `folder` holds everything:
    slurm.conf, the state, and the logs of munged, slurmctld and slurmd. Its path must be short, for munge's socket.
    """
    programs = ["munged", "slurmctld", "slurmd", "sbatch", "scancel", "sinfo", "squeue", "srun"]
    program = _programs(programs, SLURM_PACKAGES, "/usr/sbin")
    folder = folder.resolve()
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    (folder / "slurm.conf").write_text(_slurm_conf(folder, remembers))
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
    # --force: others cannot enter pytest's folders, and need not
    munged = [program["munged"], "--foreground", "--force", "--origin=127.0.0.1"]
    munged += [*(f"--{name}={folder / file}" for name, file in files.items())]

    def prints(name: str, *arguments: str) -> str:
        return _output([program[name], "--noheader", *arguments], environment)

    with contextlib.ExitStack() as stack:
        stack.callback(_end_jobs, folder)  # last, once no server can start them again
        for name, command, ready in (
            ("munged", munged, lambda: (folder / "munge.socket").exists()),
            ("slurmctld", [program["slurmctld"], "-D"], lambda: prints("sinfo")),
            ("slurmd", [program["slurmd"], "-D"], lambda: prints("sinfo", "--states=idle", "--format=%n")),
        ):
            log = folder / f"{name}.log"
            process = stack.enter_context(_running(command, log, cwd=folder, environment=environment))
            _wait(ready, process, log)
        yield environment


def _end_jobs(folder: Path) -> None:
    """What runs in jobs outlives slurmd, as do the jobs' own servers, slurmstepd."""
    conf = f"SLURM_CONF={folder}/slurm.conf".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end meanwhile
            environment = (process / "environ").read_bytes().split(b"\0")
            in_job = conf in environment and any(line.startswith(b"SLURM_JOB_ID=") for line in environment)
            name = (process / "comm").read_text().strip()
            if in_job or (name == "slurmstepd" and (process / "cwd").readlink() == folder):
                os.kill(int(process.name), signal.SIGKILL)


def _slurm_conf(folder: Path, remembers: int) -> str:
    name = socket.gethostname().partition(".")[0]
    user = getpass.getuser()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    for part in ("state", "spool"):
        shutil.rmtree(folder / part, ignore_errors=True)  # else a second start takes up the jobs of the first
        (folder / part).mkdir()
    return f"""\
ClusterName=tests
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# the processors below count, not what slurmd finds
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge={remembers}
SchedulerParameters=batch_sched_delay=0
MailProg=/bin/true
NodeName={name} NodeAddr=127.0.0.1 CPUs={max(2, os.cpu_count() or 2)} RealMemory={memory}
PartitionName=tests Nodes={name} Default=YES
"""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _postgresql_programs() -> dict[str, str]:
    # Debian keeps each version's programs in a folder outside PATH
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return _programs(["initdb", "postgres", "pg_isready", "psql"], POSTGRESQL_PACKAGES, *map(str, found[-1:]))


def _programs(names: list[str], packages: tuple[str, ...], *folders: str) -> dict[str, str]:
    path = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])
    found = {name: shutil.which(name, path=path) for name in [*names, "setpriv"]}
    if absent := [name for name, program in found.items() if program is None]:
        raise NotInstalled(absent, packages)
    return {name: program for name, program in found.items() if program is not None}


@contextlib.contextmanager
def _owned_folder(as_user: list[str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name:
        if as_user:
            shutil.chown(name, "postgres", "postgres")
        yield Path(name)


@contextlib.contextmanager
def _running(
    command: list[str], log: Path, *, cwd: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes to log; ended by its id, and with this one. command may start with options of setpriv."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=INT", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=os.environ | (environment or {}),
            start_new_session=True,  # Ctrl-C is for this process alone
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)  # to PostgreSQL: disconnect the clients; to the others: end
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(ready: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it is ready; raises with the end of its log if it ended instead, or takes too long."""
    end = time.monotonic() + SECONDS
    while not ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > end:
            what = f"ended with code {process.returncode}" if ended else f"was not ready in {SECONDS} s"
            raise RuntimeError(f"{log.stem} {what}; the end of its log:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)


def _done(
    command: list[str], *, text: str = "", environment: dict[str, str] | None = None, cwd: Path | None = None
) -> None:
    env = os.environ | (environment or {})
    result = subprocess.run(command, input=text, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with code {result.returncode}:\n{result.stderr[-3000:]}")


def _code(command: list[str], environment: dict[str, str] | None = None) -> int:
    env = os.environ | (environment or {})
    return subprocess.run(command, env=env, capture_output=True, check=False).returncode


def _output(command: list[str], environment: dict[str, str]) -> str:
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout.strip()


def _main() -> int:
    parser = argparse.ArgumentParser(description="Runs a server until Ctrl-C and prints what to export.")
    parser.add_argument("server", choices=["postgresql", "slurm"])
    chosen = parser.parse_args().server
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell had them ignored
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        with tempfile.TemporaryDirectory(prefix=f"{chosen}-") as name, contextlib.ExitStack() as stack:
            if chosen == "slurm":
                variables = stack.enter_context(slurm(Path(name)))
            else:
                server = stack.enter_context(postgresql(Path(name)))
                urls = {"DATABASE_URL": server.url, "DATABASE_URL_WITH_PASSWORD": server.url_with_password}
                variables = server.environment | urls
            print(*(f"export {key}={shlex.quote(value)}" for key, value in variables.items()), sep="\n", flush=True)
            while True:
                signal.pause()
    except NotInstalled as error:
        print(error, file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(_main())
