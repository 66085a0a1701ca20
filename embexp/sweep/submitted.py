"""Trials as jobs of a cluster, through the launchers of hydra-submitit-launcher. Called by `sweep.sweeper`.

The launcher's own `launch` submits a whole batch and waits for all of it; here each trial is a job of its own, so that
a place is filled again as soon as one ends.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import configure_log
from omegaconf import OmegaConf

from embexp.errors import UserError
from embexp.jobs.job import Job
from embexp.parallel.machine import Slot, keep_to
from embexp.sweep.crew import End, end_with
from embexp.sweep.lease import RENEWALS
from embexp.sweep.study import Study

log = logging.getLogger(__name__)

FOR_THE_EXECUTOR = ("submitit_folder", "max_num_timeout", "_target_", "_recursive_", "array_parallelism")
EVERY = 15.0  # seconds between questions to the cluster: it is shared by others


class SubmittedCrew:
    """node: hydra.launcher's. places: jobs in the cluster at a time, waiting ones included."""

    def __init__(self, node: Mapping[str, Any], places: int) -> None:
        try:
            import submitit
            from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
        except ImportError as error:
            raise UserError("hydra/launcher=submitit_slurm needs a package: pip install .[slurm]") from error
        cluster = "slurm" if str(node["_target_"]).endswith(".SlurmLauncher") else "local"
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError("hydra/launcher=submitit_slurm needs SLURM's sbatch, which is not in PATH here")
        further = {"slurm_max_num_timeout": node["max_num_timeout"]} if "max_num_timeout" in node else {}
        self._executor = submitit.AutoExecutor(folder=str(node["submitit_folder"]), cluster=cluster, **further)
        common = set(OmegaConf.structured(BaseQueueConf))
        settings = {key: value for key, value in node.items() if key not in FOR_THE_EXECUTOR and value is not None}
        parameters = {key if key in common else f"{cluster}_{key}": value for key, value in settings.items()}
        if cluster == "slurm" and (cores := node["cpus_per_task"]) is not None:
            parameters["slurm_srun_args"] = [f"--cpus-per-task={cores}"]  # which srun no more takes from sbatch
        self._executor.update_parameters(**parameters)
        self._cluster, self._places = cluster, places
        self._at_work: dict[int, tuple[Any, str]] = {}
        self._asked = self._renewed = time.monotonic()

    def has_room(self) -> bool:
        """Whether another job may be in the cluster."""
        return len(self._at_work) < self._places

    def start(self, job: Job) -> None:
        """Submit the job. Raises UserError when the cluster takes none."""
        assert job.trial is not None
        try:
            submitted = self._executor.submit(CarryOut(), job)
        except (RuntimeError, OSError) as error:  # submitit's are of the first kind
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"the cluster took no job ({reason[-300:]}). Mend hydra.launcher.* or wait until it does; the same "
                "command goes on"
            ) from error
        self._at_work[job.trial.number] = (submitted, job.trial.owner)

    def numbers(self) -> set[int]:
        """The trials in the cluster."""
        return set(self._at_work)

    def ended(self) -> list[tuple[int, str, End]]:
        """Number, owner and end of those that have ended since the last call."""
        lost = set()
        if self._at_work and time.monotonic() - self._asked > EVERY:
            lost = self._lost()
            self._asked = time.monotonic()
        found = []
        for number, (job, owner) in list(self._at_work.items()):
            if (end := _end_of(job)) is None and number in lost:
                end = End("was cancelled or killed in the cluster", from_outside=True)
            if end is not None:
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

    def _lost(self) -> set[int]:
        """The trials whose jobs the cluster has no more; a result that they left meanwhile comes first."""
        ids = {number: str(job.job_id) for number, (job, _) in self._at_work.items()}
        if self._cluster == "slurm":
            gone = gone_from_slurm(list(ids.values()))
            return {number for number, job_id in ids.items() if job_id in gone}
        return {number for number, (job, _) in self._at_work.items() if job.done()}


class CarryOut:
    """What a job calls: it runs the trial, with everything printed in submitit's files."""

    def __call__(self, job: Job) -> int:
        """Returns the exit code of the run."""
        configure_log(OmegaConf.create(dict(job.logging)))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # scancel's; submitit would not hear it
        threads = cores()
        keep_to(Slot(threads))
        log.info("job %s of the cluster: %d threads", os.environ.get("SLURM_JOB_ID", "outside SLURM"), threads)
        return job.run()

    def checkpoint(self, job: Job) -> Any:
        """What goes on after a time limit, where hydra.launcher.max_num_timeout allows it: the run knows where."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def cores() -> int:
    """The cores that the job was given, whether or not the system holds it to them."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
    return min(here, int(given)) if given else here


def gone_from_slurm(job_ids: Sequence[str]) -> set[str]:
    """Those that SLURM's queue holds no more. Needs no accounting, which sacct does."""
    command = ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(job_ids)}"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode and "Invalid job id" not in asked.stderr:  # which it says of one that it has forgotten
        return set()  # the controller can't be reached now
    return set(job_ids) - set(asked.stdout.split())


def _end_of(job: Any) -> End | None:
    if not job.paths.result_pickle.exists():
        return None
    error = job.exception()
    if error is None:
        return end_with(job.result())
    return End(f"ended with {type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}", from_outside=False)
