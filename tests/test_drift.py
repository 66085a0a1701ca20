"""Drift since a run: what is new, whether it lies elsewhere, whether it is found, and what is said of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embexp.data import manifest
from embexp.data.manifest import Manifest, digest_of
from embexp.drift import cli, questions, shift, today, two_sample
from embexp.drift.differences import Differences, between
from embexp.drift.recall import Recalled
from embexp.drift.shift import Shift
from embexp.drift.verdict import Found, verdict
from embexp.errors import UserError
from embexp.evaluation.significance import Difference, difference_of_means, interval_of_mean
from embexp.results.finished import opened
from tests.command import QUICK
from tests.handbook import TOPICS, write_handbook
from tests.mine_server import Reply, Stub, error, good, items
from tests.tiny import tiny_transformer

REPOSITORY = Path(__file__).parent.parent
ANIMALS = ["zebras", "yaks", "wolves", "tigers", "rabbits", "otters"]


def known(**texts):
    """A manifest of documents d0, d1 ... with a passage each; the first is trained on."""
    documents = {key: f"d{place}" for place, key in enumerate(texts)}
    return Manifest({key: digest_of(text) for key, text in texts.items()}, documents, frozenset({"d0"}), None)


# --- what is new ------------------------------------------------------------------------------------------------------


def test_passages_are_added_changed_kept_or_removed_by_id_and_text():
    before = known(a="one", b="two", c="three", d="four")
    found = between(before, {"a": "one", "b": "two, changed", "e": "five"}, {"a": "d0", "b": "d1", "e": "d9"})
    assert (found.added, found.changed, found.kept, found.removed) == (("e",), ("b",), ("a",), ("c", "d"))
    assert (found.new_documents, found.changed_documents, found.same_documents) == (("d9",), ("d1",), ("d0",))
    assert found.removed_documents == ("d2", "d3")
    assert found.share == 2 / 3
    assert found.counts["passages"] == {"added": 1, "changed": 1, "removed": 2, "kept": 1}


def test_a_document_that_lost_a_passage_is_changed_and_one_with_a_new_name_is_neither_new_nor_removed():
    before = Manifest({"a": digest_of("x"), "b": digest_of("y")}, {"a": "d", "b": "d"}, frozenset(), None)
    assert between(before, {"a": "x"}, {"a": "d"}).changed_documents == ("d",)
    renamed = between(before, {"a": "x", "b": "y"}, {"a": "e", "b": "e"})
    assert (renamed.new_documents, renamed.removed_documents, renamed.same_documents) == ((), (), ("e",))


def test_a_manifest_comes_back_as_it_was_written_and_holds_no_text(tmp_path):
    made = replace(known(a="a secret text", b="another"), mining={"chunker": {"tokens": 200}})
    manifest.write(made, tmp_path)
    assert manifest.read(tmp_path) == made
    assert b"secret" not in (tmp_path / manifest.NAME).read_bytes()


def test_a_manifest_of_many_passages_is_small(tmp_path):
    digests = {f"{digest_of(str(place)):016x}": place for place in range(100_000)}
    manifest.write(
        Manifest(digests, {key: f"file{digests[key] // 10}.md" for key in digests}, frozenset(), None), tmp_path
    )
    assert (tmp_path / manifest.NAME).stat().st_size < 35 * len(digests)


def test_a_run_without_a_manifest_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"has no passages\.parquet.*Run it again"):
        manifest.read(tmp_path)


# --- the test of embeddings -------------------------------------------------------------------------------------------


def points(*angles):
    return np.array([[np.cos(angle), np.sin(angle)] for angle in angles], dtype=np.float32)


def test_the_kernel_of_two_documents_is_the_mean_over_their_passages():
    # unit vectors at 0, 60, 90 and 180 degrees: squared distances 1, 2, 4, 2-sqrt(3), 3, 2, whose median is 2
    kernel = two_sample.kernel_of(points(0, np.pi / 3, np.pi / 2, np.pi), np.array([0, 0, 1, 2]))
    assert kernel[1, 2] == pytest.approx(np.exp(-1), abs=1e-4)
    assert kernel[0, 1] == pytest.approx((np.exp(-1) + np.exp(-(2 - np.sqrt(3)) / 2)) / 2, abs=1e-4)
    assert kernel[0, 0] == pytest.approx((2 + 2 * np.exp(-0.5)) / 4, abs=1e-4)
    assert np.allclose(kernel, kernel.T)


def test_the_discrepancy_is_without_a_documents_kernel_with_itself():
    kernel = np.array([[1, 0.8, 0.1, 0.2], [0.8, 1, 0.3, 0.4], [0.1, 0.3, 1, 0.6], [0.2, 0.4, 0.6, 1]])
    found = two_sample.tested(kernel, np.array([True, True, False, False]), permutations=99, seed=0)
    assert found.statistic == pytest.approx(0.8 + 0.6 - 2 * (0.1 + 0.2 + 0.3 + 0.4) / 4)


def test_the_p_value_counts_permutations_as_far_apart():
    # of the 6 ways to label 2 of 4 documents 2 give this split, so p is near 1/3 and never 0
    kernel = np.array([[1, 0.9, 0, 0], [0.9, 1, 0, 0], [0, 0, 1, 0.9], [0, 0, 0.9, 1.0]])
    found = two_sample.tested(kernel, np.array([True, True, False, False]), permutations=5999, seed=0)
    assert found.p_value == pytest.approx(1 / 3, abs=0.02)
    assert found == two_sample.tested(kernel, np.array([True, True, False, False]), permutations=5999, seed=0)


def clustered(documents, each, shift, rng):
    """Documents whose passages lie around a place of their own, as the passages of real ones do."""
    places = rng.standard_normal((documents, 16)) + np.eye(16)[0] * shift
    rows = np.repeat(places, each, axis=0) + 0.3 * rng.standard_normal((documents * each, 16))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("moved", "least", "most"), [(0.0, 0.0, 0.11), (2.0, 0.9, 1.0)])
def test_a_shift_is_found_and_documents_that_are_alike_are_not_taken_for_one(moved, least, most):
    rng, found = np.random.default_rng(1), 0
    for seed in range(60):
        rows = np.concatenate([clustered(12, 8, moved, rng), clustered(40, 8, 0, rng)])
        kernel = two_sample.kernel_of(rows, np.repeat(np.arange(52), 8))
        found += two_sample.tested(kernel, np.arange(52) < 12, permutations=199, seed=seed).p_value <= 0.05
    assert least <= found / 60 <= most  # each passage for itself would call nearly all of them shifted


class Ready:
    """An encoder of passages that are ready."""

    def __init__(self, rows):
        self.rows = rows

    def passages(self, keys):
        return np.stack([self.rows[key] for key in keys])


def test_too_few_documents_are_not_tested_and_at_most_so_many_are_drawn():
    rng = np.random.default_rng(0)
    groups = {f"d{place}": [f"d{place}.{number}" for number in range(6)] for place in range(30)}
    rows = {key: row for keys in groups.values() for key, row in zip(keys, clustered(1, 6, 0, rng), strict=True)}
    settings = {"documents": 8, "passages": 2, "least_documents": 5, "permutations": 99}
    new, old = dict(list(groups.items())[:10]), dict(list(groups.items())[10:])
    texts = {key: key for key in rows}

    def of(new):
        return shift.of_passages(shift.Sides(new, old, True), texts, Ready(rows), settings=settings, seed=0)

    found = of(new)
    assert (found.new, found.known, len(found.unlike)) == (8, 8, 8)
    assert of(dict(list(new.items())[:4])) is None
    assert of({}) is None


def test_documents_are_compared_with_such_as_training_saw_as_little_or_as_much_of():
    # d0 to d5 were trained on, d6 to d11 held out; each has a passage that is as it was
    texts = {f"p{place}": "as it was" for place in range(12)}
    of = {key: f"d{key[1:]}" for key in texts}
    digests = {key: digest_of(text) for key, text in texts.items()}
    before = Manifest(digests, of, frozenset(f"d{place}" for place in range(6)), None)

    def sides(*changed, new=0, least=2, trained=True):
        more = {f"n{place}": "new" for place in range(new)}
        now = texts | dict.fromkeys(changed, "edited") | more
        units = of | {key: key.upper() for key in more}
        found = between(before, now, units)
        got = shift.sides_of(today.Today({}, units, {}), found, before, least=least, trained=trained)
        return set(got.new), set(got.known), got.alike, set(got.left_out)

    held_out, learnt = {f"d{place}" for place in range(6, 12)}, {f"d{place}" for place in range(6)}
    assert sides(new=2) == ({"N0", "N1"}, held_out, True, set())
    # three edited documents do not hide two new ones
    assert sides("p0", "p1", "p2", new=2) == ({"N0", "N1"}, held_out, True, {"d0", "d1", "d2"})
    assert sides("p0", "p1", "p6", new=1) == ({"N0", "d6"}, held_out - {"d6"}, True, {"d0", "d1"})
    few = ({"N0", "d0", "d1", "d6"}, {*held_out, *learnt} - {"d0", "d1", "d6"}, False, set())
    assert sides("p0", "p1", "p6", new=1, least=3) == few
    assert sides("p0", "p1", "p2", new=1) == ({"d0", "d1", "d2"}, {"d3", "d4", "d5"}, True, {"N0"})
    # recall: the questions on d3 to d5 are those that were learnt, so that these are no measure for the edited ones
    assert sides("p0", "p1", "p2", new=1, trained=False) == (
        {"N0", "d0", "d1", "d2"}, {*held_out, "d3", "d4", "d5"}, False, set()
    )  # fmt: skip
    # and where all that was learnt is edited, it is not like what was not
    assert sides(*(f"p{place}" for place in range(6)), new=1) == ({"N0", *learnt}, held_out, False, set())


# --- the interval of recall's difference ------------------------------------------------------------------------------


def test_the_interval_of_a_difference_is_welchs_over_documents():
    values, others = np.array([1.0, 1, 0, 0]), np.array([1.0, 1, 1, 0, 1, 1])
    found = difference_of_means(values, np.array([0, 0, 1, 1]), others, np.array([0, 0, 1, 1, 2, 2]))
    # sums of deviations by document: 1, -1 of 4; 1/3, -2/3, 1/3 of 6: variances 2*2/16 = 1/4, (6/9)*(3/2)/36 = 1/36
    freedom = (1 / 4 + 1 / 36) ** 2 / ((1 / 4) ** 2 / 1 + (1 / 36) ** 2 / 2)
    from scipy import stats

    half = stats.t.ppf(0.975, freedom) * np.sqrt(1 / 4 + 1 / 36)
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((-1 / 3, -1 / 3 - half, -1 / 3 + half))
    assert difference_of_means(values, np.zeros(4, int), others, np.arange(6)).ci_low == -np.inf
    assert interval_of_mean(values, np.array([0, 0, 1, 1]))[1] == pytest.approx(0.5 + stats.t.ppf(0.975, 1) / 2)


# --- the verdict ------------------------------------------------------------------------------------------------------

CONFIG = {"shift": {"p_value": 0.025}, "recall": {"drop": 0.05}, "share": {"watch": 0.2, "retrain": 0.5}}


def differences(*, fresh, kept=90, removed=0):
    keys = [
        tuple(f"{name}{place}" for place in range(count))
        for name, count in zip("nkr", (fresh, kept, removed), strict=True)
    ]
    return Differences(keys[0], (), keys[1], keys[2], (), (), (), ())


def shifted(p_value):
    return Shift(two_sample.Tested(0.1, p_value), 20, 100, True, {})


def recalled(low, high, *, enough=True):
    difference = Difference((low + high) / 2, low, high)
    counts = {"new": 30, "known": 90}
    return Recalled(10, 0.5, 0.5, difference, counts, counts, 1000, True, enough)


SAME = recalled(-0.05, 0.05)


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        (Found(differences(fresh=0), None, None, None), "ok", "No passage is new"),
        (Found(differences(fresh=10), shifted(0.5), None, SAME), "ok", "No shift was found"),
        (Found(differences(fresh=10), shifted(0.01), None, SAME), "watch", "lies elsewhere"),
        (Found(differences(fresh=90), shifted(0.01), None, SAME), "retrain", "lies elsewhere"),
        (Found(differences(fresh=10), shifted(0.02), shifted(0.5), SAME), "ok", "p = 0.0400"),  # two tests
        (Found(differences(fresh=10), shifted(0.5), shifted(0.01), SAME), "watch", "Users ask other questions"),
        (Found(differences(fresh=10), shifted(0.5), None, recalled(-0.06, -0.01)), "watch", "answered worse"),
        (Found(differences(fresh=10), shifted(0.5), None, recalled(-0.2, -0.01)), "retrain", "answered worse"),
        (Found(differences(fresh=10), shifted(0.5), None, recalled(-0.2, -0.1, enough=False)), "ok", "too few"),
        # a model answers what it was trained on better: no new document need be harder for that
        (Found(differences(fresh=10), shifted(0.5), None, replace(recalled(-0.2, -0.01), alike=False)), "watch",
         "Training had questions on some"),
        (Found(differences(fresh=90), replace(shifted(0.01), alike=False), None, SAME), "watch",
         "Training had questions on some"),
        (Found(differences(fresh=10), None, None, None), "ok", None),
        (Found(differences(fresh=40), None, None, None), "watch", "31% of today's passages"),
        (Found(differences(fresh=90), shifted(0.5), None, SAME), "ok", "No shift was found"),
        (Found(differences(fresh=0, kept=40, removed=60), None, None, None), "watch", "60% of the passages"),
    ],
)  # fmt: skip
def test_a_verdict_has_its_reasons(found, expected, said):
    level, reasons = verdict(found, CONFIG)
    assert level == expected
    assert said is None or any(said in reason for reason in reasons), reasons
    assert said is None or said in reasons[0] or expected == "ok"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a handbook, the data set mined from it, and a run on that."""
    folder = tmp_path_factory.mktemp("drift")
    write_handbook(folder / "handbook")
    small = ["model=static", "logger=none", "model.dimension=16", "trainer=smoke", "limit=null"]
    for words in (
        ["embexp.mine", "documents=handbook", "miner=sentences", "out=mined", "model=static"],
        ["embexp", "dataset=mined", "dataset.path=mined", *small, "hydra.run.dir=run"],
    ):
        ended = subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    shutil.copytree(folder / "handbook", folder / "later")
    for name in ANIMALS:
        (folder / "later" / f"{name}.md").write_text(
            f"# {name}\n\nWild {name} are not allowed in the building after dark, whatever their keeper may say. "
            f"The keeper of the {name} pays for the damage that they do to carpets, chairs and plants on any floor. "
            f"Whoever meets one of the {name} waits behind a closed door until it is gone.\n"
        )
    return folder


