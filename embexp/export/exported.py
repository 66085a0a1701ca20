"""Exports a finished run's model and measures what the format costs, on the run's test set. Called by `export`.

Before and after are measured here and now, on the same machine, and compared as base and tuned are. Writing is
`exporters`', running a graph `runtimes`'.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embexp import runtimes, stamp
from embexp.config.components import build
from embexp.data.retrieval_set import RetrievalSet
from embexp.durable import write_whole
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation.evaluators import Evaluation, evaluate
from embexp.evaluation.search import Dense
from embexp.experiment import EVALUATION_NEGATIVES
from embexp.export.exporters import WRITERS
from embexp.export.formats import FORMATS
from embexp.models.embedding_model import EmbeddingModel, Transformer
from embexp.models.folder import EXPORT, hashes
from embexp.reporting.report import HEADLINE
from embexp.reporting.tables import aligned, number
from embexp.results import result as results
from embexp.results.finished import Finished

log = logging.getLogger(__name__)

SAME_VECTORS = 0.999  # the least cosine of a text's two vectors with which an index need not be made again
MIB = 2**20
TIMED = 50  # questions


def export(run: Finished, *, name: str, out: Path, max_loss: float, changed_data: bool) -> str:
    """Write the run's model into the new folder `out` in a format, and return what to tell the user.

    | file            | holds                                                                             |
    |-----------------|-----------------------------------------------------------------------------------|
    | the model       | as `exporters` writes it                                                          |
    | export.json     | scores before and after, delta with interval, least cosine, sizes, seconds        |
    | embexp.json     | its stamp; where vectors stay the same, it may search the original's index        |
    | README.md       | the run's model card with these scores                                            |

    Raises UserError, and leaves no folder, when more than `max_loss` of the primary metric is lost.
    """
    if run.behind is not None:
        raise UserError(
            f"the run's model is layers behind {run.behind}, and no format holds what is elsewhere; the README.md of "
            "its folder model/ applies them in a few lines"
        )
    splits = run.splits(changed_data=changed_data, by="changed_data=true")
    model, encoder = run.tuned()
    log.info("measuring the model ...")
    before = _scores(run, encoder, splits.test)
    report: dict[str, Any] = {"format": name, "run": run.folder.name, "metric": run.result["metric"]}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as partial:
        folder = Path(partial) / "model"
        folder.mkdir()
        log.info("writing it as %s ...", name)
        settings = _write(run, run.tuned()[0], name, folder)  # its own copy: a writer may change what it is given
        served = _loaded(folder, name, model)
        log.info("measuring the export ...")
        report["milliseconds_a_query"] = _milliseconds(model, served, splits.test)
        new = Encoder(served, progress=f"{name} model")
        after = _scores(run, new, splits.test)
        # `compared` compares a base with a tuned: here the model and its export
        report |= results.compared({"base": before, "tuned": after}, splits, metric=report["metric"])
        for when, evaluation in (("before", before), ("after", after)):
            report[when] = results.metrics_of({"test": evaluation}, splits)["test"]
        report |= {"queries": len(splits.judged), "max_loss": max_loss}
        report |= {"least_cosine": _least_cosine(encoder, new, splits.test)}
        report |= {"mib": {"before": _mib(run.folder / "model"), "after": _mib(folder)}, "versions": _versions(name)}
        _refuse_loss(report)
        _finish(run, folder, report, settings)
        folder.rename(out)
    return f"{table(report)}\n\n{out}: {_what_it_may_search(report)}"


def _scores(run: Finished, encoder: Encoder, test: RetrievalSet) -> Evaluation:
    evaluators = [build(node, allowed=run.config["allowed_packages"]) for node in run.config["evaluator"].values()]
    return evaluate(evaluators, Dense(encoder), test, **EVALUATION_NEGATIVES)


def _write(run: Finished, model: EmbeddingModel, name: str, folder: Path) -> dict[str, Any]:
    """Write and stamp; returns what the stamp says beside the digests."""
    longest = getattr(model.model, "max_seq_length", None)
    settings = {
        "dimensions": model.model.get_embedding_dimension(),
        "max_seq_length": longest if longest is not None and math.isfinite(longest) else None,
        "prompts": {"query": model.query_prompt, "passage": model.passage_prompt},
        "run": run.folder.name,
        "format": name,
        **({"routed": True} if model.facts.routed else {}),
    }
    WRITERS[name](model, folder)
    stamp.write(folder, **settings)
    return settings


class _Served:
    """Stands for a sentence-transformers model in an Encoder; a runtime embeds."""

    training, device, transformers_model = False, torch.device("cpu"), None

    def __init__(self, runtime: runtimes.Runtime) -> None:
        self._runtime = runtime

    def __call__(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = {name: tensor.numpy() for name, tensor in features.items()}
        return {"sentence_embedding": torch.from_numpy(self._runtime.run(tokens))}

    def preprocess(self, texts: Sequence[str], *, prompt: str | None) -> dict[str, torch.Tensor]:
        """Token ids of texts behind a prompt."""
        tokens = self._runtime.tokens([f"{prompt or ''}{text}" for text in texts])
        return {name: torch.from_numpy(array) for name, array in tokens.items()}

    def get_embedding_dimension(self) -> int:
        """How long an embedding is."""
        return self._runtime.dimensions

    def train(self, mode: bool = True) -> None:
        """There is nothing to switch."""

    eval = train


def _loaded(folder: Path, name: str, original: EmbeddingModel) -> EmbeddingModel:
    """The export as whoever serves it loads it."""
    if FORMATS[name].graph is None:
        return _half(Transformer(path=str(folder), dtype="float32").load([]))
    served: Any = _Served(runtimes.load(folder))
    prompts = original.query_prompt, original.passage_prompt
    return EmbeddingModel(lambda: served, original.facts, *prompts, False, False, {})


def _half(model: EmbeddingModel) -> EmbeddingModel:
    """In half precision on a GPU; a CPU is slow at it and computes in float32 with the halved weights."""
    if model.model.device.type != "cpu":
        model.model.half()
    return model


def _milliseconds(before: EmbeddingModel, after: EmbeddingModel, test: RetrievalSet) -> dict[str, float]:
    """The median time to embed one question, in turns, since a machine's speed changes from minute to minute."""
    encoders = {"before": Encoder(before), "after": Encoder(after)}
    seconds: dict[str, list[float]] = {when: [] for when in encoders}
    for text in list(test.queries.values())[:TIMED]:
        for when, encoder in encoders.items():
            start = time.perf_counter()
            encoder.queries([text])
            seconds[when].append(time.perf_counter() - start)
    return {when: round(1000 * float(np.median(each)), 2) for when, each in seconds.items()}


