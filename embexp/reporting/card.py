"""The model card of a run, model/README.md: what was measured, on what, and how to use the model. Called by `run`.

Reads the result and the model's stamp. It holds no text of the data, no path of the machine and no key, so that the
folder can be given away as it is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from embexp import stamp
from embexp.durable import write_whole
from embexp.forgetting import shown as forgotten
from embexp.models.folder import STAMP
from embexp.reporting import usage
from embexp.reporting.report import HEADLINE, judged_queries, summary
from embexp.reporting.tables import aligned
from embexp.reranking import card as reranker_card

log = logging.getLogger(__name__)

PACKAGES = {"LangChain": "langchain-huggingface", "LlamaIndex": "llama-index-embeddings-huggingface"}
# of a loss: said elsewhere, or of no use to a reader; the last two name models, which are in the fingerprint
SAID = ("_target_", "_partial_", "shape", "accepts", "needs", "guide", "teacher")


def write(result: Mapping[str, Any], names: Mapping[str, str], folder: Path) -> None:
    """Write the cards of a completed run into the folders of its model and its reranker; where there is none, nothing.

    The run is over and its result is kept: whatever goes wrong here is said and ends nothing.
    """
    cards: dict[str, Callable[[Path], str]] = {
        "model": lambda made: card(result, names, stamp.read(made / STAMP)),
        "reranker": lambda made: reranker_card.card(result, names, HEADLINE),
    }
    for name, make in cards.items() if result["status"] == "completed" else ():
        try:
            if (made := folder / name).is_dir():
                write_whole(made / "README.md", make(made))
        except Exception as error:
            log.warning("the model card can't be written (%s: %s); the run is complete", type(error).__name__, error)


def card(result: Mapping[str, Any], names: Mapping[str, str], stamped: Mapping[str, Any]) -> str:
    """The whole card. names: the choices of model, loss and dataset. stamped: the model's stamp."""
    title = f"# {names['model']} tuned on {names['dataset']}"
    opening = (
        f"An embedding model for retrieval: {names['model']}, fine-tuned with the loss {names['loss']}. Texts become "
        f"vectors of {stamped['dimensions']} dimensions, compared by cosine. Trained and measured with embexp "
        f"{result['versions']['embexp']}."
    )
    sections = {
        "Is it better than its base?": summary(result),
        "How to use it": _usage(stamped),
        "The data": _data(result),
        "How it was trained": _training(result, names, stamped),
        "Versions": aligned(["package", "version"], list(result["versions"].items())),
    }
    parts = [title, opening, *(f"## {name}\n\n{text}" for name, text in sections.items())]
    return f"---\n{front_matter(result, names).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def front_matter(result: Mapping[str, Any], names: Mapping[str, str]) -> ModelCardData:
    """What a model hub reads: kind, base model where it is on the Hub, and scores on test with their intervals."""
    return ModelCardData(
        base_model=_base_on_the_hub(result),
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "sentence-similarity", "embexp"],
        model_name=f"{names['model']} tuned on {names['dataset']}",
        eval_results=[*_scores(result, names)],
    )


def _scores(result: Mapping[str, Any], names: Mapping[str, str]) -> list[EvalResult]:
    metric, judged = result["metric"], judged_queries(result["counts"])
    whole = [name for name in dict.fromkeys([metric, *HEADLINE]) if name in result["tuned"]["test"]]
    scores = [
        _score(names, result["tuned"]["test"], result["delta"], name, queries=judged, data=result["fingerprint"])
        for name in whole
    ]
    for name, part in result["slices"].items() if len(result["slices"]) > 1 else ():
        data = result["fingerprint"]
        scores.append(
            _score(names, part["tuned"], part["delta"], metric, queries=part["queries"], data=data, part=name)
        )
    return scores


def _score(
    names: Mapping[str, str],
    tuned: Mapping[str, float],
    delta: Mapping[str, Any],
    metric: str,
    *,
    queries: int,
    data: Mapping[str, Any],
    part: str | None = None,
) -> EvalResult:
    change = delta[metric]
    return EvalResult(
        task_type="information-retrieval",
        task_name="Information Retrieval",
        dataset_type="unknown",  # to the Hub: this takes the id of a data set there
        dataset_name=f"{names['dataset']} test" + (f" ({part})" if part else ""),
        dataset_config=part,
        dataset_split="test",
        dataset_args={"queries": queries, "sha256": data["test"], "corpus_sha256": data["corpus"]},
        metric_type=metric,
        metric_name=metric,
        metric_value=round(tuned[metric], 4),
        metric_args={
            "base": round(tuned[metric] - change["absolute"], 4),
            "delta": round(change["absolute"], 4),
            "interval_95": [round(change["ci_low"], 4), round(change["ci_high"], 4)],
            "documents": change["documents"],
        },
    )