@pytest.fixture
def drifted(place, monkeypatch, capfd, tmp_path):
    def call(*words, code=0):
        monkeypatch.chdir(place)
        own = [] if any(word.startswith("out=") for word in words) else [f"out={tmp_path}"]
        monkeypatch.setattr(sys, "argv", ["drift", *words, *own])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        assert (end.value.code or 0) == code, out + err
        record = tmp_path / "drift.json"
        return out, err, json.loads(record.read_text()) if record.exists() else None

    return call


def test_the_same_documents_are_ok(drifted):
    out, _, record = drifted("run", "documents=handbook")
    assert record["verdict"] == "ok"
    assert (record["passages"]["kept"], record["passages"]["added"], record["passages"]["removed"]) == (24, 0, 0)
    assert "No passage is new or changed." in out


def test_documents_of_another_kind_are_watched_and_the_page_says_so(drifted, tmp_path):
    out, _, record = drifted("run", "documents=later", "recall.least_documents=2", code=3)
    assert record["verdict"] == "watch"
    assert record["names"]["new_documents"] == sorted(f"{name}.md" for name in ANIMALS)
    assert record["shift"]["tested"]["p_value"] <= 0.025
    assert record["shift"]["alike"]
    assert record["recall"]["questions"]["new"] > 0
    assert "What is new lies elsewhere: 6 new or changed documents" in out
    page = (tmp_path / "drift.html").read_text()
    assert "Drift since run: watch" in page
    assert "zebras.md" in page
    assert "Wild zebras" not in page + json.dumps(record)  # no text of a document
    assert str(tmp_path) not in page


