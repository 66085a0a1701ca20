"""What tuning on one data set costs on another, and what mixing base and tuned weights repairs of it.

MiniLM is tuned on docstrings with DATA as the guard set, and the other way round. Each share of the weights' change is
scored on both, and the lines say which share a run would keep. The peer scores the one that dev likes best:
sentence-transformers' InformationRetrievalEvaluator, on the guard set's test.

Usage: python benchmarks/forgetting.py [--data DATA] [--seed N] [--limit N] [--quick]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.adapters import data_words
from benchmarks.measuring import DATA_HELP, DOCSTRINGS, data_at, name_of, run_of, table

OTHER = f"{DOCSTRINGS}:torch"  # where there is no copy of PubMedQA
METRIC = "recall@10"
LOSSES = (None, 0.02, 0.01, 0.0)  # max_forgetting
HEAD = ["share", "dev", "guard's dev", "test (95 %)", "guard's test (95 %)", "kept by"]
SIDES = [(of, side) for side in ("dev", "test") for of in ("data", "guard")]


@dataclass(frozen=True)
class Measured:
    """A share's scores by data set (data, guard) and side."""

    share: float
    scores: Mapping[tuple[str, str], Any]

    def on(self, of: str, side: str) -> float:
        """The metric."""
        return float(self.scores[of, side].score)


def peer(model: Any, test: Any) -> float:
    """What the library's own evaluator finds for a model on a test set."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    measure, k = METRIC.split("@")
    evaluator = InformationRetrievalEvaluator(
        dict(test.queries), dict(test.corpus), {query: set(test.relevant(query)) for query in test.queries},
        accuracy_at_k=[int(k)], precision_recall_at_k=[int(k)], mrr_at_k=[int(k)], ndcg_at_k=[int(k)],
        map_at_k=[int(k)], write_csv=False,
    )  # fmt: skip
    return float(evaluator(model)[f"cosine_{measure}@{k}"])


def kept_share(found: Sequence[Measured], *, max_forgetting: float | None) -> float:
    """The share that a run with merge=true and this max_forgetting keeps."""
    from embexp.forgetting.merging import Scored, better

    scores = {one.share: Scored(one.on("data", "dev"), one.on("guard", "dev")) for one in found}
    at_least = (
        None if max_forgetting is None else next(iter(scores.values())).guard - max_forgetting
    )  # found[0] is base
    best = found[0].share
    for one in found[1:]:
        best = one.share if better(one.share, best, scores, guard_at_least=at_least) else best
    return best


def line(one: Measured, base: Measured, sets: Mapping[str, Any], kept: Mapping[float | None, float]) -> list[str]:
    """A line of the table."""
    from embexp.evaluation.significance import compare

    cells = [f"{one.share:g}", *(f"{one.on(of, 'dev'):.3f}" for of in ("data", "guard"))]
    for of in ("data", "guard"):
        test = sets[of].test
        document_of = {query: test.document_of(query) for query in test.queries}
        before, after = ({METRIC: each.scores[of, "test"]} for each in (base, one))
        delta = compare(before, after, document_of=document_of)[METRIC]
        change = f", {delta.absolute:+.3f} ({delta.ci_low:+.3f} to {delta.ci_high:+.3f})" if one.share else ""
        cells.append(f"{one.on(of, 'test'):.3f}{change}")
    by = [
        "merge=true" if most is None else f"max_forgetting={most:g}"
        for most, share in kept.items()
        if share == one.share
    ]
    return [*cells, ", ".join(by)]


def report(title: str, words: Sequence[str], guard_words: Sequence[str]) -> None:
    """Train once, score every share, and print the table."""
    from embexp.config.components import build
    from embexp.evaluation.evaluators import Retrieval
    from embexp.evaluation.search import Dense
    from embexp.experiment import splits_of
    from embexp.forgetting.merging import SHARES, Mixture, weights_of
    from embexp.models.embedding_model import Transformer

    with tempfile.TemporaryDirectory() as folder:
        result = run_of(words, Path(folder))
        config = result["config"]
        model = build(config["model"], allowed=[], without=["kind"]).load([])
        before = weights_of(model)
        model.model.load_state_dict(Transformer(path=str(Path(folder, "model"))).load([]).model.state_dict())
    print(f"{title}: trained", file=sys.stderr, flush=True)
    sets = {"data": splits_of(config), "guard": splits_of(config_of([*guard_words, "trainer=none"]))}
    score = partial(Retrieval(k_values=[int(METRIC.split("@")[1])]), negatives=None, seed=0)
    mixture = Mixture(model, before)
    found = []
    for share in SHARES:
        arm = Dense(mixture.encoder(share))
        scored = {(of, side): score(arm, getattr(sets[of], side)).scores[METRIC] for of, side in SIDES}
        found.append(Measured(share, scored))
        print(f"{title}: {share:g} of the change scored", file=sys.stderr, flush=True)
    kept = {most: kept_share(found, max_forgetting=most) for most in LOSSES}
    others = peer(mixture.take(kept[None]).model, sets["guard"].test)
    counts = {place: len(getattr(sets[place[0]], place[1]).queries) for place in SIDES}
    print(
        f"{title}: {METRIC} of each share of the weights' change; {counts['data', 'dev']} questions of dev and "
        f"{counts['data', 'test']} of test, {counts['guard', 'dev']} and {counts['guard', 'test']} of the guard set's; "
        "differences from the base. For the share that merge=true keeps sentence-transformers finds "
        f"{others:.3f} on the guard set's test.\n\n{table(HEAD, [line(one, found[0], sets, kept) for one in found])}\n"
    )


def config_of(words: Sequence[str]) -> dict[str, Any]:
    """The config that these words compose."""
    from hydra import compose, initialize_config_dir

    from embexp.config.checks import CONFIG_FOLDER, plain

    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return plain(compose("config", list(words)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=data_at, default=OTHER, help=f"{DATA_HELP} ({OTHER})")
    parser.add_argument("--seed", type=int, default=0, help="of training (0)")
    parser.add_argument("--limit", type=int, help="questions a split, for a small try (all)")
    parser.add_argument("--quick", action="store_true", help="a model of 32 dimensions and few questions")
    options = parser.parse_args()
    limit = f"limit={options.limit or 'null'}"
    if not options.quick:
        other = OTHER if options.data == DOCSTRINGS else options.data
        for data, guard in ((DOCSTRINGS, other), (other, DOCSTRINGS)):
            title = f"tuned on {name_of(data)}, guarded by {name_of(guard)}"
            report(title, [*data_words(data), f"seed={options.seed}", limit], [*data_words(guard), limit])
        return
    from tests.tiny import tiny_transformer

    with tempfile.TemporaryDirectory() as folder:
        model = str(tiny_transformer(Path(folder, "tiny")))
        small = ["paraphrase=null", "trainer.num_train_epochs=2", "trainer.learning_rate=1e-3", f"model.path={model}"]
        words = ["dataset.packages=[json,logging,email]", "model=local", *small, limit]
        report("tuned on docstrings of three packages, guarded by two", words, ["dataset.packages=[xml,http]", limit])


if __name__ == "__main__":
    main()
