"""A transformer small enough to run in milliseconds, saved the way real models are."""

from __future__ import annotations

import string
import tempfile
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

from tests.conftest import TOPICS

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*TOPICS, "the", "is", "known", "for", "its", "colour", "and", "size", "question", "about", "query", "passage"]
SIGNS = [*string.ascii_lowercase, *string.digits, *string.punctuation]  # so that any other word is spelt out


def tiny_transformer(folder: Path, *, prompts: dict[str, str] | None = None) -> Path:
    """Save a SentenceTransformer in `folder` and return it: a random 2-layer BERT of 32 dimensions for 64 tokens."""
    with tempfile.TemporaryDirectory() as parts, torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(vocab_size=_tokenizer(parts), max_position_embeddings=64, **SIZES)
        _save(BertModel(config), parts, folder, prompts=prompts)
    return folder


def tiny_qwen(folder: Path, *, attention_dropout: float) -> Path:
    """The same of a Qwen3, whose only dropout is a number that it hands to the attention function."""
    with tempfile.TemporaryDirectory() as parts, torch.random.fork_rng():
        torch.manual_seed(0)
        heads = {"num_key_value_heads": 2, "head_dim": 16, "attention_dropout": attention_dropout}
        config = Qwen3Config(vocab_size=_tokenizer(parts), max_position_embeddings=64, **SIZES, **heads)
        _save(Qwen3Model(config), parts, folder)
    return folder


def _save(encoder: PreTrainedModel, parts: str, folder: Path, *, prompts: dict[str, str] | None = None) -> None:
    encoder.save_pretrained(parts)
    modules = [Transformer(parts, max_seq_length=64), Pooling(32), Normalize()]
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder))


def tiny_cross_encoder(folder: Path, *, outputs: int = 1) -> Path:
    """Save a CrossEncoder of the same size in `folder` and return it."""
    with tempfile.TemporaryDirectory() as parts, torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = BertConfig(vocab_size=_tokenizer(parts), max_position_embeddings=64, num_labels=outputs, **SIZES)
        BertForSequenceClassification(sizes).save_pretrained(parts)
        CrossEncoder(parts, device="cpu").save_pretrained(str(folder))
    return folder


def _tokenizer(folder: str) -> int:
    """Save the tokenizer and return how many pieces it knows."""
    pieces = [*SPECIAL, *WORDS, *SIGNS, *(f"##{sign}" for sign in SIGNS)]
    words = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, words[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    return len(words)
