"""The miner against a server that this project did not write: `transformers serve`, with a model made on the spot.

The model's weights are random, so that its text is junk; the protocol, which is what this tests, is not. Alone:

    python -m pytest -m real_server tests/test_mine_real_server.py
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from embexp.config.checks import CONFIG_FOLDER
from embexp.mine.answers import EMPTY, TRUNCATED, UNPARSABLE
from embexp.mine.client import Client
from embexp.mine.llm import LLMJudge, LLMMiner
from embexp.mine.passages import Passage, Wanted
from embexp.service.budget import Budget
from embexp.service.server import Server

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
TEXTS = [f"A heap of {size} items has its smallest one on top. To pop it costs {size} steps." for size in range(6)]
PROMPT = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "prompt" / "questions.yaml"))
JUDGE = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "prompt" / "judge.yaml"))


def tiny_llm(folder):
    """Save a random two-layer Llama with a byte-level tokenizer trained on the prompt and the passages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, *PROMPT.values()], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(wrapped), max_position_embeddings=2048, eos_token_id=0, pad_token_id=1, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, model) of a running server."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason="transformers serve needs it: pip install fastapi uvicorn")
    folder = tiny_llm(tmp_path_factory.mktemp("llm"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "server.log").open("w")
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"],
        stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    try:
        for _ in range(240):
            assert process.poll() is None, (folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                    assert answer.status == 200
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def client_of(served, folder, **settings):
    address, model = served
    price = {"input": 0, "output": 0}
    server = Server(
        **{"model": model, "base_url": address, "api_key_env": None, "max_tokens": 40, "price": price, **settings}
    )
    return Client(server, journal=folder / "answers.jsonl", budget=Budget(usd=1))


@pytest.mark.real_server
def test_junk_of_a_real_server_gives_no_question_and_its_problems_are_counted_and_kept(served, tmp_path):
    wanted = [Wanted(Passage(text, "heaps.md"), ("question", "keywords")) for text in TEXTS]
    with client_of(served, tmp_path, concurrency=4) as client:
        mined = list(LLMMiner(prompt=PROMPT, client=client).mine(wanted))
        report = client.report()
    assert report.stopped is None, report
    assert (len(mined), report.sent, report.failed) == (6, 6, 0)
    assert [question for each in mined for question in each.questions] == []
    problems = Counter(problem for each in mined for problem in each.problems)
    assert set(problems) <= {TRUNCATED, UNPARSABLE, EMPTY}
    assert problems[TRUNCATED] > 0
    assert all(each.problems for each in mined)
    assert report.answered.estimated == 0  # it counts tokens itself
    assert report.answered.prompt_tokens > 6 * 100
    assert 6 <= report.answered.completion_tokens <= 6 * 40

    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert sum(line["completion_tokens"] for line in lines) == report.answered.completion_tokens
    with client_of(served, tmp_path) as client:
        assert len(list(LLMMiner(prompt=PROMPT, client=client).mine(wanted))) == 6
        again = client.report()
    assert (again.sent, again.kept, again.answered) == (0, 6, report.answered)


@pytest.mark.real_server
def test_the_worst_case_of_a_real_tokenizer_and_template_is_never_exceeded(served, tmp_path):
    with client_of(served, tmp_path) as client:
        judged = LLMJudge(client=client, prompt=JUDGE)
        pairs = [(f"How many steps has a heap of {n}? – „日本“", text) for n, text in enumerate(TEXTS)]
        for request, answer in client.ask(judged.requests(pairs)):
            assert 0 < answer.prompt_tokens <= request.most_prompt_tokens
            assert answer.completion_tokens <= 40
        assert set(judged.answers(pairs)) <= {None, True, False}


@pytest.mark.real_server
def test_a_model_that_a_real_server_does_not_have_is_said(served, tmp_path):
    with client_of(served, tmp_path, model="no-such-model", retries=0) as client:
        mined = list(LLMMiner(prompt=PROMPT, client=client).mine([Wanted(Passage(TEXTS[0], "d"), ("question",))]))
        report = client.report()
    assert (mined, report.failed) == ([], 1)
    assert "no-such-model" in report.last_fault
