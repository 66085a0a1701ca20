"""Where numbers go while a run is going on: metrics.jsonl is the record of truth, wandb a mirror that may fail.

Called by `run`, `tuning` and `callbacks`. Nothing here can stop or slow a run: wandb gets a few seconds to start and to
end, and an error in it is logged once.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embexp.durable import write_whole

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


class Mirror(Protocol):
    """A second place that gets what is logged."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Take one step's values."""

    def finish(self, summary: Mapping[str, Any], *, exit_code: int) -> None:
        """Take the summary and close with the run's exit code."""


class Tracker:
    """Writes metrics.jsonl and hands the same to the mirror, if there is one."""

    def __init__(self, folder: Path, mirror: Mirror | None) -> None:
        self._path = folder / "metrics.jsonl"
        self._attempt = _attempts(self._path) + 1
        self._file = self._path.open("a", encoding="utf-8")
        self._start = time.time()
        self._mirror = mirror

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Append one line, on disk before this returns; NaN and infinity become null. step: optimiser steps done."""
        again = {"attempt": self._attempt} if self._attempt > 1 else {}  # whose clock starts anew
        line = {"step": step, "seconds": round(time.time() - self._start, 2), **again, **values}
        self._file.write(json.dumps({key: _finite(value) for key, value in line.items()}, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._mirrored(lambda mirror: mirror.log(values, step=step))

    def cut_back(self, *, to_step: int | None) -> None:
        """Keep only the lines up to an optimiser step (none for None): what a killed run wrote after its checkpoint."""
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
            if to_step is None or not line.endswith("\n") or json.loads(line)["step"] > to_step:
                break
            kept.append(line)
        self._file.close()
        write_whole(self._path, "".join(kept))
        self._file = self._path.open("a", encoding="utf-8")

    def finish(self, summary: Mapping[str, Any], *, exit_code: int) -> None:
        """Close the file and the mirror. exit_code: 0 for a completed run."""
        self._file.close()
        self._mirrored(lambda mirror: mirror.finish(summary, exit_code=exit_code))
        self._mirror = None

    def _mirrored(self, action: Callable[[Mirror], None]) -> None:
        if self._mirror is None:
            return
        try:
            action(self._mirror)
        except Exception as error:  # whatever goes wrong there must not end the run
            log.warning("tracking stopped, the run goes on: %s", first_line(error))
            self._mirror = None


def _attempts(metrics: Path) -> int:
    """How many attempts at the run have written a line."""
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1]).get("attempt", 1) if whole else 0


SETTINGS: dict[str, Any] = {  # wandb's own
    "console": "off",  # output and arguments stay here
    "x_disable_meta": True,
    "save_code": False,
    "disable_git": True,
    "silent": True,
    "reinit": "create_new",
}


class WandbMirror:
    """One wandb run for one experiment, in the run's folder; online when a key is configured, else offline."""

    def __init__(
        self,
        *,
        folder: Path,
        config: Mapping[str, Any],
        names: Mapping[str, str],
        project: str = "embexp",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        mode: str = "auto",
        timeout: float = 5,
        per_query: bool = False,
    ) -> None:
        """names: loss, model and dataset by name, which become flat config keys and tags. timeout: seconds that wandb
        may take to start online, again to upload at the end, and again for the table of queries. per_query: send test's
        scores per query too, as a table, with the questions' texts unless the config has report_texts=false."""
        import wandb  # only where this mirror is chosen

        self._folder, self._config, self._per_query, self._timeout = folder, config, per_query, timeout
        self._offline = mode == "offline" or (mode == "auto" and not has_key())
        arguments: dict[str, Any] = {
            "dir": str(folder),
            "project": project,
            "entity": entity,
            "group": group,
            "name": name,
            "tags": [*names.values(), *(tags or [])],
            # loss, model and dataset are names here, so that runs group by them; all keys are under settings
            "config": {**names, "seed": config.get("seed"), "metric": config.get("metric"), "settings": dict(config)},
        }
        # it traces calls of LLMs, which a training makes none of, and prints an advertisement of itself
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        settings = wandb.Settings(**SETTINGS, init_timeout=timeout, finish_timeout=timeout)
        earlier = set(folder.glob("wandb/run-*"))
        try:
            self._run = wandb.init(**arguments, mode="offline" if self._offline else "online", settings=settings)
        except Exception as error:
            if self._offline:
                raise
            log.warning("wandb can't be reached (%s); this run is kept offline", first_line(error))
            for failed in set(folder.glob("wandb/run-*")) - earlier:
                shutil.rmtree(failed, ignore_errors=True)  # one attempt, one wandb run
            self._offline = True
            self._run = wandb.init(**arguments, mode="offline", settings=settings)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Log at the optimiser step."""
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, Any], *, exit_code: int) -> None:
        """Write the summary and end the run; offline, this process's other open runs too."""
        self._run.summary.update(dict(summary))
        if self._per_query:
            sending = threading.Thread(target=self._send_queries, daemon=True)  # it asks the server before it sends
            sending.start()
            sending.join(self._timeout)
            if sending.is_alive():
                log.warning("the table of queries was not sent to wandb in %g s, so it is left out", self._timeout)
        self._run.finish(exit_code=exit_code)
        if self._offline:
            import wandb

            wandb.teardown()  # finish returns before wandb's own process has written the file's end

    def _send_queries(self) -> None:
        try:
            self._log_queries()
        except Exception as error:  # the run's summary matters more
            log.warning("the table of queries can't be sent to wandb: %s", first_line(error))

    def _log_queries(self) -> None:
        """Log the table test/per_query: the first rows of retrieval/per_query.parquet, where the run has come to it."""
        import wandb

        file = self._folder / "retrieval" / "per_query.parquet"
        if not file.exists():  # a trial, a run that failed
            return
        metric = self._config["metric"]
        frame = queries_of(file, metric=metric, texts=self._config["report_texts"])
        if f"base.{metric}" not in frame:
            log.warning("%s is no mean over queries, so there is no table of them for wandb", metric)
            return
        most = wandb.Table.MAX_ROWS
        if len(frame) > most:
            log.warning("wandb shows tables of %d rows, so the first %d of %d queries go there", most, most, len(frame))
        self._run.log({"test/per_query": wandb.Table(dataframe=frame[:most])})


