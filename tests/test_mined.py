import json
from typing import ClassVar

import numpy as np
import pytest

from embexp.data.leaks import refuse_leaks
from embexp.data.paraphrases import without_paraphrases
from embexp.data.splits import limited
from embexp.datasets import mined
from embexp.errors import UserError


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def qrels(**answers):
    return "query-id\tcorpus-id\tscore\n" + "".join(f"{query}\t{passage}\t1\n" for query, passage in answers.items())


@pytest.fixture
def folder(tmp_path):
    """Four documents: a and b train, c is dev, d is held out for test."""
    (tmp_path / "qrels").mkdir()
    passages = [{"_id": f"p{x}", "title": "Guide", "text": f"about {x}. More {x}.", "document": x} for x in "abcd"]
    (tmp_path / "corpus.jsonl").write_text(lines(*passages))
    texts = {"qa": "apples?", "qb": "bricks and mortar?", "qc": "clouds above?", "qd": "dogs barking?",
             "qs": "something new on a", "qr": "what users ask", "qp": "apples, or not?"}  # fmt: skip
    (tmp_path / "queries.jsonl").write_text(lines(*({"_id": key, "text": text} for key, text in texts.items())))
    (tmp_path / "qrels" / "train.tsv").write_text(qrels(qa="pa", qb="pb"))
    (tmp_path / "qrels" / "dev.tsv").write_text(qrels(qc="pc"))
    (tmp_path / "qrels" / "test.tsv").write_text(qrels(qd="pd", qs="pa", qr="pb", qp="pa"))
    slices = {"unseen": ["qd"], "seen": ["qs"], "real": ["qr"], "paraphrase": ["qp"]}
    (tmp_path / "slices.json").write_text(json.dumps(slices))
    (tmp_path / "cloze.jsonl").write_text(lines({"_id": "pa", "text": "More a."}))
    (tmp_path / "mining.json").write_text(
        json.dumps({"content": "abc", "left_out": {"near copies": 2}, "config": {"chunker": {}}})
    )
    return tmp_path


def test_a_mined_folder_brings_its_sides_and_slices(folder):
    splits = mined.load(path=str(folder))
    assert list(splits.train.queries) == ["qa", "qb"]
    assert list(splits.dev.queries) == ["qc"]
    assert splits.slices == {"unseen": ("qd",), "seen": ("qs",), "real": ("qr",), "paraphrase": ("qp",)}
    assert splits.notes == {"mining: near copies": 2}
    assert splits.origin["content"] == "abc"
    assert splits.test.documents["pd"] == "d"


def test_with_real_questions_only_train_and_dev_miss_the_words_of_pseudo_queries(folder):
    splits = mined.load(path=str(folder))
    assert (splits.train.corpus["pa"], splits.dev.corpus["pa"]) == ("More a.", "More a.")
    assert splits.test.corpus["pa"] == "Guide\nabout a. More a."
    assert splits.train.corpus["pb"] == "Guide\nabout b. More b."


def test_without_real_questions_test_misses_them_too(folder):
    (folder / "slices.json").write_text(json.dumps({"unseen": ["qd", "qr", "qs", "qp"]}))
    assert mined.load(path=str(folder)).test.corpus["pa"] == "More a."


def test_the_verdict_is_about_all_but_paraphrases(folder):
    assert mined.load(path=str(folder)).judged == ["qd", "qs", "qr"]


def test_a_paraphrase_near_its_training_question_is_no_leak_but_any_other_is(folder):
    splits = mined.load(path=str(folder))
    texts = {**splits.test.queries, "qp": "Apples"}
    near = type(splits)(splits.train, splits.dev, type(splits.test)(texts, splits.test.corpus, splits.test.qrels,
                        splits.test.documents), splits.slices)  # fmt: skip
    refuse_leaks(near, near_duplicate=0.9)
    relabelled = type(near)(near.train, near.dev, near.test, {"real": ("qd", "qs", "qr", "qp")})
    with pytest.raises(UserError, match="leak: 1 quer"):
        refuse_leaks(relabelled, near_duplicate=0.9)


def test_training_questions_are_not_dropped_for_their_own_paraphrases(folder):
    class SameForApples:
        seen: ClassVar = ["apples"]

        def queries(self, texts):
            words = ["apples" if "apples" in text else text for text in texts]
            self.seen += [word for word in words if word not in self.seen]
            return np.eye(12, dtype=np.float32)[[self.seen.index(word) for word in words]]

    splits = mined.load(path=str(folder))
    kept = without_paraphrases(splits.train, splits, SameForApples(), threshold=0.9)
    assert list(kept.queries) == ["qa", "qb"]


def test_a_limited_run_keeps_the_slices_that_mining_made(folder):
    slices = limited(mined.load(path=str(folder)), 4).slices
    assert (slices["real"], slices["paraphrase"], slices["seen"], slices["unseen"]) == (
        ("qr",), ("qp",), ("qs",), ("qd",))  # fmt: skip


def test_a_folder_that_mining_has_not_finished_is_refused(folder):
    (folder / "mining.json").unlink()
    with pytest.raises(UserError, match="which mining writes last"):
        mined.load(path=str(folder))


def test_a_set_for_evaluation_alone_has_every_question_in_test(folder):
    for name in ("train", "dev"):
        (folder / "qrels" / f"{name}.tsv").unlink()
    (folder / "slices.json").write_text(json.dumps({"unseen": ["qd", "qs", "qr", "qp"]}))
    record = {"content": "abc", "left_out": {}, "config": {"split": {"test": 1}}}
    (folder / "mining.json").write_text(json.dumps(record))
    splits = mined.load(path=str(folder))
    assert (len(splits.train.queries), len(splits.dev.queries), len(splits.test.queries)) == (0, 0, 4)
    assert set(splits.slices) == {"unseen"}
    record["config"]["split"]["test"] = 0.2  # there the filter has taken them, which is a mistake
    (folder / "mining.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="left train, dev without questions"):
        mined.load(path=str(folder))


def test_a_side_without_questions_is_refused_with_where_to_look(folder):
    (folder / "qrels" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"left dev without questions; mining.md"):
        mined.load(path=str(folder))
