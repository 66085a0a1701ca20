"""Mixes a model's weights of before and after training, and lets dev choose how much of the change is kept.

Each weight becomes before + share (after - before): WiSE-FT (Wortsman et al., 2022, arXiv 2109.01903), which
LM-Cocktail (Xiao et al., 2023, arXiv 2311.13534) does with embedding models. An adapter starts as the identity, so
that its shares lie between the base and what it has become. Called by `arms.measured` and `experiment`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from embexp.encoding.encoder import Encoder
from embexp.evaluation.search import Arm, Dense
from embexp.forgetting.guard import ROUNDING, Guard
from embexp.models.embedding_model import EmbeddingModel

log = logging.getLogger(__name__)

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # merge=true
Weights = Mapping[str, torch.Tensor]
OnDev = Callable[[Arm], float]


@dataclass(frozen=True)
class Scored:
    """What a share's weights score on dev, and on the guard set's dev where there is one."""

    dev: float
    guard: float | None = None


def shares_of(merge: bool | Sequence[float] | None) -> Sequence[float]:
    """The shares that the config's `merge` asks for; none for null and false."""
    return (SHARES if merge else ()) if merge is None or isinstance(merge, bool) else tuple(map(float, merge))


def weights_of(model: EmbeddingModel) -> Weights:
    """A copy of the model's weights, by name, in memory; integers that it keeps beside them are not among them."""
    state = model.model.state_dict()
    return {name: value.detach().cpu().clone() for name, value in state.items() if value.is_floating_point()}


class Mixture:
    """The weights of a model before and after its training, of which it can take any share of the way."""

    def __init__(self, model: EmbeddingModel, before: Weights) -> None:
        """Made once the model is trained. before: `weights_of` it when its content was that of its origin."""
        self._model, after = model, weights_of(model)
        assert before.keys() == after.keys(), "training has changed what the model is made of"
        self._ends = {
            name: (before[name], value) for name, value in after.items() if not torch.equal(before[name], value)
        }

    def take(self, share: float) -> EmbeddingModel:
        """The same model, with the weights of this share of the way; 0 and 1 are before and after, bit by bit.

        All processes of the run take them. An Encoder made before embeds no new texts as it did the others.
        """
        state = self._model.model.state_dict()
        with torch.no_grad():
            for name, (before, after) in self._ends.items():
                state[name].copy_(_between(before, after, share))
        processes = self._model.processes
        if processes is not None:
            from embexp.parallel.shares import same_weights

            processes.tell("weights")
            same_weights(self._model.model, processes)
        return self._model

    def encoder(self, share: float) -> Encoder:
        """What embeds with the weights of this share, which the model takes."""
        model = self.take(share)
        known = share == 0 and model.base is None  # these are the base's embeddings, which the cache may hold
        content = model.origin["content"] if known else None
        return Encoder(model, progress=f"{share:g} of the change", content=content)


def _between(before: torch.Tensor, after: torch.Tensor, share: float) -> torch.Tensor:
    if share in (0, 1):
        return after if share else before
    return torch.lerp(before, after, share)


def merge(
    mixture: Mixture, tuned: Encoder, *, shares: Sequence[float], on_dev: OnDev, guard: Guard | None
) -> tuple[Encoder, dict[str, Any]]:
    """Leave the model with the share of the change that is best on dev; see `better`.

    tuned: embeds with all of the change; what it has embedded is used. Each further share embeds what it is scored on.
    Three encoders are held at a time (tuned, the best so far and the one being scored), each as large as what it has
    embedded, beside three copies of the weights. on_dev: the primary metric of an arm there. guard: where there is one,
    has its say. Returns the encoder of the chosen share, and for result.json the `shares`, each with its scores on dev
    and guard, and the share `chosen`.
    """
    scores: dict[float, Scored] = {}
    at_least = guard.at_least if guard else None
    best, encoder, last = 1.0, tuned, 1.0
    for share in sorted(set(shares), reverse=True):
        candidate, last = tuned if share == 1 else mixture.encoder(share), share
        arm = Dense(candidate)
        scores[share] = Scored(on_dev(arm), guard.on_dev(arm) if guard else None)
        log.info("%g of the change: %s", share, _in_words(scores[share]))
        if best not in scores or not better(best, share, scores, guard_at_least=at_least):
            best, encoder = share, candidate
    if last != best:
        mixture.take(best)
    log.info("%g of the change is kept", best)
    return encoder, {"shares": {f"{share:g}": asdict(scores[share]) for share in sorted(scores)}, "chosen": best}


def better(one: float, other: float, scores: Mapping[float, Scored], *, guard_at_least: float | None) -> bool:
    """Whether one share is to be chosen before another one: the better on dev, among equals the smaller change.

    guard_at_least: of shares that score less on the guard set, only the best there may be chosen, and only where no
    share scores as much.
    """

    def rank(share: float) -> tuple[bool, float]:
        found = scores[share]
        if guard_at_least is None or found.guard is None or found.guard >= guard_at_least - ROUNDING:
            return True, found.dev
        return False, found.guard

    (fits, first), (other_fits, second) = rank(one), rank(other)
    if fits != other_fits:
        return fits
    return first > second if abs(first - second) > ROUNDING else one < other


def _in_words(scored: Scored) -> str:
    return f"{scored.dev:.3f} on dev" + (f", {scored.guard:.3f} on the guard set" if scored.guard is not None else "")
