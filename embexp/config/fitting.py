"""What of an experiment's config does not go together: a loss, a model, a reranker, a guard set.

Called by `config.experiment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embexp.service.server import problems_of

# what a run reads of the reranker, so that a file of the user's own must have it too; the second where it is trained
RERANKER_NEEDS, TRAINED_NEEDS = ["depth"], ["path", "max_length", "dropout"]
MEASURES = ["recall", "precision", "accuracy", "mrr", "map", "ndcg"]


def mistakes_in(config: Mapping[str, Any]) -> list[str]:
    """Every choice that does not fit another; what is not of its right type is said elsewhere."""
    kinds = (_needs_mistakes, _reranker_mistakes, _adapter_mistakes, _forgetting_mistakes, _endpoint_mistakes)
    return [problem for mistakes in kinds for problem in mistakes(config)]


def _needs_mistakes(config: Mapping[str, Any]) -> list[str]:
    """A loss that needs another kind of model than the chosen one; a model without a kind is looked at when loaded."""
    loss, model = config["loss"], config["model"]
    if not isinstance(loss, Mapping) or not isinstance(model, Mapping) or config["trainer"] is None:
        return []
    needs, kind = loss.get("needs"), model.get("kind")
    if needs not in (None, "transformer"):
        return [f"loss.needs={needs!r} must be transformer, or null for any model"]
    if needs is None or kind in (None, needs):
        return []
    return [f"this loss needs a {needs} and the model is {kind}; choose another model (model=minilm) or loss=mnrl"]


def _reranker_mistakes(config: Mapping[str, Any]) -> list[str]:
    """Keys left out, a metric that does not look at a ranking, and a model that has no transformer to start from."""
    reranker, model, metric = config["reranker"], config["model"], config["metric"]
    if not isinstance(reranker, Mapping) or not isinstance(model, Mapping):
        return []
    needs = RERANKER_NEEDS + (TRAINED_NEEDS if "negatives" in reranker else [])
    problems = [f"reranker.{key} must be set: reranker.{key}=..." for key in needs if key not in reranker]
    weight = reranker.get("weight")
    if isinstance(weight, int | float) and not 0 <= weight <= 1:
        problems.append(f"reranker.weight={weight} must be from 0 to 1, or null for the best on dev")
    if isinstance(metric, str) and metric.partition("@")[0] not in MEASURES:
        problems.append(
            f"metric={metric} says nothing of a ranking, all that a reranker changes; choose such as recall@10"
        )
    if "negatives" in reranker and reranker.get("path") is None and model.get("kind") not in (None, "transformer"):
        problems.append(
            f"reranker=trained starts from the run's model, and this one is {model['kind']}; set reranker.path to a "
            "local folder or a Hub id, choose another model (model=minilm), or leave it out (reranker=none)"
        )
    return problems


def _adapter_mistakes(config: Mapping[str, Any]) -> list[str]:
    """Two ways to train a part alone, and a loss that reaches into the transformer where only its vectors are seen."""
    loss, model = config["loss"], config["model"]
    if not isinstance(loss, Mapping) or not isinstance(model, Mapping) or config["trainer"] is None:
        return []
    if model.get("adapter") is not None and model.get("peft") is not None:
        return [f"model.adapter={model['adapter']} leaves the model as it is, and model.peft={model['peft']} does not; "
                "set one of them to null"]  # fmt: skip
    if model.get("adapter") is None or loss.get("needs") != "transformer":
        return []
    return [
        f"model.adapter={model['adapter']} is trained on the model's vectors, and this loss needs the transformer that "
        "makes them; choose loss=mnrl (its batch can be as large as you like here), or model.adapter=null"
    ]


def _forgetting_mistakes(config: Mapping[str, Any]) -> list[str]:
    """Shares that are none, a limit to what is lost on a guard set that is not there, and either without a training."""
    problems, merge, most = [], config["merge"], config["max_forgetting"]
    if isinstance(merge, list):
        right = [share for share in merge if isinstance(share, int | float) and not isinstance(share, bool)]
        if not merge or len(right) < len(merge) or not all(0 <= share <= 1 for share in right):
            problems.append(
                f"merge={merge} must be true, or a list of shares of the change from 0 to 1, such as [0.5,1]"
            )
    if isinstance(most, int | float) and not 0 <= most <= 1:
        problems.append(f"max_forgetting={most} must be from 0 to 1: 0.02 lets the metric fall by two points")
    if most is not None and config["guard_dataset"] is None:
        problems.append(f"max_forgetting={most} is of a guard set, and there is none; add guard_dataset=nanobeir, or "
                        "any other data set")  # fmt: skip
    if config["trainer"] is None:
        untrained = {"merge": merge if merge else None, "max_forgetting": most}
        problems += [f"{key}={value} is of what a training changes, and trainer=none has none; leave one of them out"
                     for key, value in untrained.items() if value is not None]  # fmt: skip
    return problems


def _endpoint_mistakes(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with an endpoint; a key where only its name belongs is said before Hydra writes it down."""
    model, trainer = config["model"], config["trainer"]
    if not isinstance(model, Mapping) or model.get("kind") != "endpoint":
        return []
    problems = []
    if trainer is not None and model.get("adapter") is None:
        problems.append("an endpoint's weights can't be trained: set model.adapter=query_linear (linear, mlp), or "
                        "trainer=none to measure it")  # fmt: skip
    if isinstance(trainer, Mapping) and trainer.get("processes") not in (None, 1):
        problems.append(f"trainer.processes={trainer['processes']}: an endpoint embeds, which one process asks; set 1")
    if config["cache"] is False:
        problems.append("cache=false keeps no vectors, and an interrupted run would pay for them again; name a folder")
    known = {name: model[name] for name in ("base_url", "api_key_env") if isinstance(model.get(name), str)}
    return problems + problems_of("model", **known)
