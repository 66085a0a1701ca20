"""The ready lines embed in the real libraries exactly as sentence-transformers does, prompts included."""

from __future__ import annotations

import re

import numpy as np
import pytest

from embexp.models.embedding_model import Transformer
from embexp.reporting import usage
from embexp.training.tuning import save
from tests.command import REPOSITORY
from tests.tiny import tiny_transformer

PROMPTS = [
    {"query": "query: ", "passage": "passage: "},
    {"query": 'Say "it": ', "passage": ""},
    {"query": "", "passage": ""},
]
PACKAGES = {"LangChain": "langchain_huggingface", "LlamaIndex": "llama_index.embeddings.huggingface"}


@pytest.fixture(params=PROMPTS, ids=["both prompts", "a prompt for queries", "no prompts"])
def made(request, tmp_path):
    model = Transformer(path=str(tiny_transformer(tmp_path / "base")), prompts=request.param).load([])
    save(model, tmp_path / "model", run="a run")
    return model, tmp_path / "model"


def executed(library, model, folder):
    code = usage.lines({"query": model.query_prompt, "passage": model.passage_prompt})[library]
    names = {}
    exec(code.replace(usage.MODEL, str(folder)), names)
    return names


def right(model):
    texts = [
        model.query_prompt + "How do I reset my password?",
        model.passage_prompt + "Open Settings and choose Security.",
    ]
    return model.model.encode(texts, prompt="", normalize_embeddings=True)


def test_sentence_transformers(made):
    names = executed("sentence-transformers", *made)
    query, passage = right(made[0])
    assert names["queries"] == pytest.approx(query[None], abs=1e-6)
    assert names["passages"] == pytest.approx(passage[None], abs=1e-6)
    assert float(names["scores"]) == pytest.approx(float(query @ passage), abs=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("library", PACKAGES)
def test_other_libraries(made, library):
    pytest.importorskip(PACKAGES[library], reason=f"{PACKAGES[library]} is not installed")
    names = executed(library, *made)
    query, passage = right(made[0])
    assert np.asarray(names["query"]) == pytest.approx(query, abs=1e-6)
    assert np.asarray(names["passages"]) == pytest.approx(passage[None], abs=1e-6)


def test_the_page_shows_these_lines_with_prompts():
    page = (REPOSITORY / "docs" / "using-the-model.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    for code in usage.lines({"query": "query: ", "passage": "passage: "}).values():
        assert code in shown