def test_recall_on_what_training_had_questions_on_is_no_measure_and_what_no_test_looks_at_is_told(
    place, drifted, tmp_path
):
    shutil.copytree(place / "handbook", tmp_path / "today")
    for name in sorted(manifest.read(place / "run").trained)[::2]:
        with (tmp_path / "today" / name).open("a") as file:
            file.write("\nThe owner of this page is asked before anything else of it is changed by anybody.\n")
    (tmp_path / "today" / "zebras.md").write_text("# zebras\n\n" + "Wild zebras are not allowed in the building. " * 5)
    _, _, record = drifted(
        "run", f"documents={tmp_path / 'today'}", "shift.least_documents=2", "recall.least_documents=2"
    )
    changed = record["documents"]["changed"]
    assert (record["shift"]["alike"], record["shift"]["new"]) == (True, changed)  # edited against as they were
    assert record["recall"]["alike"] is False
    assert any("a word that is new is cut up" in remark for remark in record["remarks"])  # the run's model is static
    (told,) = (remark for remark in record["remarks"] if remark.startswith("Left out of"))
    assert told.startswith(f"Left out of the test of embeddings: 1 of {changed + 1} documents with something new.")


def test_thresholds_are_settings_and_a_shift_in_most_of_the_documents_asks_for_a_new_training(drifted):
    drifted("run", "documents=later", "share.retrain=0.1", code=4)
    drifted("run", "documents=later", "shift.p_value=0", "share.watch=1", code=0)


