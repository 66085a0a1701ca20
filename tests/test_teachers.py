"""Judges of pairs: a cross-encoder, a model's cosines, BM25."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from embexp.cache import kept_in
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation.search import BM25
from embexp.models.embedding_model import Static
from embexp.reranking.pair_scores import pair_scores
from embexp.rows import teachers
from embexp.rows.teachers import Cosines, CrossEncoderScores, Keywords, teacher_of
from tests.tiny import tiny_cross_encoder

QUERIES, PASSAGES = ["the apple", "bread", "the apple"], ["apple", "the chair", "apple"]


@pytest.fixture
def folder(tmp_path):
    return tiny_cross_encoder(tmp_path / "judge")


def test_a_cross_encoders_scores_are_its_own_through_a_sigmoid_whatever_the_folder_names(folder):
    config = json.loads((folder / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / "config.json").write_text(json.dumps(config))
    model = CrossEncoder(str(folder), activation_fn=torch.nn.Identity(), local_files_only=True)
    logits = model.predict(list(zip(QUERIES, PASSAGES, strict=True)))
    scores = CrossEncoderScores(str(folder), setting="loss.teacher")(QUERIES, PASSAGES)
    assert scores == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)
    assert scores[0] == scores[2] != scores[1]


def test_scores_of_pairs_of_unlike_length_are_those_of_predict_in_the_order_of_the_pairs(folder, monkeypatch):
    words = ["the apple", "is", "known", "for its size and colour"]
    pairs = [(" ".join(words[: 1 + n % 3]), " ".join((words * 20)[: 1 + n * 7 % 60])) for n in range(40)]
    model = CrossEncoder(str(folder), activation_fn=torch.nn.Sigmoid(), local_files_only=True, device="cpu")
    with torch.no_grad():
        for weights in model.parameters():  # as they are drawn, all pairs score nearly alike
            weights.mul_(5 if weights.dim() == 2 else 1)
    shapes = []
    model[0].register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0]["input_ids"].shape)))
    expected, one_way = model.predict(pairs), len(shapes)
    monkeypatch.setattr("embexp.encoding.parts.TOKENS", 200)
    model.train()
    assert pair_scores(model, pairs, progress=None) == pytest.approx(expected, abs=1e-6)
    assert model.training
    assert len(set(expected.round(5))) > 15
    assert sum(rows for rows, _ in shapes[one_way:]) == 40
    assert all(rows * tokens <= 200 for rows, tokens in shapes[one_way:])


def test_scores_are_kept_between_runs(folder, tmp_path, monkeypatch):
    judge = CrossEncoderScores(str(folder), setting="loss.teacher")
    with kept_in(tmp_path / "cache"):
        first = judge(QUERIES, PASSAGES)
        monkeypatch.setattr(teachers, "pair_scores", None)  # asked again it would fail
        assert judge(QUERIES, PASSAGES).tolist() == first.tolist()


def test_scores_kept_are_not_those_of_a_judge_whose_tokenizer_alone_changed(folder, tmp_path):
    def scored(*pair):
        return float(CrossEncoderScores(str(folder), setting="loss.teacher")(*([text] for text in pair))[0])

    with kept_in(tmp_path / "cache"):
        apple, bread = scored("apple", "apple"), scored("bread", "bread")
        assert abs(apple - bread) > 1e-5  # far more than rounding
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        words = tokenizer["model"]["vocab"]
        words["apple"], words["bread"] = words["bread"], words["apple"]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        assert (scored("apple", "apple"), scored("bread", "bread")) == pytest.approx((bread, apple), abs=1e-6)


def test_a_judge_that_reads_less_of_a_text_is_another_judge(folder, monkeypatch):
    whole = CrossEncoderScores(str(folder), setting="negatives.rescorer").identity
    monkeypatch.setattr(CrossEncoder, "max_seq_length", 32)
    assert CrossEncoderScores(str(folder), setting="negatives.rescorer").identity == whole | {"longest": 32}
    assert whole["longest"] == 64


def test_what_is_no_cross_encoder_is_refused_with_the_setting(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^loss.teacher=.* is an empty folder\. Set loss.teacher= to a local folder"):
        teacher_of(str(tmp_path / "empty"), None, setting="loss.teacher")
    with pytest.raises(UserError, match="gives 3 scores for a pair"):
        CrossEncoderScores(str(tiny_cross_encoder(tmp_path / "three", outputs=3)), setting="negatives.rescorer")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"negatives.rescorer=.* has no \*.safetensors"):
        CrossEncoderScores(str(folder), setting="negatives.rescorer")


def test_a_foreign_class_in_the_folder_is_refused_and_its_code_not_run(folder, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Model: ...\n")
    monkeypatch.syspath_prepend(folder)
    modules = folder / "modules.json"
    modules.write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Model"}]))
    with pytest.raises(UserError, match=r"names the class 'evil\.Model'"):
        CrossEncoderScores(str(folder), setting="loss.teacher")
    assert not marker.exists()


def test_without_a_name_the_base_models_cosines_are_the_scores(toy):
    encoder = Encoder(Static(dimension=8).load(toy.corpus.values()))
    teacher = teacher_of(None, encoder, setting="loss.teacher")
    assert isinstance(teacher, Cosines)
    left, right = encoder.queries(QUERIES), encoder.passages(PASSAGES)
    assert teacher(QUERIES, PASSAGES) == pytest.approx((left * right).sum(axis=1), abs=1e-6)


def test_keyword_scores_of_pairs_are_those_of_the_ranking(toy):
    ranking = BM25().search(toy, top=10)
    passage, score = ranking["q3.0"][0]
    judge = Keywords(toy)
    assert judge([toy.queries["q3.0"]], [toy.corpus[passage]]) == pytest.approx([score])
