"""What a GPU makes of training: tokens per second and the share of its peak, or the published recipe's whole job.

Usage: python benchmarks/gpu.py [--recipe] [--rows N] [--steps N] [--quick]

Random weights of MiniLM's and of DistilBERT's size, random words with PubMedQA's lengths: speed depends on neither.
Without a GPU it prints that nothing was measured; `--quick` runs the same code on tiny models wherever it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measuring
from benchmarks.measuring import LENGTH, Measured, run_of, table

# of the logarithm of a text's length in tokens, over PubMedQA's expert-labelled questions and sections: mean, deviation
QUESTIONS, SECTIONS = (3.04, 0.31), (4.27, 0.80)
RECIPE_ROWS = 630_000  # about as many question-section pairs as PubMedQA's artificial set has


@dataclass(frozen=True)
class Size:
    """A BERT's shape. layer_parameters: of the encoder layers, which do the arithmetic."""

    hidden: int
    layers: int
    heads: int

    @property
    def layer_parameters(self) -> int:
        """Of all layers: four projections, two feed-forward matrices of four times the width, biases, norms."""
        return self.layers * (12 * self.hidden**2 + 13 * self.hidden)


SIZES = {"MiniLM-size": Size(384, 6, 12), "DistilBERT-size": Size(768, 6, 12)}
TINY = {"tiny": Size(32, 2, 2)}
WORDS = 20_000
LOSSES = ("mnrl", "cached_mnrl")
SPEED_ROWS = 6_000  # that the table of speeds is measured on, in as many epochs as it takes


def saved_model(folder: Path, size: Size) -> Path:
    """A SentenceTransformer with random weights and one token to a word, w0 to w19999."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: place for place, word in enumerate([*special, *(f"w{number}" for number in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])]
    )
    names = {f"{token[1:-1].lower()}_token": token for token in special}
    with tempfile.TemporaryDirectory() as parts:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names).save_pretrained(parts)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.hidden,
        )
        BertModel(config).save_pretrained(parts)
        modules = [Transformer(parts, max_seq_length=LENGTH), Pooling(size.hidden), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    return folder


def pairs(rows: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Question-section pairs, three of an article, as the loader `pairs` reads them."""
    draw, words = np.random.default_rng(seed), [f"w{number}" for number in range(WORDS)]

    def texts(mean: float, deviation: float, count: int) -> Iterator[str]:
        lengths = np.clip(np.rint(draw.lognormal(mean, deviation, count)), 4, 512).astype(int) - 2
        ends = np.cumsum(lengths)
        drawn = draw.integers(WORDS, size=ends[-1]).tolist()
        return (
            " ".join(map(words.__getitem__, drawn[end - length : end]))
            for end, length in zip(ends, lengths, strict=True)
        )

    for start in range(0, rows, 10_000):
        count = min(10_000, rows - start)
        for row, (query, passage) in enumerate(
            zip(texts(*QUESTIONS, count), texts(*SECTIONS, count), strict=True), start
        ):
            yield {"query": query, "passage": passage, "group": f"article{row // 3}"}


class Paced:
    """While entered, times a trainer's steps between the tenth and the last, when all that is done once has been."""

    FIRST = 10

    def __init__(self, steps: int) -> None:
        self._last, self._times = steps, []  # type: ignore[var-annotated]

    def __enter__(self) -> Paced:
        from sentence_transformers import SentenceTransformerTrainer

        usual = SentenceTransformerTrainer.training_step

        def step(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            if trainer.state.global_step in (min(self.FIRST, self._last - 1), self._last - 1):
                synchronize()
                self._times.append((trainer.state.global_step, time.perf_counter()))
            return usual(trainer, *args, **kwargs)

        self._patched = patch.object(SentenceTransformerTrainer, "training_step", step)
        self._patched.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patched.stop()

    @property
    def seconds(self) -> float:
        """Of a step, the mean."""
        (first, start), (last, end) = self._times[0], self._times[-1]
        return (end - start) / max(1, last - first)


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def card() -> str:
    """The GPU's name, where there is one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def arm(folder: Path, size: Size, *, rows: int, batch: int, loss: str, attention: str, steps: int) -> dict[str, float]:
    """Real tokens a second in a run of the command with so many steps, and the peak of the GPU's memory."""
    import torch

    from embexp import libraries

    data, model = folder / "speeds.jsonl", folder / str(size.hidden)
    if not data.exists():
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(rows)))
    if not model.exists():
        saved_model(model, size)
    words = [f"trainer.per_device_train_batch_size={batch}", f"loss={loss}", f"model.attention={attention}"]
    words += [f"+trainer.max_steps={steps}", "trainer.eval_strategy=no", "cache=false", "dataset.split.test=0.02"]
    words += ["dataset=pairs", f"dataset.path={data}", "dataset.columns.group=group", "dataset.split.dev=0.02"]
    words += ["model=local", f"model.path={model}"]
    libraries.loaded()
    libraries.quiet("bm25s")
    logging.disable(logging.INFO)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with Measured() as measured, Paced(steps) as paced:
        run_of(words, Path(tempfile.mkdtemp(dir=folder)))
    counts = measured.counts
    mib = torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else counts["mib"]
    return {"tokens": counts["real"] / steps / paced.seconds, "ms": 1000 * paced.seconds, "mib": mib}