def test_embeddings_are_kept_where_the_run_kept_its_wherever_drift_is_called_from(
    place, drifted, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    result = json.loads((run / "result.json").read_text())
    result["config"]["cache"] = "kept"
    (run / "result.json").write_text(json.dumps(result))
    assert opened(str(run)).cache_folder == place / "kept"
    monkeypatch.setenv("EMBEXP_CACHE", str(tmp_path / "other"))
    drifted(str(run), f"documents={place / 'later'}", code=3)
    assert list((place / "kept" / "embeddings").iterdir())
    assert not (tmp_path / "other").exists()
    drifted(str(run), f"documents={place / 'later'}", f"cache={tmp_path / 'mine'}", code=3)
    assert (tmp_path / "mine").is_dir()


def test_the_same_call_finds_the_same(drifted):
    first, second = (drifted("run", "documents=later", code=3)[2] for _ in range(2))
    assert {**first, "written": ""} == {**second, "written": ""}


def test_a_log_is_compared_with_real_questions_alone(drifted, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"query": f"where is the {name}?"}) + "\n" for name in ANIMALS))
    _, _, record = drifted("run", "documents=handbook", f"queries={log}")
    assert record["questions"] is None
    assert any("tested on mined questions alone" in remark for remark in record["remarks"])


def test_blank_rows_of_a_log_are_counted_and_rows_of_something_else_refused(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"query": "Where?"}\n{"query": " "}\n{"query": null}\n{"query": "??"}\n{"query": "where"}\n')
    assert questions.of_log(str(log)) == ({"where": "Where?"}, 3)
    log.write_text('{"query": " "}\n')
    with pytest.raises(UserError, match=r"no question in its column query \(1 blank rows\)"):
        questions.of_log(str(log))
    for row in ('{"question": "Where?"}', '{"query": 7}'):
        log.write_text('{"query": "Where?"}\n' + row + "\n")
        with pytest.raises(UserError, match=r"2: needs a column query with a text"):
            questions.of_log(str(log))