def _usage(stamped: Mapping[str, Any]) -> str:
    routed = stamped.get("routed", False)
    parts = [_prompts(stamped["prompts"])]
    if "behind" in stamped:
        of = "queries; a passage keeps its vector" if routed else "queries and passages"
        parts.append(
            f"This folder holds layers alone. They read the vectors of {stamped['behind']}, of {of}:\n\n"
            f"```python\n{usage.OF_LAYERS[stamped['adapter']]}```"
        )
        return "\n\n".join(parts)
    if routed:
        parts.append(
            "Queries take another way through it than passages: use `encode_query` and `encode_document`, or `encode` "
            'with `task="query"` and `task="document"`. `encode` alone embeds passages.'
        )
    if routed and "same_vectors_as" in stamped:
        parts.append("Passages have the base model's vectors, so that an index made with the base needs nothing new.")
    for library, code in usage.lines(stamped["prompts"], routed=routed).items():
        package = f" (`pip install {PACKAGES[library]}`)" if library in PACKAGES else ""
        parts.append(f"{library}{package}:\n\n```python\n{code}```")
    parts.append(
        f"`{usage.MODEL}` is this folder. Store a copy of its `{STAMP}` with each index, compare at start-up "
        f"(`python -m embexp.stamp {usage.MODEL} --index FILE`): this model can't search another one's vectors."
    )
    return "\n\n".join(parts)


def _prompts(prompts: Mapping[str, str]) -> str:
    if not any(prompts.values()):
        return "No prompts: queries and passages are embedded as they are."
    said = [f"every {kind} follows `{prompt}`" for kind, prompt in prompts.items() if prompt]
    said += [f"a {kind} is embedded as it is" for kind, prompt in prompts.items() if not prompt]
    return f"Prompts: {'; '.join(said)}. It was trained and measured so, and is worse used otherwise."


def _data(result: Mapping[str, Any]) -> str:
    counts, found = result["counts"], result["fingerprint"]
    rows = [
        [side, f"{counts['queries'][side]:,}", f"{counts['passages'][side]:,}", f"`{found[side]}`"]
        for side in ("train", "dev", "test")
    ]
    table = aligned(["split", "queries", "passages searched", "SHA-256 of queries, answers and passages"], rows)
    commits = [f"{key} {value}" for key, value in found["dataset"].items() if key == "commit" and value]
    return "\n\n".join([table, f"All passages: SHA-256 `{found['corpus']}`.", *commits])


def _training(result: Mapping[str, Any], names: Mapping[str, str], stamped: Mapping[str, Any]) -> str:
    config, counts, base = result["config"], result["counts"], result["fingerprint"]["model"]
    best = counts["best_step"]
    said = [
        f"- base model: {names['model']}, {_helper(base)}",
        f"- this model: content `{stamped['content']}`, weights `{stamped['weights']}`",
        *_trained_part(config["model"]),
        f"- loss: {config['loss']['_target_'].rpartition('.')[2]}, shape {config['loss']['shape']}"
        + "".join(f", {key} {_shown(value)}" for key, value in _settings(config["loss"])),
        *(f"- {setting}: {_helper(helper)}" for setting, helper in result["fingerprint"]["helpers"].items()),
        f"- negatives: {_negatives(result)}",
        f"- {counts['train_rows']:,} rows, {counts['steps']:,} steps, "
        + ("the last weights" if best is None else f"the weights of step {best}, the best on dev"),
        *([f"- {forgotten.kept(result)}"] if result.get("merge") else []),
        f"- seed: {result['seed']}",
        *(f"- {key}: {_shown(value)}" for key, value in _settings(config["trainer"])),
    ]
    return "\n".join(said)


def _trained_part(model: Mapping[str, Any]) -> list[str]:
    if model.get("peft") is not None:
        return [f"- trained: {_shown(model['lora'])} by LoRA, merged into the base model's weights"]
    kind = model.get("adapter")
    return [f"- trained: an adapter, {kind}, behind the base model, whose weights are as they were"] if kind else []


def _settings(node: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in node.items() if key not in SAID and value is not None]


def _negatives(result: Mapping[str, Any]) -> str:
    drawn = result["counts"]["negatives"]
    if not drawn:
        return "none but the other passages of the batch, where the loss uses these"
    return f"{drawn['drawn']:,}, found by {drawn['found_by']}"


def _helper(model: Mapping[str, str | None]) -> str:
    """A model by its place on the Hub, where it has one, and by its content."""
    place = f"{model['path']} at commit {model['commit']}, " if model["commit"] else ""
    return f"{place}content `{model['content']}`"


def _base_on_the_hub(result: Mapping[str, Any]) -> str | None:
    base = result["fingerprint"]["model"]
    return str(base["path"]).partition("@")[0] if base["commit"] else None


def _shown(value: Any) -> str:
    """A setting as it was, but not where something lies on the machine that trained."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items() if key not in SAID)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return "(a local file or a model)" if isinstance(value, str) and re.search(r"[/\\]", value) else str(value)