def speeds(folder: Path, options: argparse.Namespace) -> str:
    """The table of tokens per second."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    most = measuring.product("bfloat16", side=8192 if device == "cuda" else 1024, device=device)
    sizes, batches = (TINY, [16]) if options.quick else (SIZES, [64, 256, 1024])
    attentions = ["sdpa", *(["flash_attention_2"] if importlib.util.find_spec("flash_attn") else [])]
    rows, rows_read = [], 400 if options.quick else SPEED_ROWS
    warm = {"rows": rows_read, "batch": batches[0], "loss": "mnrl", "attention": attentions[0], "steps": 12}
    arm(folder, next(iter(sizes.values())), **warm)
    for (name, size), batch, loss, attention in product(sizes.items(), batches, LOSSES, attentions):
        steps = 12 if options.quick else max(options.steps * batches[0] // batch, 40)
        found = arm(folder, size, rows=rows_read, batch=batch, loss=loss, attention=attention, steps=steps)
        # a cached loss embeds every text once more; that is not counted as useful
        tokens = found["tokens"] / (2 if loss == "cached_mnrl" else 1)
        share = f"{6 * size.layer_parameters * tokens / most:.0%}"
        rows.append(
            [f"{name}, {loss}, {attention}", batch, f"{found['ms']:.0f}", f"{tokens:,.0f}", share, found["mib"]]
        )
        print(rows[-1], file=sys.stderr, flush=True)
    head = ["model, loss, attention", "batch", "ms a step", "real tokens/s", "share of the peak", "peak MiB"]
    peak = f"The peak: {most / 1e12:.1f} TFLOP/s in a bfloat16 matrix product, in the same run"
    return f"{table(head, rows)}\n\n{peak}; {card()}."


def recipe(folder: Path, rows: int, size: Size) -> str:
    """The published job with the product itself: one epoch at batch 64, all of dev scored every 250 steps."""
    data = folder / "recipe.jsonl"
    with data.open("w") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs(rows, seed=1))
    words = ["dataset=pairs", f"dataset.path={data}", "dataset.columns.group=group", "logger=none", "cache=false"]
    words += ["model=local", f"model.path={saved_model(folder / 'recipe', size)}", "trainer.eval_steps=250"]
    words += [
        "dataset.split.test=0.001",
        "dataset.split.seen=0.001",
        "dataset.split.dev=0.002",
        "trainer.evaluation_share=null",
        f"hydra.run.dir={folder / 'run'}",
    ]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "embexp", *words], check=True, stdout=sys.stderr)
    minutes = (time.perf_counter() - start) / 60
    result = json.loads((folder / "run" / "result.json").read_text())
    stages = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in result["seconds"].items())
    return (
        f"The recipe's job, {rows:,} pairs, one epoch at batch 64, dev every 250 steps: **{minutes:.1f} minutes**, "
        f"start to end ({stages} seconds; {result['counts']['train_rows']:,} rows trained; {card()})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="at the smallest batch; fewer at larger ones")
    parser.add_argument("--recipe", action="store_true", help="the recipe's whole job instead of the table")
    parser.add_argument("--rows", type=int, default=RECIPE_ROWS, help="of the recipe's job")
    parser.add_argument("--quick", action="store_true", help="tiny, and without a GPU too")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and not options.quick:
        print("**Unmeasured: this machine has no GPU.** The same code ran on tiny models on its CPU (`--quick`).")
        return
    if options.quick:
        options.steps, options.rows = 12, 400
    with tempfile.TemporaryDirectory() as name:
        if not options.recipe:
            print(speeds(Path(name), options))
        else:
            print(recipe(Path(name), options.rows, TINY["tiny"] if options.quick else SIZES["DistilBERT-size"]))


if __name__ == "__main__":
    main()
