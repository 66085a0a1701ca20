import json

import pytest

from embexp.data.splits import Shares
from embexp.datasets.beir import load
from embexp.errors import UserError

WORDS = ["ant", "bee", "cat", "dog", "eel", "fox"]
CORPUS = [{"_id": f"p{n}", "title": word.title(), "text": f"all about the {word}"} for n, word in enumerate(WORDS)]
QUERIES = [{"_id": f"q{n}", "text": f"where is the {word}"} for n, word in enumerate(WORDS)]


def folder(root, qrels, corpus=CORPUS, queries=QUERIES):
    """A BEIR folder; `qrels` maps a split to lines such as `q0 p0 1`."""
    for name, lines in (("corpus", corpus), ("queries", queries)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "qrels").mkdir()
    for split, judgements in qrels.items():
        lines = ["query-id corpus-id score", *judgements]
        (root / "qrels" / f"{split}.tsv").write_text("".join(line.replace(" ", "\t") + "\n" for line in lines))
    return root


def loaded(root):
    return load(path=str(root), split=Shares())


def refused(root):
    with pytest.raises(UserError) as error:
        loaded(root)
    return str(error.value)


def ids(splits):
    return [sorted(side.queries) for side in (splits.train, splits.dev, splits.test)]


def test_the_folders_own_splits_are_kept(tmp_path):
    splits = loaded(
        folder(tmp_path, {"train": ["q0 p0 1", "q1 p1 2"], "dev": ["q2 p2 1"], "test": ["q3 p3 1", "q4 p4 1"]})
    )
    assert ids(splits) == [["q0", "q1"], ["q2"], ["q3", "q4"]]
    assert splits.train.qrels["q1"] == {"p1": 2}
    assert splits.test.corpus["p3"] == "Dog\nall about the dog"
    assert splits.slices == {"unseen": ("q3", "q4")}


def test_a_document_field_joins_passages_so_that_a_trained_document_makes_seen(tmp_path):
    corpus = [{**line, "document": "farm" if line["_id"] in ("p0", "p3") else None} for line in CORPUS]
    qrels = {"train": ["q0 p0 1"], "dev": ["q2 p2 1"], "test": ["q3 p3 1", "q4 p4 1"]}
    assert loaded(folder(tmp_path, qrels, corpus)).slices == {"seen": ("q3",), "unseen": ("q4",)}


def test_a_missing_dev_is_taken_from_train_and_one_split_alone_is_cut(tmp_path):
    for number, qrels in enumerate(({"train": ["q0 p0 1", "q1 p1 1", "q2 p2 1"], "test": ["q3 p3 1"]},
                                    {"test": [f"q{n} p{n} 1" for n in range(6)]})):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        train, dev, test = map(len, ids(loaded(folder(tmp_path / str(number), qrels))))
        assert (train, dev, test) == ((2, 1, 1), (4, 1, 1))[number]


def test_grades_of_zero_and_below_are_judgements_and_queries_with_nothing_else_are_left_out(tmp_path):
    test = ["q3 p3 1", "q3 p4 0", "q3 p5 -1", "q4 p4 0", "q5 p5 -1"]
    splits = loaded(folder(tmp_path, {"train": ["q0 p0 1"], "dev": ["q1 p1 1"], "test": test}))
    assert list(splits.test.queries) == ["q3"]
    assert splits.test.relevant("q3") == ["p3"]


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ({"train": ["q0 p0 1"], "dev": ["q1 p1 1"], "test": ["q3 p3 1", "q9 p3 1"]}, "queries that do not exist: q9"),
        ({"test": [*(f"q{n} p{n} 1" for n in range(6)), "q9 p1 1"]}, "queries that do not exist: q9"),
        ({"train": ["q0 p0 1"], "dev": ["q1 p1 1"], "test": ["q3 p9 1"]}, "passages that are not in the corpus: p9"),
        ({"train": ["q0 p0 1", "q1 p1 1.5"]}, "train.tsv, line 3: needs query-id, corpus-id and a whole score"),
        ({"train": ["q0 p0"]}, "train.tsv, line 2: needs query-id, corpus-id and a whole score"),
        ({"train": []}, "train.tsv has no judgements"),
        (
            {"train": ["q0 p0 1"], "dev": ["q1 p1 1"]},
            "has train, dev; with more than one split it needs train and test",
        ),
        ({}, "has no train.tsv, dev.tsv or test.tsv"),
    ],
)
def test_faulty_qrels_are_refused(tmp_path, qrels, message):
    assert message in refused(folder(tmp_path, qrels))


def test_qrels_without_a_header_are_refused_before_their_first_line_is_lost(tmp_path):
    folder(tmp_path, {})
    (tmp_path / "qrels" / "test.tsv").write_text("q0\tp0\t1\nq1\tp1\t1\n")
    assert "starts with a judgement; its first line must be query-id, corpus-id, score" in refused(tmp_path)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ([*CORPUS, CORPUS[0]], "corpus.jsonl, line 7: duplicate _id 'p0'"),
        ([{"id": "p0", "text": "x"}], "corpus.jsonl, line 1: needs _id and a text; it has id, text"),
        ([{"_id": "p0", "text": None}], "corpus.jsonl, line 1: needs _id and a text"),
        ([*CORPUS, {"_id": "p9", "title": "", "text": " "}], "1 passages with an empty text: p9"),
        ([], "corpus.jsonl is empty"),
    ],
)
def test_a_faulty_corpus_is_refused(tmp_path, corpus, message):
    assert message in refused(folder(tmp_path, {"test": [f"q{n} p{n} 1" for n in range(6)]}, corpus))


def test_a_missing_folder_or_file_is_refused_with_what_belongs_there(tmp_path):
    assert "is not a folder; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/" in refused(tmp_path / "no")
    assert "corpus.jsonl is not there; a BEIR folder holds" in refused(tmp_path)
