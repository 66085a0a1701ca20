"""An index made with another model is noticed; the same model, and an export with the same vectors, pass."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from embexp import stamp
from embexp.errors import UserError
from embexp.models.embedding_model import Transformer
from embexp.stamp import ReembedError
from embexp.training.tuning import save
from tests.tiny import tiny_transformer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    source = Transformer(path=str(tiny_transformer(folder / "base")), prompts={"query": "query: "})
    save(source.load([]), folder / "model", run="first")
    return folder / "model"


@pytest.fixture
def model(made, tmp_path):
    return shutil.copytree(made, tmp_path / "model")


def rewritten(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_saved_models_stamp_says_what_an_index_depends_on(made):
    written = json.loads((made / "embexp.json").read_text())
    assert written["dimensions"] == 32
    assert written["max_seq_length"] == 64
    assert written["prompts"] == {"query": "query: ", "passage": ""}
    assert written["run"] == "first"
    assert {key: written[key] for key in ("weights", "content")} == stamp.hashes(made)


def test_the_stamp_the_card_and_an_exports_scores_leave_the_digests_as_they_are(model):
    before = stamp.hashes(model)
    (model / "embexp.json").unlink()
    (model / "README.md").write_text("a card")
    (model / "export.json").write_text("{}")
    assert stamp.hashes(model) == before
    (model / "1_Pooling" / "embexp.json").write_text("{}")  # only at the top is it ours
    assert stamp.hashes(model)["content"] != before["content"]


def test_an_index_made_with_this_model_passes_as_file_and_as_content(model, tmp_path):
    shutil.copy(model / "embexp.json", tmp_path / "index.json")
    assert stamp.check(model, tmp_path / "index.json")["run"] == "first"
    assert stamp.check(str(model), json.loads((tmp_path / "index.json").read_text()))["run"] == "first"


def test_an_index_made_with_another_model_must_be_embedded_again(model, tmp_path):
    index = json.loads((model / "embexp.json").read_text())
    trained = Transformer(path=str(model)).load([])
    trained.model[0].auto_model.pooler.dense.bias.data += 1
    save(trained, tmp_path / "other", run="second")
    with pytest.raises(
        ReembedError, match=r"re-embed required: .* run first, .* run second \(weights .*, now"
    ) as found:
        stamp.check(tmp_path / "other", index)
    assert "prompts" not in str(found.value)


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ({"dimensions": 384}, "dimensions 384, now 32"),
        ({"prompts": {"query": "", "passage": ""}}, 'prompts {"query": "", "passage": ""}, now {"query": "query: "'),
        ({}, "the tokenizer or a setting differs"),
    ],
)
def test_what_differs_is_named(model, then, words):
    index = json.loads((model / "embexp.json").read_text()) | {"content": "0" * 64} | then
    with pytest.raises(ReembedError) as found:
        stamp.check(model, index)
    assert words in str(found.value)


def test_an_export_with_the_same_vectors_searches_the_index_of_its_original_and_the_other_way_round(model):
    original = json.loads((model / "embexp.json").read_text())
    export = original | {"content": "e" * 64, "same_vectors_as": [original["content"]]}
    assert stamp.check(model, export)
    assert stamp.check(model, export | {"content": "f" * 64})
    with pytest.raises(ReembedError):
        stamp.check(model, export | {"same_vectors_as": ["0" * 64]})


@pytest.mark.parametrize(("name", "words"), [("model.safetensors", "the weights"), ("tokenizer.json", "the tokenizer")])
def test_files_that_changed_after_the_stamp_are_noticed(model, name, words):
    with (model / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match=f"{words}.* changed after the model was stamped"):
        stamp.of_model(model)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is not there"), ("{", "can't be read"), ("[]", "is not a stamp"), ('{"run": "x"}', "it has no content,")],
)
def test_a_missing_or_broken_stamp_says_what_to_do(model, content, words):
    (model / "embexp.json").unlink()
    if content is not None:
        (model / "embexp.json").write_text(content)
    with pytest.raises(UserError, match=words) as found:
        stamp.of_model(model)
    assert "embexp.json" in str(found.value)


def test_the_command_shows_a_stamp_and_exits_with_1_for_another_models_index(model, tmp_path, capsys):
    shutil.copy(model / "embexp.json", tmp_path / "index.json")
    assert stamp.main([str(model)]) == 0
    assert "dimensions: 32\n" in capsys.readouterr().out
    assert stamp.main([str(model), "--index", str(tmp_path / "index.json")]) == 0
    rewritten(tmp_path / "index.json", content="0" * 64)
    assert stamp.main([str(model), "--index", str(tmp_path / "index.json")]) == 1
    assert "embexp: re-embed required" in capsys.readouterr().err


def test_checking_loads_no_model_library(model, tmp_path):
    code = "import sys; from embexp import stamp; stamp.of_model(sys.argv[1]); print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
