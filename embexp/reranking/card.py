"""The model card of a trained reranker, reranker/README.md: what it does to a ranking, and how to use it.

Called by `reporting.card`, which says what such a card must not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from embexp.errors import listed
from embexp.reporting import usage
from embexp.reporting.report import FOUND_BY
from embexp.reporting.tables import aligned, markdown
from embexp.reranking.shown import blocks


def card(result: Mapping[str, Any], names: Mapping[str, str], metrics: list[str]) -> str:
    """The whole card. names: the choices of model and dataset. metrics: those to show."""
    front = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="text-ranking",
        tags=["sentence-transformers", "cross-encoder", "reranker", "embexp"],
        model_name=f"Reranker for {names['dataset']}",
    )
    opening = (
        "A cross-encoder: it reads a question and a passage together and gives a score from 0 to 1. It puts the first "
        f"passages of a search in a better order. Trained and measured with embexp {result['versions']['embexp']}."
    )
    sections = {
        "Is the order better with it?": markdown(blocks(result, metrics)),
        "How to use it": (
            f"sentence-transformers:\n\n```python\n{usage.reranker_lines(result['reranker']['weight'])}```\n\n"
            f"`{usage.RERANKER_FOLDER}` is this folder. The weights are those that it was measured with. "
            "Each pair takes time: give it the first passages of a search, as many as it was measured on."
        ),
        "How it was trained": _training(result),
        "Versions": aligned(["package", "version"], list(result["versions"].items())),
    }
    title = f"# Reranker for {names['dataset']}"
    parts = [title, opening, *(f"## {name}\n\n{text}" for name, text in sections.items())]
    return f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _training(result: Mapping[str, Any]) -> str:
    found, settings = result["reranker"], result["config"]["reranker"]
    drawn, best = found["negatives"], found["best_step"]
    start = result["fingerprint"]["helpers"].get("reranker.path") or result["fingerprint"]["model"]
    chosen = "the last weights" if best is None else f"the weights of step {best}, the best on dev"
    said = [
        f"- it started from the model with the content `{start['content']}`"
        + (f", with new weights of {listed(found['new'])}" if found["new"] else ""),
        f"- {found['pairs']:,} pairs, of which {drawn['drawn']:,} are negatives, found {FOUND_BY[drawn['found_by']]}; "
        f"{found['steps']:,} steps, {chosen}",
        "- loss: binary cross-entropy",
        f"- seed: {result['seed']}",
    ]
    shown = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "warmup_steps", "weight_decay",
             "max_length", "dropout")  # fmt: skip
    return "\n".join([*said, *(f"- {name}: {settings[name]}" for name in shown if settings[name] is not None)])