def queries_of(file: Path, *, metric: str, texts: bool) -> pd.DataFrame:
    """A row per test query: ids, slice, each arm's score on the metric, where it has one per query, and the delta.

    file: retrieval/per_query.parquet. texts: with the question itself; without, nothing but ids and scores.
    """
    import pandas as pd

    frame = pd.read_parquet(file)
    about = [name for name in ("query_id", "query", "document", "slice") if name != "query" or texts]
    scores = {arm: f"{arm}.{metric}" for arm in ("bm25", "base", "tuned") if f"{arm}.{metric}" in frame}
    chosen = frame[[*about, *scores.values()]]
    if {"base", "tuned"} <= set(scores):
        chosen = chosen.assign(**{f"delta.{metric}": frame[scores["tuned"]] - frame[scores["base"]]})
    return chosen


def to_upload(folder: Path) -> list[Path]:
    """The wandb runs of a run's folder that are kept offline and were not uploaded since."""
    kept = sorted(folder.glob("wandb/offline-run-*"))
    return [run for run in kept if not any(run.glob("*.synced"))]


def open_mirror(make: Callable[[], Mirror] | None) -> Mirror | None:
    """The mirror, or None when none is configured or it can't start, which is said."""
    if make is None:
        return None
    try:
        return make()
    except Exception as error:  # a missing package, a full disk, a wrong key: the run matters more
        log.warning("tracking is off, the run goes on: %s", first_line(error))
        return None


class _Beside:
    """A mirror that starts in a thread; whoever has something to log waits for it."""

    def __init__(self, make: Callable[[], Mirror]) -> None:
        self._mirror: Mirror | None = None
        self._starting = threading.Thread(target=self._start, args=(make,), daemon=True)
        self._starting.start()

    def _start(self, make: Callable[[], Mirror]) -> None:
        self._mirror = open_mirror(make)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Log, once it has started, if it could."""
        self._starting.join()
        if self._mirror is not None:
            self._mirror.log(values, step=step)

    def finish(self, summary: Mapping[str, Any], *, exit_code: int) -> None:
        """Finish, once it has started, if it could."""
        self._starting.join()
        if self._mirror is not None:
            self._mirror.finish(summary, exit_code=exit_code)


def open_beside(make: Callable[[], Mirror] | None) -> Mirror | None:
    """The same, at once: it starts while the run reads its data, and is waited for when there is something to log."""
    return None if make is None else _Beside(make)


def _finite(value: float) -> float | None:
    return value if not isinstance(value, float) or math.isfinite(value) else None  # JSON has neither NaN nor infinity


def first_line(error: Exception) -> str:
    """An error's kind and the first line of its text."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def has_key() -> bool:
    """Whether a key for wandb's server is configured; silences wandb. It is neither asked for nor tried."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # else login asks the server for the user's name, to print it
    return bool(wandb.login(prompt=False, verify=False))  # reads the environment, settings and .netrc; no request
