"""Where a `_target_` of a config may live, and where what earlier versions named lives now.

Called by `targets`, which finds what a target is, and by `components`, which makes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from embexp.errors import UserError

# where a target may live without being allowed: nothing here fetches, writes or imports what its arguments name
PLACES = (
    "embexp.data.splits", "embexp.datasets", "embexp.evaluation.evaluators", "embexp.mine.chunker",
    "embexp.mine.funnel", "embexp.mine.llm", "embexp.mine.round_trip", "embexp.mine.sentences", "embexp.mine.sides",
    "embexp.models.embedding_model", "embexp.models.endpoint", "embexp.models.lora", "embexp.reranking.reordering",
    "embexp.rows.negatives", "embexp.service.budget", "embexp.service.server", "embexp.tracking.WandbMirror",
    "embexp.training.losses",
    "sentence_transformers.base.evaluation", "sentence_transformers.base.losses",
    "sentence_transformers.sentence_transformer.evaluation", "sentence_transformers.sentence_transformer.losses",
    "sentence_transformers.sentence_transformer.training_args", "sentence_transformers.util.similarity",
)  # fmt: skip
# what configs of earlier versions, as finished runs and mined data sets keep them, call these modules
MOVED = {
    "embexp.endpoint": "embexp.models.endpoint",
    "embexp.evaluators": "embexp.evaluation.evaluators",
    "embexp.lora": "embexp.models.lora",
    "embexp.losses": "embexp.training.losses",
    "embexp.mine.budget": "embexp.service.budget",
    "embexp.mine.server": "embexp.service.server",
    "embexp.models": "embexp.models.embedding_model",
    "embexp.negatives": "embexp.rows.negatives",
    "embexp.reranking": "embexp.reranking.reordering",
    "embexp.splits": "embexp.data.splits",
}


def moved(target: str) -> str:
    """The dotted path that a target of an earlier version has now; any other as it is."""
    module, _, name = target.rpartition(".")
    return f"{MOVED.get(module, module)}.{name}"


def refuse_place(target: str, module: str, *, allowed: Sequence[str]) -> None:
    """Raise UserError when what `target` names lives in a `module` that a config can't name."""
    package = module.partition(".")[0]
    places = {module, f"{module}.{target.rpartition('.')[2]}"}  # the object itself may be a place
    if package in allowed or any(f"{each}.".startswith(f"{place}.") for each in places for place in PLACES):
        return
    if package in {place.partition(".")[0] for place in PLACES}:
        raise UserError(
            f"_target_ {target!r} lives in {module}, which a config can't name: it can do more than a run needs. "
            f"A config can name what lives in {', '.join(PLACES)}. If you need it, set allowed_packages=[{package}]"
        )
    raise UserError(
        f"_target_ {target!r} lives in the package {package!r}; allowed are embexp, sentence_transformers"
        f"{''.join(f', {each}' for each in allowed)}. If you trust it, set allowed_packages=[{package}]"
    )
