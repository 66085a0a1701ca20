"""How near asking an LLM comes to what its server could answer, and in how much memory: against a stub over real HTTP.

Usage: python benchmarks/mining.py [--passages 1280] [--latency 0.5] [--concurrency 32]

The stub, tests/mine_server.py, runs in a process of its own and answers each call after `latency` seconds. Ideal is
passages / concurrency * latency. The first call, which the others wait for, and all of embexp's work count; imports do
not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import REPOSITORY, peak_mib
from embexp.config.experiment import CONFIG_FOLDER
from embexp.mine.client import Client
from embexp.mine.llm import LLMMiner
from embexp.mine.passages import Passage, Wanted
from embexp.service.server import Server

WORDS = ["a", "heap", "is", "some", "tree", "whose", "parents", "come", "before", "their", "children", "always"]


def passages(count: int) -> list[Wanted]:
    """Passages of 150 words, each asked for one question of each kind."""
    texts = (
        f"{number} {' '.join(WORDS[(number + i * i) % len(WORDS)] for i in range(150))}" for number in range(count)
    )
    return [Wanted(Passage(text, "document.md"), ("question", "keywords", "problem")) for text in texts]


def measure(port: int, count: int, latency: float, concurrency: int) -> str:
    import openai  # noqa: F401  # imported before the clock starts

    prompt = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "prompt" / "questions.yaml"))
    server = Server(
        model="stub",
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key_env=None,
        concurrency=concurrency,
        price={"input": 0, "output": 0},
    )
    wanted = passages(count)
    before = peak_mib()
    with tempfile.TemporaryDirectory() as folder, Client(server, journal=Path(folder) / "answers.jsonl") as client:
        start, used = time.perf_counter(), time.process_time()
        mined = list(LLMMiner(prompt=prompt, client=client).mine(wanted))
        seconds, cpu = time.perf_counter() - start, time.process_time() - used
    questions = sum(len(each.questions) for each in mined)
    grown = peak_mib() - before
    ideal = count / concurrency * latency
    share = f"{ideal / seconds:.1%} of the ideal {ideal:.1f} s" if latency else "no ideal without latency"
    return (
        f"{count:,} passages, {questions:,} questions, {concurrency} calls of {latency:g} s at a time: {seconds:.1f} s,"
        f" {count / seconds:.1f} calls/s, {share}; {1000 * cpu / count:.1f} ms of CPU a call, "
        f"{grown:.0f} MiB more memory"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--passages", type=int, default=1280)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--concurrency", type=int, default=32)
    options = parser.parse_args()
    stub = subprocess.Popen(
        [sys.executable, "tests/mine_server.py", "--latency", str(options.latency)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert stub.stdout is not None
        port = int(stub.stdout.readline())
        print(measure(port, options.passages, options.latency, options.concurrency))
    finally:
        stub.kill()
        stub.wait()
