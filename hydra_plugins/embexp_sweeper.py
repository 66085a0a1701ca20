"""Where Hydra looks for sweepers: it accepts only classes of the package hydra_plugins. The work is in
embexp.sweep.sweeper, which loads Optuna: only when a sweep is asked for, since Hydra looks here at every start."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Named by conf/hydra/sweeper/embexp.yaml."""

    def __init__(self, **settings: Any) -> None:
        """settings: the node's keys, which are read from the config again."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra; the task function is not needed, since a trial is made from its config alone."""
        self._context, self._config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        """Carry out the sweep; arguments: the overrides of the command line."""
        from embexp.sweep.sweeper import carry_out

        carry_out(arguments, context=self._context, config=self._config)
