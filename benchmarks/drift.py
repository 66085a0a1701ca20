"""How many planted shifts does drift find, and how often does it cry wolf? With other tests on the same documents.

    python benchmarks/drift.py [--data FOLDER_OF_PUBMEDQA] [--seeds 200]

A seed draws a subject (a package of the standard library; a MeSH term of PubMedQA-L), and documents of other subjects
as what a run knew. New documents are then of the subject (a planted shift), half of it, or of other subjects too (no
shift). Texts are embedded once with MiniLM and kept in the cache; a seed takes a part of a second. Where frouros is
installed, one of its tests is timed beside embexp's on the same passages.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, rankdata

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import DOCSTRINGS, data_at, name_of, source_of, splits_of, table
from embexp import cache
from embexp.config.checks import CONFIG_FOLDER
from embexp.data.retrieval_set import RetrievalSet
from embexp.drift import shift
from embexp.drift.two_sample import kernel_of, tested
from embexp.encoding.encoder import Encoder
from embexp.evaluation.evaluators import graded
from embexp.evaluation.metrics import recall
from embexp.evaluation.search import nearest
from embexp.evaluation.significance import difference_of_means

KNOWN = 150  # documents that the run knew, held out of training
RIDGE = 1.0  # of the classifier, the best of 0.03 to 3 in pure shifts
FEWEST, MOST = {DOCSTRINGS: 4, "PubMedQA-L": 15}, 100  # documents of a subject
SCENARIOS = {  # new documents -> how many, the share of them that is of the subject, passages of each at most
    "20, all of one subject": (20, 1.0, None),
    "10, all of one subject": (10, 1.0, None),
    "20, half of one subject": (20, 0.5, None),
    "20, one passage each": (20, 1.0, 1),
}
# MeSH's branch Epidemiologic Methods (E05.318), and Epidemiologic Factors: how a study was made, not on what
METHODS = {
    "Age Factors", "Analysis of Variance", "Case-Control Studies", "Chi-Square Distribution", "Cohort Studies",
    "Cross-Sectional Studies", "Disease-Free Survival", "Double-Blind Method", "Feasibility Studies",
    "Follow-Up Studies", "Health Care Surveys", "Incidence", "Linear Models", "Logistic Models",
    "Longitudinal Studies", "Multivariate Analysis", "Odds Ratio", "Predictive Value of Tests", "Prevalence",
    "Probability", "Proportional Hazards Models", "Prospective Studies", "ROC Curve", "Registries",
    "Regression Analysis", "Reproducibility of Results", "Retrospective Studies", "Risk Assessment", "Risk Factors",
    "Sensitivity and Specificity", "Severity of Illness Index", "Sex Factors", "Statistics, Nonparametric",
    "Surveys and Questionnaires", "Survival Analysis", "Survival Rate",
}  # fmt: skip
ARMS = ["verdict", "embeddings", "recall", "by passages", "each passage", "classifier"]


@dataclass(frozen=True)
class World:
    """Documents with their passages' embeddings, what recall@10 is of the questions on each, and subjects."""

    name: str
    rows: np.ndarray
    passages: Mapping[str, Sequence[str]]  # document -> passage ids
    row_of: Mapping[str, int]
    recalls: Mapping[str, np.ndarray]
    subjects: Mapping[str, Sequence[str]]

    def passages_of(self, ids: Sequence[str]) -> np.ndarray:
        """As an encoder would give them: here a passage's text is its id."""
        return self.rows[[self.row_of[key] for key in ids]]


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=data_at, default=DOCSTRINGS, help="also a copy of PubMedQA")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--model", default="minilm", help="or a model's folder")
    parser.add_argument("--quick", action="store_true", help="few seeds, for a test")
    options = parser.parse_args()
    seeds = 3 if options.quick else options.seeds
    settings = {**_settings(), "permutations": 99 if options.quick else 499}
    worlds = worlds_of(options.data, options.model)
    found: dict[tuple[str, str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for world in worlds:
        for scenario in SCENARIOS:
            for seed in range(seeds):
                for kind, alarms in one(world, scenario, seed, settings).items():
                    for arm, alarm in alarms.items():
                        found[kind, world.name, scenario][arm].append(alarm)
            print(f"{world.name}: {scenario} done, {time.ctime()}", file=sys.stderr, flush=True)
    print(
        f"{seeds} seeds; alarms at p <= {settings['p_value']} in percent, with Wilson's 95 % interval. The verdict is "
        "not ok where the embeddings or recall@10 (of the data's own questions, searched by MiniLM) differ. Beside "
        "it: the same test with each passage weighing alike, with each passage permuted for itself (what general "
        f"detectors do), and a classifier's AUC, all against {KNOWN} known documents."
    )
    for kind, title in (("shift", "planted shift found"), ("none", "false alarm, no shift")):
        rows = [
            [f"{name}: {scenario}", *(share(alarms[arm]) for arm in ARMS)]
            for (told, name, scenario), alarms in found.items()
            if told == kind
        ]
        print(f"\n{table([title, *ARMS], rows)}")
    print(f"\n{beside_frouros(worlds[0], settings)}")


def _settings() -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "drift.yaml").shift)  # type: ignore[return-value]


