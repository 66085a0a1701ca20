"""One run as plain values, so that it can start in this process or in another. Called by `cli` and `launcher`.

Starting a job is where the heavy imports happen, after everything that can be checked without them.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from embexp import console, exit_codes
from embexp.config.checks import plain
from embexp.errors import BusyError, FullError, NotNowError, UserError, described, explained
from embexp.forgetting import shown as forgotten
from embexp.parallel.machine import Launched
from embexp.progress import doing, kept_open
from embexp.reporting import report as reports
from embexp.starting import uncollected
from embexp.sweep.reference import TrialReference
from embexp.tracking import to_upload

log = logging.getLogger("embexp")

DISK_FULL = 131  # exit code of a trial that can go on once there is space
INTERRUPTED = 130  # exit code of a trial that could not be run to its end now, and is to run again


@dataclass(frozen=True)
class Job:
    """What a run needs: see `run.run`. group: its multirun, else its folder, which its attempts share. logging:
    Hydra's job_logging, for a process that has not set it up. trial: what it is in a sweep. launched: what torchrun
    said, where it has started this."""

    config: Mapping[str, Any]
    names: Mapping[str, str]
    folder: Path
    group: str
    logging: Mapping[str, Any]
    resume: bool = False
    trial: TrialReference | None = None
    launched: Launched | None = None

    @classmethod
    def current(cls, config: DictConfig) -> Job:
        """The job that Hydra has just composed and made a folder for."""
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        choices = hydra.runtime.choices
        return cls(
            config=plain(config),
            names={group: str(choices[group]) for group in ("loss", "model", "dataset")},
            folder=folder,
            group=str(folder.parent if hydra.mode == RunMode.MULTIRUN else folder),
            logging=OmegaConf.to_container(hydra.job_logging, resolve=True),  # type: ignore[arg-type]
        )

    def run(self) -> int:
        """Run to the end and show the result; returns the exit code, 0 for a completed run that has passed its gate."""
        code = self._run_and_show()
        for kept in to_upload(self.folder):
            log.info("to upload this run: wandb sync %s", shlex.quote(str(kept)))
        return code

    def _run_and_show(self) -> int:
        try:
            with kept_open():
                result = self._measured()
        except KeyboardInterrupt:
            log.error("\ninterrupted; no result was written. To go on: %s", self._to_resume)
            return 1 if self.trial is None else INTERRUPTED
        except Exception as error:
            self._explain(error)
            return self._code_of(error)
        if result["status"] != "pruned":  # else said where it was decided
            log.info("\n%s\n", reports.at_the_end(result))
        self._say_where_to_look()
        # to a sweep a trial that is carried out is no failure; its winner's result says what it has lost
        return exit_codes.FORGOTTEN if forgotten.failed(result) and self.trial is None else 0

    def _say_where_to_look(self) -> None:
        pages = [self.folder / name for name in ("report.html", "report.md")]
        log.info("report: %s", next((page for page in pages if page.is_file()), pages[-1]))
        model = self.folder / "model"
        if model.is_dir():
            log.info('model:  %s  (SentenceTransformer("%s"))', model, model)
            log.info('try it: python -m embexp.search %s "a question"', shlex.quote(str(self.folder)))

    def _code_of(self, error: Exception) -> int:
        if self.trial is None or not isinstance(error, NotNowError):
            return 1
        return DISK_FULL if isinstance(error, FullError) else INTERRUPTED

    def run_elsewhere(self) -> None:
        """Run in a process that knows nothing of this one, and end it with the exit code."""
        with console.forgiving():
            configure_log(OmegaConf.create(dict(self.logging)))
            code = self.run()
        sys.exit(code)

    def _measured(self) -> dict[str, Any]:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # unset, the library warns whenever a process forks
        log.info("run: %s", self.folder)
        with uncollected(), doing("loading libraries"):
            from embexp import run  # torch: seconds

        if self.trial is None:
            return run.run(
                self.config,
                names=self.names,
                folder=self.folder,
                group=self.group,
                resume=self.resume,
                launched=self.launched,
            )
        from embexp.sweep.trial import attached

        with attached(self.trial) as trial:
            # whoever had the trial before may have left a part of it here
            result = run.run(
                self.config, names=self.names, folder=self.folder, group=self.group, resume=True, watch=trial
            )
            trial.tell(result)
        return result

    @property
    def _to_resume(self) -> str:
        if self.trial is not None:
            return "the sweep's command"
        return f"python -m embexp resume={shlex.quote(str(self.folder))}"

    def _explain(self, error: Exception) -> None:
        if self.config["debug"]:
            log.error("%s", "".join(traceback.format_exception(error)))
        elif isinstance(error, UserError):
            log.error("%s", explained(error))
        else:
            text = f"embexp: {described(error)}"
            try:
                with (self.folder / "embexp.log").open("a", encoding="utf-8") as file:
                    file.write("".join(traceback.format_exception(error)))
                text += f"\n  the traceback is in {self.folder / 'embexp.log'}; debug=true shows it here"
            except OSError:  # the disk may be what failed
                text += "\n  debug=true shows the traceback"
            log.error("%s", text)
        if any(self.folder.glob("checkpoints/*")) and not isinstance(error, BusyError):
            log.error("what it has done is kept; to go on: %s", self._to_resume)
