"""One attempt at an experiment in its folder: alone there, tracked, with a result whatever happens, resumable.

Called by `job`; what is measured is `experiment`'s.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from embexp.cache import folder_of, kept_in, trim
from embexp.config.components import build
from embexp.errors import BusyError, FullError, NotNowError, Pruned, UserError, described, is_full
from embexp.experiment import digests, measure
from embexp.page import writing
from embexp.parallel.joining import joined
from embexp.parallel.machine import Launched, number_of
from embexp.progress import doing
from embexp.reporting import card, report as reports
from embexp.results import result as results
from embexp.tracking import Tracker, open_beside
from embexp.training.tuning import Run

if TYPE_CHECKING:
    from embexp.training.callbacks import Watch

log = logging.getLogger(__name__)

SECONDS_FOR_FORMER = 60.0  # a trial's former process, which is ending


def run(
    config: Mapping[str, Any],
    *,
    names: Mapping[str, str],
    folder: Path,
    group: str | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    launched: Launched | None = None,
) -> dict[str, Any]:
    """Run one experiment and return the content of its result.json.

    config: the composed and checked config, as plain values. names: the choices of model, loss and dataset. folder: the
    run's folder, which must exist. group: the multirun it belongs to. resume: go on with the killed or failed run in
    the folder; one that was completed, or given up by its study, is returned as it is. watch: the study of a trial.
    launched: what torchrun said, where it has started this and further processes. Every error but an interruption from
    outside is recorded in result.json and raised again.
    """
    with _alone(folder, seconds=SECONDS_FOR_FORMER if watch is not None else 0), _kept(config):
        before = reports.read(folder)
        if resume and before is not None and before["status"] in ("completed", "pruned"):
            log.info("this run was complete already, so nothing is done again; this is its result")
            reports.write(before, names, folder)
            card.write(before, names, folder)
            writing.write(folder)
            _tidy(config, folder)
            return before
        if (folder / "metrics.jsonl").exists() and not resume:
            raise UserError(f"{folder} holds another run; set hydra.run.dir to a new folder, or resume={folder}")
        for former in ("result.json", "report.html"):
            (folder / former).unlink(missing_ok=True)
        return _attempt(config, names, folder, group, watch, launched)


def _attempt(
    config: Mapping[str, Any],
    names: Mapping[str, str],
    folder: Path,
    group: str | None,
    watch: Watch | None,
    launched: Launched | None,
) -> dict[str, Any]:
    result = results.empty(config) | {"names": dict(names)}
    tracker = Tracker(folder, open_beside(_mirror(config, names, folder, group)))
    try:
        with joined(number_of(config, launched), launched) as processes:
            measure(Run(config, result, folder, tracker, watch), processes)
        result["status"] = "completed"
    except Pruned as reason:
        result |= {"status": "pruned", "error": str(reason)}
        log.info("%s", reason)
    except NotNowError:
        raise
    except Exception as error:
        if watch is not None and is_full(error):
            raise FullError(described(error)) from error
        result |= {"status": "failed", "error": described(error)}
        if watch is not None:  # a trial that has failed is over
            _tidy(config, folder)
        raise
    finally:
        try:
            if result["status"] is not None:  # else interrupted: no result.json, and that is how it is known
                with doing("writing the report"):
                    results.write(result, folder)
                    reports.write(result, names, folder)
                    card.write(result, names, folder)
                    writing.write(folder)
        finally:
            tracker.finish(_summary(result), exit_code=0 if result["status"] in ("completed", "pruned") else 1)
    _tidy(config, folder)
    return result


def _tidy(config: Mapping[str, Any], folder: Path) -> None:
    if not config["keep_checkpoints"]:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


@contextmanager
def _kept(config: Mapping[str, Any]) -> Iterator[None]:
    """The cache that the config names, in its bounds again when the run has ended."""
    folder, most = folder_of(config["cache"]), config["cache_size_gb"]
    try:
        with kept_in(folder):
            yield
    finally:  # runs that fail fill a disk as well
        if folder is not None and most is not None:
            try:
                trim(folder, gigabytes=most)
            except OSError as error:
                log.warning("the cache %s can't be kept in its bounds (%s)", folder, error)


@contextmanager
def _alone(folder: Path, *, seconds: float) -> Iterator[None]:
    """Refuse a second process in the folder, after some seconds; the system frees the lock of a killed one."""
    lock = FileLock(folder / ".running.lock", timeout=seconds)  # stays: removing it would let a third process in
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(f"another process is at work on the run in {folder}; wait for it, or end it") from error
    try:
        yield
    finally:
        lock.release()


def _mirror(
    config: Mapping[str, Any], names: Mapping[str, str], folder: Path, group: str | None
) -> Callable[[], Any] | None:
    if config["logger"] is None:
        return None
    node = {**config["logger"], "group": config["logger"].get("group") or group}
    make = build(node, allowed=config["allowed_packages"])
    return lambda: make(folder=folder, config=config, names=names)


def digests_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The digests of data and base model that a config names, which a sweep must not change. Raises UserError as a run
    would."""
    with _kept(config):
        return digests(config)


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a dashboard compares, flat: test/base/recall@10, test/delta/recall@10, test/ci_low/recall@10 and so on."""
    flat: dict[str, Any] = {"status": result["status"] or "interrupted", "verdict": result["verdict"]}
    if result["caveat"]:
        flat["caveat"] = result["caveat"]
    if result["notes"]:
        flat["notes"] = "; ".join(result["notes"])
    if result["arms_verdict"]:
        flat |= {"arm_to_run": result["arms_verdict"]["cheapest"]}
    for arm, measured in (
        {arm: result[arm] or {} for arm in ("base", "tuned", "bm25", "reranker")} | (result["arms"] or {})
    ).items():
        for split in ("dev", "test"):
            metrics = measured.get(split)
            flat |= {f"{split}/{arm}/{name}": score for name, score in (metrics or {}).items()}
    flat |= _of_deltas(result["delta"], "test")
    if guard := result["forgetting"]:
        for arm in ("base", "fully_tuned", "tuned", "merged"):
            flat |= {f"guard/{arm}/{name}": score for name, score in ((guard[arm] or {}).get("test") or {}).items()}
        flat |= _of_deltas(guard["delta"], "guard") | {"guard/passed": guard["passed"]}
    if result["merge"]:
        flat["merge/share"] = result["merge"]["chosen"]
    return flat


def _of_deltas(deltas: Mapping[str, Any] | None, of: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, delta in (deltas or {}).items():
        flat |= {f"{of}/delta/{name}": delta["absolute"]}
        flat |= {f"{of}/{key}/{name}": delta[key] for key in ("ci_low", "ci_high", "p_value")}
    return flat
