"""What a GPU makes of training: tokens per second and the share of its peak, then the published recipe's whole job.

Usage: python benchmarks/gpu.py [--recipe] [--rows N] [--steps N] [--quick]

Random weights of MiniLM's and of DistilBERT's size, random words with PubMedQA's lengths: speed depends on neither.
Without a GPU it prints that nothing was measured; `--quick` runs the same code on tiny models wherever it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import LENGTH, Measured, product, run_of, table

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
    draw = random.Random(seed)

    def text(mean: float, deviation: float) -> str:
        length = max(4, min(512, round(draw.lognormvariate(mean, deviation))))
        return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(length - 2))

    for row in range(rows):
        yield {"query": text(*QUESTIONS), "passage": text(*SECTIONS), "group": f"article{row // 3}"}


def arm(folder: Path, size: Size, *, batch: int, loss: str, attention: str, steps: int) -> dict[str, float]:
    """Real tokens a second over `steps` steps of a run of the command, and the peak of the GPU's memory."""
    import torch

    from embexp import libraries

    data, model = folder / f"{batch}.jsonl", folder / str(size.hidden)
    if not data.exists():
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(2 * batch * steps + 600)))
    if not model.exists():
        saved_model(model, size)
    words = [f"trainer.per_device_train_batch_size={batch}", f"loss={loss}", f"model.attention={attention}"]
    words += [f"+trainer.max_steps={steps}", "trainer.eval_strategy=no", "dataset.split.test=0.05", "cache=false"]
    words += ["dataset=pairs", f"dataset.path={data}", "dataset.columns.group=group"]
    words += ["model=local", f"model.path={model}"]
    libraries.loaded()
    libraries.quiet_keyword_search()
    logging.disable(logging.INFO)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with Measured() as measured:
        run_of(words, Path(tempfile.mkdtemp(dir=folder)))
    counts = measured.counts
    mib = torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else counts["mib"]
    return {"tokens": counts["real"] / counts["seconds"], "mib": mib}


def speeds(folder: Path, options: argparse.Namespace) -> str:
    """The table of tokens per second."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    most = product("bfloat16", side=8192 if device == "cuda" else 1024, device=device)
    sizes, batches = (TINY, [16]) if options.quick else (SIZES, [64, 256, 1024])
    attentions = ["sdpa", *(["flash_attention_2"] if importlib.util.find_spec("flash_attn") else [])]
    rows = []
    for name, size in sizes.items():
        for batch in batches:
            for loss in ("mnrl", "cached_mnrl"):
                for attention in attentions:
                    found = arm(folder, size, batch=batch, loss=loss, attention=attention, steps=options.steps)
                    # a cached loss embeds every text once more; that is not counted as useful
                    tokens = found["tokens"] / (2 if loss == "cached_mnrl" else 1)
                    share = 6 * size.layer_parameters * tokens / most
                    line = [f"{name}, {loss}, {attention}", batch, f"{tokens:,.0f}", f"{share:.0%}", found["mib"]]
                    rows.append(line)
                    print(line, file=sys.stderr, flush=True)
    head = ["model, loss, attention", "batch", "real tokens/s", "share of the peak", "peak MiB"]
    return f"{table(head, rows)}\n\nThe peak: {most / 1e12:.1f} TFLOP/s in a bfloat16 matrix product, in the same run."


def recipe(folder: Path, rows: int, size: Size) -> str:
    """The published job with the product itself: one epoch at batch 64, dev scored every 250 steps."""
    data = folder / "recipe.jsonl"
    with data.open("w") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs(rows, seed=1))
    words = ["dataset=pairs", f"dataset.path={data}", "dataset.columns.group=group", "logger=none", "cache=false"]
    words += ["model=local", f"model.path={saved_model(folder / 'recipe', size)}", "trainer.eval_steps=250"]
    words += ["dataset.split.test=0.01", "dataset.split.dev=0.01", f"hydra.run.dir={folder / 'run'}"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "embexp", *words], check=True, stdout=sys.stderr)
    minutes = (time.perf_counter() - start) / 60
    result = json.loads((folder / "run" / "result.json").read_text())
    stages = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in result["seconds"].items())
    return (
        f"The recipe's job, {rows:,} pairs, one epoch at batch 64, dev every 250 steps: **{minutes:.1f} minutes**, "
        f"start to end ({stages} seconds; {result['counts']['train_rows']:,} rows trained)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--recipe", action="store_true", help="the recipe's whole job too")
    parser.add_argument("--rows", type=int, default=RECIPE_ROWS)
    parser.add_argument("--quick", action="store_true", help="tiny, and without a GPU too")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and not options.quick:
        print("**Unmeasured: this machine has no GPU.** The same code ran on tiny models on its CPU (`--quick`).")
        return
    if options.quick:
        options.steps, options.rows = 2, 400
    with tempfile.TemporaryDirectory() as name:
        parts = [speeds(Path(name), options)]
        if options.recipe or options.quick:
            parts.append(recipe(Path(name), options.rows, TINY["tiny"] if options.quick else SIZES["DistilBERT-size"]))
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