def share(alarms: Sequence[bool]) -> str:
    """The share in percent, with Wilson's interval; a dash where nothing was judged."""
    if not alarms:
        return "-"
    interval = binomtest(sum(alarms), len(alarms)).proportion_ci(method="wilson")
    return f"{100 * np.mean(alarms):.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


# --- worlds -----------------------------------------------------------------------------------------------------------


def worlds_of(data: str, model: str) -> list[World]:
    """Docstrings, and PubMedQA-L by subject and by method where a copy is given."""
    loaded = source_of(model).load([])
    encoder = Encoder(loaded, progress="embedding", content=loaded.origin["content"])
    found = [_world(DOCSTRINGS, splits_of(DOCSTRINGS), encoder, {})]
    if not data.startswith(DOCSTRINGS):
        terms = _terms(Path(data))
        splits = splits_of(data)
        found.append(_world(name_of(data), splits, encoder, {key: each - METHODS for key, each in terms.items()}))
        only = {key: each & METHODS for key, each in terms.items()}
        found.append(_world(f"{name_of(data)}, by method", splits, encoder, only))
    return found


def _world(name: str, splits: Any, encoder: Encoder, terms: Mapping[str, set[str]]) -> World:
    sides = (splits.train, splits.dev, splits.test)
    corpus, documents = splits.test.corpus, splits.test.documents
    queries = {key: text for side in sides for key, text in side.queries.items()}
    qrels = {key: grades for side in sides for key, grades in side.qrels.items()}
    data = RetrievalSet(queries, corpus, qrels, documents)
    with cache.kept_in(cache.default_folder()):
        rows, asked = encoder.passages(list(corpus.values())), encoder.queries(list(queries.values()))
    values = recall(graded(nearest(data, asked, rows, top=10), qrels, list(queries), ranks=10), 10)
    by_document: dict[str, list[float]] = defaultdict(list)
    for query, value in zip(queries, values.tolist(), strict=True):
        by_document[data.document_of(query)].append(value)
    passages: dict[str, list[str]] = defaultdict(list)
    for key in corpus:
        passages[documents[key]].append(key)
    subjects: dict[str, list[str]] = defaultdict(list)
    for document in passages:
        for term in terms.get(document, () if terms else {document.split(".")[0]}):
            subjects[term].append(document)
    fewest = FEWEST[name.split(",")[0]]
    kept = {term: each for term, each in sorted(subjects.items()) if fewest <= len(each) <= MOST}
    row_of = {key: row for row, key in enumerate(corpus)}
    return World(name, rows, passages, row_of, {key: np.array(each) for key, each in by_document.items()}, kept)


def _terms(folder: Path) -> dict[str, set[str]]:
    import pyarrow.parquet

    rows = [
        row
        for part in sorted((folder / "pqa_labeled").glob("*.parquet"))
        for row in pyarrow.parquet.read_table(part, columns=["pubid", "context"]).to_pylist()
    ]
    return {str(row["pubid"]): set(row["context"]["meshes"]) for row in rows}


# --- a seed -----------------------------------------------------------------------------------------------------------