def mined_otherwise(place, folder, **changes):
    """A copy of the run whose data set says that it was mined otherwise."""
    shutil.copytree(place / "run", folder)
    before = manifest.read(folder)
    manifest.write(replace(before, mining={**before.mining, **changes}), folder)
    return folder


def test_a_data_set_does_not_say_what_code_may_be_run(place, drifted, tmp_path):
    splits = {"_target_": "subprocess.check_call", "args": ["touch", str(tmp_path / "was run")]}
    run = mined_otherwise(place, tmp_path / "run", allowed_packages=["subprocess"], split=splits)
    _, err, _ = drifted(str(run), "documents=handbook", code=1)
    assert "subprocess" in err
    assert not (tmp_path / "was run").exists()


def test_a_data_set_mined_with_a_limit_is_refused(place, drifted, tmp_path):
    _, err, _ = drifted(str(mined_otherwise(place, tmp_path / "run", limit=5)), "documents=handbook", code=1)
    assert "mined with limit=5" in err


def test_the_llm_of_mining_is_asked_once_about_what_is_new_and_what_was_known(place, drifted, tmp_path):
    with Stub(on_its_topic) as stub:
        run = asking(stub, place, tmp_path)
        call = [str(run), "documents=later", "recall.miner=run", "recall.least_documents=2"]
        record = drifted(*call, code=3)[2]
        assert record["recall"]["questions"]["new"] == 6  # a passage each
        known = record["recall"]["questions"]["known"]
        assert len(stub.calls) >= 6 + known > 6
        assert {name for name in ANIMALS if any(f"Wild {name}" in about for about in stub.abouts)} == set(ANIMALS)
        asked = len(stub.calls)
        assert drifted(*call, code=3)[2]["recall"] == record["recall"]
        assert len(stub.calls) == asked  # what was answered is kept


