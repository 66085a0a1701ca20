"""What --help shows: the groups, their choices and the config, in the words of hydra.help. Called by `cli`.

Hydra would show the same in three times the time; see `choices`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from embexp.config.checks import CONFIG_FOLDER, Program
from embexp.config.choices import choices, groups


def help_text(arguments: argparse.Namespace, *, program: Program) -> str:
    """The help with the config that the arguments make. Raises HydraException where they make none."""
    own = [f"hydra.searchpath=[file://{Path(arguments.config_dir).absolute()}]"] if arguments.config_dir else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        overrides = [*own, *arguments.overrides]
        config = compose(arguments.config_name or program.name, overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)  # so that ${hydra:...} means something
        shown = _Shown(config, loader, arguments.config_dir, resolve=arguments.resolve)
        text = Template(config.hydra.help.template).substitute(shown)
    GlobalHydra.instance().clear()
    return text


class _Shown(Mapping[str, str]):
    """What a template of hydra.help may name; only what it names is made."""

    def __init__(self, config: DictConfig, loader: ConfigLoader, config_dir: str | None, *, resolve: bool) -> None:
        self._config, self._loader, self._config_dir, self._resolve = config, loader, config_dir, resolve
        self._made = {
            "FLAGS_HELP": lambda: Hydra.format_args_help(get_args_parser()),
            "HYDRA_CONFIG_GROUPS": lambda: self._groups(of_hydra=True),
            "APP_CONFIG_GROUPS": lambda: self._groups(of_hydra=False),
            "CONFIG": self._yaml,
        }

    def __getitem__(self, name: str) -> str:
        return self._made[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def _groups(self, *, of_hydra: bool) -> str:
        kept = [name for name in groups(self._loader, self._config_dir) if (name.split("/")[0] == "hydra") == of_hydra]
        return "".join(f"{name}: {', '.join(choices(name, self._loader, self._config_dir))}\n" for name in kept)

    def _yaml(self) -> str:
        config: Any = self._config.copy()
        with open_dict(config):
            del config["hydra"]
        return OmegaConf.to_yaml(config, resolve=self._resolve)