def one(world: World, scenario: str, seed: int, settings: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    """Whether each arm alarms, with the planted shift and without."""
    rng = np.random.default_rng([seed, len(scenario)])
    count, part, most = SCENARIOS[scenario]
    subject = str(rng.choice(list(world.subjects)))
    inside = [str(name) for name in rng.permutation(world.subjects[subject])]
    others = [str(name) for name in rng.permutation(sorted(world.passages.keys() - set(inside)))]
    count = min(count, len(inside))
    known, spare = others[:KNOWN], others[KNOWN:]
    of_subject = max(1, round(count * part))
    found = {}
    for kind, new in (("shift", [*inside[:of_subject], *spare[: count - of_subject]]), ("none", spare[:count])):
        groups = {name: [str(key) for key in rng.permutation(world.passages[name])[:most]] for name in new}
        found[kind] = alarms(world, groups, {name: world.passages[name] for name in known}, settings, seed)
    return found


def alarms(
    world: World, new: shift.Groups, known: shift.Groups, settings: Mapping[str, Any], seed: int
) -> dict[str, bool]:
    """Arm -> whether it alarms; without the arms that judge nothing here."""

    class Ready:
        passages = staticmethod(world.passages_of)

    texts = {key: key for groups in (new, known) for keys in groups.values() for key in keys}
    level = settings["p_value"]
    sides = shift.Sides(new, known, alike=True)
    own = shift.of_passages(sides, texts, Ready, settings=settings, seed=seed)  # type: ignore[arg-type]
    found = {"embeddings": own is not None and own.tested.p_value <= level}
    fresh, before = ([world.recalls[name] for name in side if name in world.recalls] for side in (new, known))
    if min(len(fresh), len(before)) >= 20:  # as the verdict: recall.least_documents
        places = [np.repeat(np.arange(len(side)), [len(each) for each in side]) for side in (fresh, before)]
        gap = difference_of_means(np.concatenate(fresh), places[0], np.concatenate(before), places[1])
        found["recall"] = gap.ci_high < 0
    found["verdict"] = found["embeddings"] or found.get("recall", False)
    return found | others_on(world, new, known, settings, seed)


def others_on(
    world: World, new: shift.Groups, known: shift.Groups, settings: Mapping[str, Any], seed: int
) -> dict[str, bool]:
    """The other tests, on the first passages of the same documents."""
    groups = [keys[: settings["passages"]] for side in (new, known) for keys in side.values()]
    rows = world.passages_of([key for keys in groups for key in keys])
    sizes = np.array([len(keys) for keys in groups])
    of = np.repeat(np.arange(len(groups)), sizes)
    is_new = np.arange(len(groups)) < len(new)
    options = {"permutations": settings["permutations"], "seed": seed}
    each = kernel_of(rows, np.arange(len(rows)))
    by_document = kernel_of(rows, of)
    p_values = {
        "by passages": weighed(by_document * np.outer(sizes, sizes), sizes, is_new, **options),
        "each passage": tested(each, is_new[of], **options).p_value,
        "classifier": classified(by_document, is_new, **options),
    }
    return {arm: p_value <= settings["p_value"] for arm, p_value in p_values.items()}


def weighed(sums: np.ndarray, sizes: np.ndarray, is_new: np.ndarray, *, permutations: int, seed: int) -> float:
    """The p-value of the biased discrepancy of passages, labels permuted over documents."""
    labels = _labels(is_new, permutations, seed)
    weights = labels * sizes / (labels @ sizes)[:, None] - (1 - labels) * sizes / ((1 - labels) @ sizes)[:, None]
    part = weights / sizes
    return _p_value(((part @ sums) * part).sum(axis=1))


def classified(kernel: np.ndarray, is_new: np.ndarray, *, permutations: int, seed: int) -> float:
    """The p-value of a kernel ridge classifier's AUC on documents that it was not fitted on, each left out in turn."""
    hat = kernel @ np.linalg.inv(kernel + RIDGE * np.eye(len(kernel)))
    labels = _labels(is_new, permutations, seed)
    new = is_new.sum()
    target = np.where(labels > 0, 1 / new, -1 / (len(is_new) - new))
    left_out = (target @ hat - target * np.diag(hat)) / (1 - np.diag(hat))
    return _p_value((rankdata(left_out, axis=1) * labels).sum(axis=1))


def _labels(is_new: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """The labels as they are, and permuted."""
    drawn = np.random.default_rng(seed).permuted(np.tile(is_new.astype(float), (permutations, 1)), axis=1)
    return np.vstack([is_new.astype(float), drawn])


def _p_value(statistics: np.ndarray) -> float:
    return float((statistics >= statistics[0] - 1e-12).mean())


# --- a library --------------------------------------------------------------------------------------------------------


def beside_frouros(world: World, settings: Mapping[str, Any]) -> str:
    """One test of each on the same passages, in pairs; the library's own bandwidth is the kernel's here."""
    if find_spec("frouros") is None:
        return "frouros is not installed, so its test is not timed here."
    from frouros.callbacks.batch import PermutationTestDistanceBased
    from frouros.detectors.data_drift import MMD
    from frouros.utils.kernels import rbf_kernel

    known, new = world.rows[:200], world.rows[-50:]
    rows, is_new = np.concatenate([new, known]), np.arange(250) < 50
    seconds: dict[str, list[float]] = {"embexp": [], "frouros": []}
    for _ in range(2):
        start = time.perf_counter()
        tested(kernel_of(rows, np.arange(250)), is_new, permutations=99, seed=0)
        seconds["embexp"].append(time.perf_counter() - start)
        start = time.perf_counter()
        callback = PermutationTestDistanceBased(num_permutations=99, random_state=0, num_jobs=1, method="conservative")
        detector = MMD(kernel=partial(rbf_kernel, sigma=0.9), callbacks=[callback])
        detector.fit(X=known)
        detector.compare(X=new)
        seconds["frouros"].append(time.perf_counter() - start)
    pairs = ", ".join(f"{one:.3f} and {two:.2f} s" for one, two in zip(*seconds.values(), strict=True))
    return f"A test of 250 passages with 99 permutations takes embexp and frouros, in pairs: {pairs}."


if __name__ == "__main__":
    main()
