"""Hydra's multirun with a process per job: a crash fails that job alone, and the imports are done once.

Hydra loads it through `hydra_plugins/embexp_launcher.py`. Jobs run one after the other, as `workers`; a table ranked by
dev ends the multirun.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from embexp import exit_codes
from embexp.config.checks import plain
from embexp.config.experiment import mistakes_in
from embexp.errors import UserError, explained
from embexp.jobs.job import Job
from embexp.jobs.workers import Worker, wait_for_any
from embexp.parallel.machine import Slot
from embexp.reporting import report as reports

log = logging.getLogger("embexp")

INTERRUPTED = -signal.SIGINT


def launched(
    job_overrides: Sequence[Sequence[str]], *, first: int, context: HydraContext, config: DictConfig
) -> Sequence[JobReturn]:
    """Check every job's config, then run them in order; one that fails does not stop the others.

    job_overrides: those of each job. first: the number of the first one. config: the multirun's.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    jobs = [_composed(overrides, first + place, context, config) for place, overrides in enumerate(job_overrides)]
    mistakes = {problem for job in jobs for problem in _mistakes(job)}
    if mistakes:
        log.error("%s", explained(UserError(*sorted(mistakes))))
        exit_codes.of_jobs.append(1)
        return []
    sweep_folder = Path(str(config.hydra.sweep.dir))
    sweep_folder.mkdir(parents=True, exist_ok=True)

    rows: list[tuple[str, str, dict[str, Any] | None, str]] = []
    returns = []
    common = set.intersection(*(set(overrides) for overrides in job_overrides)) if len(jobs) > 1 else set()
    for place, (overrides, job_config) in enumerate(zip(job_overrides, jobs, strict=True), start=1):
        words = " ".join(word for word in filter_overrides(overrides) if word not in common) or "(as configured)"
        log.info("\n#%s (%d of %d): %s", job_config.hydra.job.num, place, len(jobs), words)
        returns.append(
            run_job(
                hydra_context=context,
                task_function=lambda config: _carried_out(Job.current(config)),
                config=job_config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        )
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        code, folder = returns[-1].return_value
        exit_codes.of_jobs.append(code)
        rows.append((str(job_config.hydra.job.num), words, reports.read(folder), _state(code, folder)))
        if code == INTERRUPTED:
            break
    table = reports.ranked_runs(rows)
    (sweep_folder / "summary.md").write_text(table + "\n", encoding="utf-8")
    log.info("\n%s\n\ntable: %s", table, sweep_folder / "summary.md")
    return returns


def _composed(overrides: Sequence[str], number: int, context: HydraContext, multirun: DictConfig) -> DictConfig:
    config = context.config_loader.load_sweep_config(multirun, list(overrides))
    with open_dict(config):
        config.hydra.job.id = str(number)
        config.hydra.job.num = number
    return config


def _mistakes(job: DictConfig) -> list[str]:
    task = OmegaConf.masked_copy(job, [key for key in job if key != "hydra"])  # type: ignore[misc]
    return mistakes_in(plain(task))


def _carried_out(job: Job) -> tuple[int, Path]:
    """Run the job in a process of its own; returns its exit code (negative: the signal that ended it) and folder."""
    worker = Worker(job, Slot(), quiet=False)
    try:
        while (ended := worker.ended()) is None:
            wait_for_any([worker], seconds=60)
    except KeyboardInterrupt:
        worker.stop(interrupted=True)
        return INTERRUPTED, job.folder
    return ended.code, job.folder


def _state(code: int, folder: Path) -> str:
    if code == INTERRUPTED:
        return "interrupted"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    result = reports.read(folder)
    if result is None:
        return f"no result, exit code {code}"
    if code == exit_codes.FORGOTTEN:
        return "completed, forgot too much"
    return str(result["status"]) if code == 0 else f"failed: {str(result['error']).splitlines()[0][:60]}"