def test_an_llm_that_stops_is_told_of_beside_the_verdict(place, drifted, tmp_path):
    with Stub(lambda call: good(call) if call.number < 4 else error(401, "no such key")) as stub:
        run = asking(stub, place, tmp_path)
        _, _, record = drifted(str(run), "documents=later", "recall.miner=run", code=3)
    (remark,) = (each for each in record["remarks"] if each.startswith("Not all passages were asked about"))
    assert "does not take a request without a key" in remark


def on_its_topic(call):
    """One question, whose words are those of the passage's topic and section."""
    topic = next(name for name in [*ANIMALS, *TOPICS] if name in call.about)
    section = "cost" if "pays" in call.about else "order"
    span = " ".join(call.about.split()[:3])
    return Reply(items(("question", f"{topic} {topic[::-1]} {section}?", span)))


def asking(stub, place, tmp_path):
    """The run, as if its data set had been mined with an LLM at the stub."""
    llm = {"_target_": "embexp.service.server.Server", "model": "m", "base_url": stub.base_url, "api_key_env": None}
    llm |= {"concurrency": 1, "retries": 0, "price": {"input": 0, "output": 0}}
    prompt = {"system": "Write.", "user": "{kinds}\n<passage>\n{passage}\n</passage>"}
    miner = {"_target_": "embexp.mine.llm.LLMMiner", "_partial_": True, "prompt": prompt}
    return mined_otherwise(place, tmp_path / "run", llm=llm, miner=miner)


def test_every_mistake_is_said_at_once(drifted):
    _, err, _ = drifted("run", "shift.p_value=2", "recall.miner=magic", "queries=none.txt", "shft=1", code=1)
    for words in ("documents must be set", "shift.p_value=2 must be", "recall.miner='magic'", "queries=none.txt is not",
                  "shft: there is no such key"):  # fmt: skip
        assert words in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["documents=handbook"], "name the run first"),
        (["mined", "documents=handbook"], "has not ended by itself"),
        (["run", "documents=nowhere"], "names no file or folder"),
        (["run", "documents=later", "recall.miner=run"], "was not mined with an LLM"),
    ],
)
def test_what_can_not_be_done_is_explained(drifted, words, said):
    _, err, _ = drifted(*words, code=1)
    assert said in err
    assert "Traceback" not in err


def test_help_shows_the_settings(drifted):
    out, _, _ = drifted("--help")
    assert "Usage: python -m embexp.drift RUN documents=" in out
    assert "p_value: 0.025" in out


# --- runs on other data sets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pairs", "beir", "pubmedqa", "docstrings"])
def test_each_data_set_is_read_again_from_where_documents_says(embexp, sources, kind, tmp_path):
    run = embexp(*QUICK, *sources[kind], "limit=null")
    assert run.code == 0, run.output
    assert pq.read_table(run.folder / manifest.NAME).column_names == ["id", "document", "digest", "trained"]
    places = {"docstrings": ["json", "logging"], "pubmedqa": str(tmp_path / "PubMedQA")}
    named = (
        places.get(kind) or next(word for word in sources[kind] if word.startswith("dataset.path=")).partition("=")[2]
    )
    run_again, before = opened(str(run.folder)), manifest.read(run.folder)
    now = today.read(run_again, before, named)
    found = between(before, now.texts, now.units)
    assert not found.fresh
    assert {document.partition(".")[0] for document in found.removed_documents} == (
        {"email"} if kind == "docstrings" else set()
    )


def test_a_log_is_tested_against_the_real_questions_of_a_run_on_pairs(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"], "limit=null")
    groups, texts, why_not = questions.of_run(opened(str(run.folder)), manifest.read(run.folder))
    assert why_not is None
    assert sum(map(len, groups.values())) == len(texts) == run.result["counts"]["queries"]["test"]
    assert all(text.startswith(("what is ", "please explain")) for text in texts.values())


def test_a_run_that_kept_no_texts_has_a_manifest_and_no_questions(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"], "limit=null", "report_texts=false")
    assert questions.of_run(opened(str(run.folder)), manifest.read(run.folder))[2].endswith("(report_texts=false)")
    assert b"All about" not in (run.folder / manifest.NAME).read_bytes()


def test_a_try_with_a_limit_has_no_manifest(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"])
    assert not (run.folder / manifest.NAME).exists()


def test_the_benchmark_prints_a_line_for_each_scenario(tmp_path):
    model = tiny_transformer(tmp_path / "tiny")
    call = [sys.executable, "benchmarks/drift.py", "--quick", "--model", str(model)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if line.startswith("| docstrings: ")]
    assert len(lines) == 8
