"""Trials as jobs of a cluster, through the launchers of hydra-submitit-launcher. Called by `sweep.crew`.

The launcher's own `launch` submits a whole batch and waits for all of it; here each trial is a job of its own, so that
a place is filled again as soon as one ends.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.utils import configure_log
from omegaconf import OmegaConf

from embexp.errors import UserError
from embexp.job import Job
from embexp.sweep.crew import End, of_code
from embexp.sweep.lease import RENEWALS
from embexp.sweep.study import Study

FOR_THE_EXECUTOR = ("submitit_folder", "max_num_timeout", "_target_", "_recursive_", "array_parallelism")
EVERY = 15.0  # seconds between questions to the cluster: it is shared by others


class SubmittedCrew:
    """node: hydra.launcher's. places: jobs in the cluster at a time, waiting ones included. folder: the sweep's."""

    def __init__(self, node: Mapping[str, Any], places: int, folder: Path) -> None:
        try:
            import submitit
            from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
        except ImportError as error:
            raise UserError("hydra/launcher=submitit_slurm needs a package: pip install .[slurm]") from error
        cluster = "slurm" if str(node["_target_"]).endswith(".SlurmLauncher") else "local"
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError("hydra/launcher=submitit_slurm needs SLURM's sbatch, which is not in PATH here")
        further = {"slurm_max_num_timeout": node["max_num_timeout"]} if "max_num_timeout" in node else {}
        self._executor = submitit.AutoExecutor(
            folder=str(node["submitit_folder"]).replace("${hydra.sweep.dir}", str(folder)), cluster=cluster, **further
        )
        common = set(OmegaConf.structured(BaseQueueConf))
        settings = {key: value for key, value in node.items() if key not in FOR_THE_EXECUTOR and value is not None}
        self._executor.update_parameters(
            **{key if key in common else f"{cluster}_{key}": value for key, value in settings.items()}
        )
        self._cluster, self._places = cluster, places
        self._at_work: dict[int, tuple[Any, str]] = {}
        self._asked = self._renewed = time.monotonic()

    def has_room(self) -> bool:
        """Whether another job may be in the cluster."""
        return len(self._at_work) < self._places

    def start(self, job: Job) -> None:
        """Submit the job."""
        assert job.trial is not None
        self._at_work[job.trial.number] = (self._executor.submit(carry_out, job), job.trial.owner)

    def numbers(self) -> set[int]:
        """The trials in the cluster."""
        return set(self._at_work)

    def ended(self) -> list[tuple[int, str, End]]:
        """Number, owner and end of those that have ended since the last call."""
        ask = time.monotonic() - self._asked > EVERY
        if ask:
            self._asked = time.monotonic()
        found = []
        for number, (job, owner) in list(self._at_work.items()):
            if (end := self._end_of(job, ask=ask)) is not None:
                del self._at_work[number]
                found.append((number, owner, end))
        return found

    def renew(self, study: Study, *, lease: float) -> None:
        """Renew the leases of jobs that are still waiting in the cluster."""
        if time.monotonic() - self._renewed > lease / RENEWALS:
            self._renewed = time.monotonic()
            for number in self._at_work:
                study.renew(number, time.time())

    def wait(self, seconds: float) -> None:
        """Return after some seconds."""
        time.sleep(seconds)

    def stop(self, *, interrupted: bool) -> list[tuple[int, str]]:
        """Cancel all jobs, which Ctrl-C does not reach."""
        stopped = []
        for number, (job, owner) in self._at_work.items():
            job.cancel(check=False)
            stopped.append((number, owner))
        self._at_work.clear()
        return stopped

    def _end_of(self, job: Any, *, ask: bool) -> End | None:
        if job.paths.result_pickle.exists():
            error = job.exception()
            if error is not None:
                words = f"ended with {type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"
                return End(words, from_outside=False)
            return of_code(job.result())
        if ask and (is_gone(job.job_id) if self._cluster == "slurm" else job.done()):
            return End("was cancelled or killed in the cluster", from_outside=True)
        return None


def carry_out(job: Job) -> int:
    """Run the trial; called in the job, with everything printed in submitit's files."""
    configure_log(OmegaConf.create(dict(job.logging)))
    return job.run()


def is_gone(job_id: str) -> bool:
    """Whether SLURM's queue holds a job no more. Needs no accounting, which sacct does."""
    asked = subprocess.run(
        ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        return "Invalid job id" in asked.stderr  # anything else: the controller can't be reached now
    return asked.stdout.strip() in ("", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "COMPLETED")
