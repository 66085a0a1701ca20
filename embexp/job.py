"""One run as plain values, so that it can start in this process or in another. Called by `cli` and `launcher`.

Starting a job is where the heavy imports happen, after everything that can be checked without them.
"""

from __future__ import annotations

import logging
import os
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

from embexp import config as configs
from embexp import report as reports
from embexp.errors import UserError

log = logging.getLogger("embexp")


@dataclass(frozen=True)
class Job:
    """What a run needs: see `experiment.run`. logging: Hydra's job_logging, for a process that has not set it up."""

    config: Mapping[str, Any]
    names: Mapping[str, str]
    folder: Path
    group: str | None
    logging: Mapping[str, Any]

    @classmethod
    def current(cls, config: DictConfig) -> Job:
        """The job that Hydra has just composed and made a folder for."""
        hydra = HydraConfig.get()
        choices = hydra.runtime.choices
        return cls(
            config=configs.plain(config),
            names={group: str(choices[group]) for group in ("loss", "model", "dataset")},
            folder=Path(hydra.runtime.output_dir),
            group=str(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None,
            logging=OmegaConf.to_container(hydra.job_logging, resolve=True),  # type: ignore[arg-type]
        )

    def run(self) -> int:
        """Run to the end and show the result; returns the exit code, 0 for a completed run."""
        try:
            result = self._measured()
        except KeyboardInterrupt:
            log.error("\ninterrupted: no result was written; what there is stands in %s", self.folder)
            return 1
        except Exception as error:
            self._explain(error)
            return 1
        log.info("\n%s\n", reports.summary(result))
        log.info("report: %s", self.folder / "report.md")
        if result["tuned"]:
            log.info('model:  %s  (SentenceTransformer("%s"))', self.folder / "model", self.folder / "model")
        return 0

    def run_elsewhere(self) -> None:
        """Run in a process that knows nothing of this one, and end it with the exit code."""
        configure_log(OmegaConf.create(dict(self.logging)))
        sys.exit(self.run())

    def _measured(self) -> dict[str, Any]:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # unset, the library warns whenever a process forks
        log.info("%s: loading libraries ...", self.folder)
        from embexp import experiment  # torch, transformers: seconds

        experiment.quiet_libraries()
        return experiment.run(self.config, names=self.names, folder=self.folder, group=self.group)

    def _explain(self, error: Exception) -> None:
        if self.config["debug"]:
            log.error("%s", "".join(traceback.format_exception(error)))
        elif isinstance(error, UserError):
            log.error("%s", explained(error))
        else:
            with (self.folder / "embexp.log").open("a", encoding="utf-8") as file:
                file.write("".join(traceback.format_exception(error)))
            log.error(
                "embexp: %s: %s\n  the traceback is in %s; debug=true shows it here",
                type(error).__name__, error, self.folder / "embexp.log",
            )  # fmt: skip


def explained(error: UserError) -> str:
    """The mistakes of a UserError, one to a line."""
    if len(error.problems) == 1:
        return f"embexp: {error.problems[0]}"
    return "\n".join([f"embexp: {len(error.problems)} mistakes", *(f"  - {problem}" for problem in error.problems)])
