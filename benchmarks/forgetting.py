"""What tuning on one data set costs on another, and what mixing base and tuned weights repairs of it.

MiniLM is tuned on docstrings with DATA as the guard set, and the other way round. Each is trained once; the lines go on
from the same checkpoints. The peer scores what was saved: sentence-transformers' InformationRetrievalEvaluator, on the
guard set's test.

Usage: python benchmarks/forgetting.py [--data DATA] [--seed N] [--quick]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.adapters import data_words
from benchmarks.measuring import DATA_HELP, DOCSTRINGS, data_at, name_of, table

OTHER = f"{DOCSTRINGS}:torch"  # where there is no copy of PubMedQA
KEPT = {
    "all of it": ["merge=null"],
    "chosen on dev": ["merge=true"],
    "chosen on dev, max_forgetting=0": ["merge=true", "max_forgetting=0"],
}
HEAD = ["change kept", "share", "dev", "guard's dev", "test (95 %)", "guard's test (95 %)", "the peer's guard's test"]


def guarded_by(data: str) -> list[str]:
    """How Hydra is told of the guard set."""
    return [
        word.replace("dataset=", "dataset@guard_dataset=").replace("dataset.", "guard_dataset.")
        for word in data_words(data)
    ]


def goes_on(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """The result of a run in the folder, which goes on from the checkpoints there."""
    from hydra import compose, initialize_config_dir

    from embexp.checks import CONFIG_FOLDER, plain
    from embexp.run import run

    (folder / "result.json").unlink(missing_ok=True)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = plain(compose("config", [*words, "logger=none", "keep_checkpoints=true"]))
    names = {"loss": "mnrl", "model": "any", "dataset": "any"}
    return run(config, names=names, folder=folder, resume=(folder / "metrics.jsonl").exists())


def of_peer(model: Path, guard: Mapping[str, Any], metric: str) -> float:
    """What the library's own evaluator finds for a saved model on the test of the guard set of this config."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    from embexp.components import build

    test = build(guard, allowed=[]).test
    measure, k = metric.split("@")
    evaluator = InformationRetrievalEvaluator(
        dict(test.queries), dict(test.corpus), {query: set(test.relevant(query)) for query in test.queries},
        accuracy_at_k=[int(k)], precision_recall_at_k=[int(k)], mrr_at_k=[int(k)], ndcg_at_k=[int(k)],
        map_at_k=[int(k)], write_csv=False,
    )  # fmt: skip
    return float(evaluator(SentenceTransformer(str(model)))[f"cosine_{measure}@{k}"])


def changed(metrics: Mapping[str, float], delta: Mapping[str, Any]) -> str:
    """A score, and how it differs from the base's."""
    change = f"{delta['absolute']:+.3f} ({delta['ci_low']:+.3f} to {delta['ci_high']:+.3f})"
    return f"{metrics[delta['metric']]:.3f}, {change}"


def line(name: str, result: Mapping[str, Any], peer: float) -> list[str]:
    """A line of the table."""
    metric, guard = result["metric"], result["forgetting"]
    found = [
        changed(arm["test"], {**delta[metric], "metric": metric})
        for arm, delta in ((result["tuned"], result["delta"]), (guard["tuned"], guard["delta"]))
    ]
    share = result["merge"]["chosen"] if result["merge"] else 1
    on_dev = [f"{arm['dev'][metric]:.3f}" for arm in (result["tuned"], guard["tuned"])]
    return [name, f"{share:g}", *on_dev, *found, f"{peer:.3f}"]


def base_line(result: Mapping[str, Any]) -> list[str]:
    """The line of the base model."""
    metric, arms = result["metric"], (result["base"], result["forgetting"]["base"])
    return ["none (base)", "0", *(f"{arm[side][metric]:.3f}" for side in ("dev", "test") for arm in arms), ""]


def report(title: str, data: Sequence[str], words: Sequence[str]) -> None:
    """Train once, merge in each way, and print the table."""
    from embexp.merging import SHARES

    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, merging in KEPT.items():
            run = Path(folder, "run")
            run.mkdir(exist_ok=True)
            result = goes_on([*data, *words, *merging], run)
            print(f"{title}: {name} done", file=sys.stderr, flush=True)
            lines += [] if lines else [base_line(result)]
            lines.append(
                line(name, result, of_peer(run / "model", result["config"]["guard_dataset"], result["metric"]))
            )
            shutil.rmtree(run / "model")
    metric, guard, counts = result["metric"], result["forgetting"]["queries"], result["counts"]["queries"]
    print(
        f"{title}: {metric}, {counts['dev']} questions of dev and {counts['test']} of test, {guard['dev']} and "
        f"{guard['test']} of the guard set's; shares {', '.join(f'{share:g}' for share in SHARES)}; differences from "
        "the base.\n"
    )
    print(table(HEAD, lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=data_at, default=OTHER, help=f"{DATA_HELP} ({OTHER})")
    parser.add_argument("--seed", type=int, default=0, help="of training (0)")
    parser.add_argument("--quick", action="store_true", help="a model of 32 dimensions and few questions")
    options = parser.parse_args()
    if not options.quick:
        other = OTHER if options.data == DOCSTRINGS else options.data
        for data, guard in ((DOCSTRINGS, other), (other, DOCSTRINGS)):
            chosen = [*data_words(data), *guarded_by(guard)]
            report(f"tuned on {name_of(data)}, guarded by {name_of(guard)}", chosen, [f"seed={options.seed}"])
        return
    from tests.tiny import tiny_transformer

    with tempfile.TemporaryDirectory() as folder:
        model = str(tiny_transformer(Path(folder, "tiny")))
        small = ["paraphrase=null", "trainer.num_train_epochs=2", "model=local", f"model.path={model}"]
        chosen = [
            "dataset.packages=[json,logging,email]",
            "dataset@guard_dataset=docstrings",
            "guard_dataset.packages=[xml,http]",
        ]
        report("tuned on docstrings of three packages, guarded by two", chosen, small)


if __name__ == "__main__":
    main()
