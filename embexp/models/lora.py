"""What LoRA is told: low-rank updates of a transformer's matrices (Hu et al., 2021). Named by files in conf/model.

`low_rank` trains them; this imports nothing that takes time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from embexp.errors import UserError

INSTALL = "model.peft=lora needs the package peft: pip install 'embexp[lora]', or set model.peft=null"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """How a matrix W is trained as W + alpha / rank B A.

    rank: of B A. target_modules: the names of the layers that are trained, such as query; None for those that peft
    names for the kind of transformer. dropout: of what A reads, while training.
    """

    rank: int = 16
    alpha: int = 32
    target_modules: Sequence[str] | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"model.lora has rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}; rank and alpha must be "
                "at least 1, dropout from 0 up to, not including, 1"
            )


def refuse_without_peft() -> None:
    """Raise UserError where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise UserError(INSTALL)
