"""What the examples of docs/extending.md compute, by hand; `test_docs` runs their commands."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys

import pytest
import torch
import yaml

from embexp.config.components import build
from embexp.data.retrieval_set import RetrievalSet
from embexp.data.splits import Shares
from tests.command import REPOSITORY
from tests.hits import ranking_of
from tests.pages import blocks, write_files
from tests.tiny import tiny_transformer

PAGE = REPOSITORY / "docs" / "extending.md"
SCREEN = 40  # lines


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Imports a module that the page shows, from a folder with its files."""
    write_files(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def imported(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return imported


def test_each_example_is_complete_code_and_a_config_file_and_no_longer_than_a_screen():
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    *examples, where = sections
    assert [each.splitlines()[0] for each in examples] == ["A loss", "A model", "A data set", "An evaluator"]
    assert where.startswith("Where things are\n")
    shown = [block for block in blocks(PAGE) if block.language in ("python", "yaml")]
    of_section = [[block for block in shown if block.text in section] for section in examples]
    for found in of_section:
        assert [block.language for block in found] == ["python", "yaml"]
        assert all(block.file for block in found)
        assert sum(len(block.lines) for block in found) <= SCREEN


def test_the_loss_is_the_cross_entropy_with_a_share_of_the_weight_on_the_wrong_passage(module):
    loss = module("smoothed").SmoothedRanking(lambda column: {"sentence_embedding": column}, scale=1.0, smoothing=0.2)
    value = loss([torch.eye(2), 3 * torch.eye(2)])
    # the right passage scores 1, the wrong one 0: log(1 + 1/e), and 1 more for the tenth of the weight on the wrong one
    assert float(value) == pytest.approx(math.log(1 + math.exp(-1)) + 0.1)


def test_the_model_is_a_checkpoint_with_mean_pooling_and_the_prompts_of_its_file(module, tmp_path):
    tiny_transformer(tmp_path / "path" / "to" / "checkpoint")
    module("pooled")
    node = yaml.safe_load((tmp_path / "my_conf" / "model" / "pooled.yaml").read_text())
    loaded = build(node, allowed=[]).load([])
    assert (loaded.query_prompt, loaded.passage_prompt, loaded.facts.max_seq_length) == ("query: ", "passage: ", 64)
    words = loaded.model.encode(["apple"], output_value="token_embeddings")[0]
    mean = torch.nn.functional.normalize(words.mean(dim=0), dim=0)
    assert torch.allclose(loaded.model.encode(["apple"], convert_to_tensor=True)[0], mean, atol=1e-5)


def test_the_data_set_keeps_the_articles_of_a_manual_on_one_side(module, tmp_path):
    tickets = [
        {"id": number, "subject": f"{word} {word}", "article": {"id": f"a{number}", "text": word, "manual": word[0]}}
        for number, word in enumerate(a + b for a in "abcdefghij" for b in "xy")
    ]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(ticket) + "\n" for ticket in tickets))
    splits = module("tickets").load(path="some.jsonl", split=Shares(test=0.2, dev=0.1))
    sides = [splits.train, splits.dev, splits.test]
    manuals = [{manual for query in side.queries for manual in side.documents_of(query)} for side in sides]
    assert [len(side.queries) for side in sides] == [14, 2, 4]
    assert [len(found) for found in manuals] == [7, 1, 2]
    assert set.union(*manuals) == set("abcdefghij")
    assert splits.slices.keys() == {"unseen"}


def test_the_evaluator_counts_another_passage_of_the_right_document(module):
    corpus = {"p1": "one", "p2": "two", "p3": "three"}
    documents = {"p1": "left", "p2": "left", "p3": "right"}
    data = RetrievalSet({"q1": "a", "q2": "b"}, corpus, {"q1": {"p1": 1}, "q2": {"p1": 1}}, documents)

    class Arm:
        def search(self, data, *, top):
            assert top == 2
            return ranking_of({"q1": ["p3", "p2"], "q2": ["p3"]}, list(data.corpus))

    evaluator = module("found").Found(k=2, name="documents", metrics=["hit"])
    found = evaluator(Arm(), data, negatives=None, seed=0)
    assert found.scores["documents.hit"].values.tolist() == [1.0, 0.0]
    assert found.metrics == {"documents.hit": 0.5}
    assert evaluator.during_training(found, data)(data, at_most=1) is data
    assert evaluator.texts(data, negatives=None, seed=0) == (["a", "b"], ["one", "two", "three"])
