"""What a config may ask for beside one training: further arms on the report, a learning curve.

Called by `config.experiment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embexp.config.checks import Types, nearest
from embexp.errors import listed

ARMS = ["hybrid", "adapter", "merged"]  # a reranker, where one is chosen, is an arm too
OF_A_TRAINING = ["adapter", "merged"]
KINDS = ["linear", "mlp", "query_linear"]  # of adapters
ROOT_TYPES: dict[str, Types] = {
    "arms": ((list,), f"a list of {listed(ARMS)}"),
    "adapter_arm": ((dict,), "the kind of an adapter and arguments of its training"),
    "learning_curve": ((bool,), "true or false"),
    "margin": ((int, float), "a difference of the metric, such as 0.02"),
}
OWN_KEYS: dict[str, Types] = {"kind": ((str,), f"one of {listed(KINDS)}")}
AT_LEAST = {"margin": 0, "adapter_arm.per_device_train_batch_size": 2, "adapter_arm.num_train_epochs": 0,
            "adapter_arm.learning_rate": 0}  # fmt: skip


def mistakes_in(config: Mapping[str, Any]) -> list[str]:
    """Arms that there are none of, and what these can't be combined with."""
    arms, curve, margin = config["arms"], config["learning_curve"] is True, config["margin"]
    problems = []
    if isinstance(margin, int | float) and margin > 1:
        problems.append(f"margin={margin} must be from 0 to 1: 0.02 is two points of the metric")
    if not isinstance(arms, list) or not (arms or curve):
        return problems
    problems += [
        f"arms={listed(arms)}: there is no arm {arm};{nearest(str(arm), ARMS)} there are {listed(ARMS)}"
        for arm in arms
        if arm not in ARMS
    ]
    said, metric = f"arms=[{listed(arms)}]" if arms else "learning_curve=true", config["metric"]
    if config["sweep"] is not None:
        problems.append(
            f"{said} is for a single run: the trials of a sweep don't score test. Sweep first, then run the winner's "
            "values with it"
        )
    if isinstance(metric, str) and ("@" not in metric or "." in metric):
        problems.append(f"{said} compares rankings, and metric={metric} is of none; set metric=recall@10")
    if arms and isinstance(config["model"], Mapping) and config["model"].get("kind") == "endpoint":
        problems.append(
            f"{said}: what arms cost is timed by embedding anew, which an endpoint would be paid for, and it is not of "
            "this machine; leave arms out, or choose a model that is here (model=minilm)"
        )
    if config["trainer"] is None:
        trained = [*(f"arms=[{arm}]" for arm in OF_A_TRAINING if arm in arms), *(["learning_curve=true"] * curve)]
        problems += [f"{what} needs a training, and trainer=none has none; leave one of them out" for what in trained]
        return problems
    if "merged" in arms and config["merge"]:
        problems.append("arms=[merged]: with merge=true the tuned model is merged already; leave one of them out")
    return problems + (_adapter_mistakes(config) if "adapter" in arms else [])


def _adapter_mistakes(config: Mapping[str, Any]) -> list[str]:
    chosen, model, loss = config["adapter_arm"], config["model"], config["loss"]
    if not (isinstance(chosen, Mapping) and isinstance(model, Mapping) and isinstance(loss, Mapping)):
        return []  # said already
    problems = []
    if chosen.get("kind") not in KINDS:
        problems.append(f"adapter_arm.kind={chosen.get('kind')} must be one of {listed(KINDS)}")
    if model.get("adapter") is not None:
        problems.append(
            f"arms=[adapter]: with model.adapter={model['adapter']} the tuned model is an adapter already; leave one "
            "of them out"
        )
    if loss.get("needs") == "transformer":
        problems.append(
            "arms=[adapter]: an adapter is trained on the model's vectors, and this loss needs the transformer that "
            "makes them; choose loss=mnrl, or leave adapter out of arms"
        )
    return problems
