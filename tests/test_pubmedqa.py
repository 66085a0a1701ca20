from pathlib import Path

import pandas
import pytest

from embexp.data.leaks import refuse_leaks
from embexp.data.splits import Shares
from embexp.datasets.pubmedqa import load
from embexp.errors import UserError

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "PubMedQA"
TOPICS = ["aspirin", "bones", "cough", "dosage", "eczema", "fever", "gout", "hives", "iron", "joints"]


def article(number, topic, **changes):
    contexts = {"contexts": [f"Background of {topic}.", f"Results on {topic}."], "labels": ["BACKGROUND", "RESULTS"]}
    row = {"pubid": number, "question": f"Does {topic} matter?", "context": contexts, "final_decision": "yes"}
    return {**row, "long_answer": f"Yes, {topic} does.", **changes}


ARTICLES = [article(number, topic) for number, topic in enumerate(TOPICS, start=100)]


def folder(root, rows=ARTICLES, name="pqa_labeled"):
    (root / name).mkdir()
    pandas.DataFrame(rows).to_parquet(root / name / "train-00000-of-00001.parquet")
    return root


def loaded(path, name="pqa_labeled"):
    return load(path=str(path), name=name, split=Shares())


def refused(path, name="pqa_labeled"):
    with pytest.raises(UserError) as error:
        loaded(path, name)
    return str(error.value)


def test_a_question_asks_and_each_section_of_its_abstract_answers(tmp_path):
    splits = loaded(folder(tmp_path))
    sides = (splits.train, splits.dev, splits.test)
    assert [len(side.queries) for side in sides] == [7, 1, 2]
    assert {key: text for side in sides for key, text in side.queries.items()}["100"] == "Does aspirin matter?"
    (grades,) = (side.qrels["100"] for side in sides if "100" in side.qrels)
    assert grades == {"100-0": 1, "100-1": 1}
    assert splits.test.corpus["100-1"] == "Results on aspirin."
    assert splits.test.documents["100-1"] == "100"
    assert len(splits.train.corpus) == 20
    assert list(splits.slices) == ["unseen"]
    assert not any("Yes, " in text for text in splits.train.corpus.values())  # the long answer is not read


def test_articles_without_a_question_or_a_context_are_dropped_and_counted(tmp_path):
    empty = [
        article(1, "x", question=None),
        article(2, "x", question="  "),
        article(3, "x", context=None),
        article(4, "x", context={"contexts": ["", " "], "labels": ["A", "B"]}),
    ]
    splits = loaded(folder(tmp_path, ARTICLES + empty))
    assert splits.notes["articles without a question or context"] == 4
    assert len(splits.test.corpus) == 20


def test_every_parquet_file_of_a_configuration_is_read(tmp_path):
    folder(tmp_path, ARTICLES[:5], "pqa_artificial")
    pandas.DataFrame(ARTICLES[5:]).to_parquet(tmp_path / "pqa_artificial" / "train-00001-of-00002.parquet")
    assert len(loaded(tmp_path, "pqa_artificial").test.corpus) == 20


def test_the_same_article_in_two_files_is_refused(tmp_path):
    pandas.DataFrame(ARTICLES).to_parquet(folder(tmp_path) / "pqa_labeled" / "copy.parquet")
    assert refused(tmp_path).endswith("article 100 is there twice; keep one copy of each Parquet file")


def test_a_configuration_that_is_not_there_lists_those_that_are(tmp_path):
    assert refused(folder(tmp_path), "pqa_labelled").endswith("has no pqa_labelled/*.parquet; it has pqa_labeled")
    (tmp_path / "none").mkdir()
    assert refused(tmp_path / "none").endswith("it has no folder")


def test_a_missing_column_is_named(tmp_path):
    rows = [{"pubid": 1, "context": ARTICLES[0]["context"]}]
    assert refused(folder(tmp_path, rows)).endswith("has no column question; PubMedQA has pubid, question, context")


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "pqa_labeled").mkdir()
    (tmp_path / "pqa_labeled" / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    assert "train.parquet is not a Parquet file" in refused(tmp_path)


def test_a_path_that_is_no_folder_is_refused_and_a_hub_name_without_a_hub_says_what_to_do(tmp_path):
    assert "is not a folder; name a local copy of PubMedQA or a Hub data set" in refused(tmp_path / "no")
    message = refused("embexp-tests/not-in-the-cache")
    assert message.endswith("Set dataset.path= to a local copy in the same layout (<path>/pqa_labeled/*.parquet)")


@pytest.mark.skipif(not REAL.is_dir(), reason="no copy of PubMedQA in ../shared/data")
def test_the_labelled_thousand_are_cut_seven_one_two_over_3358_sections():
    splits = loaded(REAL)
    sides = (splits.train, splits.dev, splits.test)
    assert [len(side.queries) for side in sides] == [700, 100, 200]
    assert {len(side.corpus) for side in sides} == {3358}
    refuse_leaks(splits, near_duplicate=0.9)
