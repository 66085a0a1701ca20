"""Where Hydra looks for launchers: it accepts only classes of the package hydra_plugins. The work is in
embexp.jobs.launcher, which is loaded when a multirun is asked for, since Hydra looks here at every start."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ProcessLauncher(Launcher):
    """Named by conf/hydra/launcher/embexp.yaml."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra; the task function is not needed, since a job is made from its config alone."""
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a job for each list of overrides."""
        from embexp.jobs.launcher import launched

        return launched(job_overrides, first=initial_job_idx, context=self._context, config=self._config)