def _least_cosine(before: Encoder, after: Encoder, test: RetrievalSet) -> float:
    """Between the two vectors of the text that changed most."""
    queries, passages = list(test.queries.values()), list(test.corpus.values())
    cosines = [
        np.einsum("ij,ij->i", before.queries(queries), after.queries(queries)),
        np.einsum("ij,ij->i", before.passages(passages), after.passages(passages)),
    ]
    return round(float(min(part.min() for part in cosines)), 6)


def _mib(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / MIB, 1)


def _versions(name: str) -> dict[str, str]:
    """Of the packages that were installed, by their own names: onnxruntime may come from onnxruntime-gpu."""
    installed = importlib.metadata.packages_distributions()
    packages = [own for module in ("torch", *FORMATS[name].needs) for own in installed.get(module, ())]
    return {package: importlib.metadata.version(package) for package in packages}


def _refuse_loss(report: Mapping[str, Any]) -> None:
    metric, name = report["metric"], report["format"]
    lost = report["before"][metric] - report["after"][metric]
    if lost > report["max_loss"]:
        gentler = "format=onnx loses less, and " if name == "onnx_int8" else ""
        raise UserError(
            f"format={name} loses {lost:.3f} {metric} on test, more than max_loss={report['max_loss']}, and is not "
            f"kept:\n\n{table(report)}\n\n{gentler}max_loss={math.ceil(100 * lost) / 100:.2f} keeps this one"
        )


def _finish(run: Finished, folder: Path, report: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Put the scores, the card and the last word of the stamp beside the export."""
    same = [hashes(run.folder / "model")["content"]] if report["least_cosine"] >= SAME_VECTORS else []
    stamp.write(folder, **settings, same_vectors_as=same)
    write_whole(folder / EXPORT, json.dumps(report, indent=2) + "\n")
    card = run.folder / "model" / "README.md"
    if card.is_file():
        head, mark, rest = card.read_text(encoding="utf-8").partition("\n## ")
        about = f"This is an export ({report['format']}); the scores below are the original's.\n\n{table(report)}"
        (folder / "README.md").write_text(f"{head}\n## Export\n\n{about}\n{mark}{rest}", encoding="utf-8")


def table(report: Mapping[str, Any]) -> str:
    """Scores on test before and after with the delta's interval, and size and time, as Markdown."""
    metric = report["metric"]
    lines = []
    for name in dict.fromkeys([metric, *HEADLINE]):
        if name in report["after"]:
            delta = report["delta"][name]
            interval = f"{delta['ci_low']:+.3f} to {delta['ci_high']:+.3f}"
            scores = [number(report[when][name]) for when in ("before", "after")]
            lines.append([name, *scores, f"{delta['absolute']:+.3f}", interval])
    lines.append(["MiB", *(f"{report['mib'][when]:.1f}" for when in ("before", "after")), "", ""])
    times = report["milliseconds_a_query"]
    lines.append(["ms a question", *(f"{times[when]:.1f}" for when in ("before", "after")), "", ""])
    shown = aligned(["test", "before", report["format"], "delta", "95 % interval"], lines)
    changed = f"the text that changed most: cosine {report['least_cosine']:.4f}"
    return f"{shown}\n\n{report['queries']:,} test queries; {changed}."


def _what_it_may_search(report: Mapping[str, Any]) -> str:
    if report["least_cosine"] >= SAME_VECTORS:
        return "its vectors are the model's, so that an index of the model needs no new embeddings"
    return "its vectors are not the model's: embed all passages with it for an index of its own"
