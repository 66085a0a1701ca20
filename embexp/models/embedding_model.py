"""Loads the base model that a file in conf/model names, with its prompts, precision and origin.

Called by `preparing` and `follower`. Weights come from a local folder, an installed package or the Hub; only
safetensors are read and no code that comes with a model is run.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from embexp import libraries, stamp
from embexp.cache import json_kept
from embexp.errors import UserError, listed
from embexp.models.facts import Facts, dropouts, facts_of, has_fast_bfloat16, machine, missing_weights
from embexp.models.folder import hashes, why_not_loaded
from embexp.models.lora import Lora, refuse_without_peft
from embexp.models.sources import instead, model_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embexp.models.remote import Remote
    from embexp.parallel.processes import Processes

log = logging.getLogger(__name__)

SAFETENSORS_ONLY = {"use_safetensors": True, "weights_only": True}  # a folder's own files could say otherwise
# what the libraries raise for a folder that is damaged or of another version
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError)
Precision = Literal["auto", "float32", "bfloat16"]
Adapter = Literal["linear", "mlp", "query_linear"]  # see `adapters`


@dataclass(frozen=True)
class EmbeddingModel:
    """A sentence-transformers model with all that its use depends on.

    loaded: gives the model, which is loaded when it is first asked for. facts: what is known of it before.
    query_prompt and passage_prompt are put before every query and passage, in training and evaluation alike.
    bfloat16: whether matrix products run in bfloat16 (weights stay float32). eager_training: whether attention is
    switched to plain matrix products while training. origin: path, commit and the SHA-256 of the weights, for the
    record, and `content`, the digest of all that decides an embedding, tokenizer and settings too. untrained: whether
    its vectors are random, so that nearness says nothing yet. processes: those of the run, each of which holds a copy;
    None where this one is alone. adapter: what is trained behind it while it stays as it is; None trains the model
    itself. lora: that only low-rank updates are trained. base: of an adapter, the model whose embeddings it reads.
    remote: what asks for the embeddings of a model that is not here, and has no weights or tokenizer to look at.
    """

    loaded: Callable[[], SentenceTransformer]
    facts: Facts
    query_prompt: str
    passage_prompt: str
    bfloat16: bool
    eager_training: bool
    origin: Mapping[str, str | None]
    untrained: bool = False
    processes: Processes | None = None
    adapter: Adapter | None = None
    lora: Lora | None = None
    base: EmbeddingModel | None = None
    remote: Remote | None = None

    @property
    def model(self) -> SentenceTransformer:
        """The model, always the same one."""
        return self.loaded()

    @property
    def source(self) -> Remote | None:
        """What asks for its embeddings, or for those that its adapter reads; None where they are made here."""
        return self.base.remote if self.base is not None else self.remote

    @property
    def partly(self) -> bool:
        """Whether some of its weights are trained and the others stay as they are."""
        return self.base is not None or self.lora is not None

    @property
    def tokenizer(self) -> Any:
        """What cuts texts into tokens, an adapter's its base's; None where nobody here knows."""
        if self.source is not None:
            return None
        return self.model.tokenizer if self.base is None else self.base.tokenizer


def refuse_unfit(model: EmbeddingModel, *, needs: str | None) -> None:
    """Raise UserError when a loss `needs` a transformer and the model has none, as a saved static one, and when there
    are no weights to train."""
    if model.remote is not None and model.adapter is None:
        model.loaded()  # says so
    if needs == "transformer" and not model.facts.transformer:
        raise UserError(
            f"this loss needs a transformer, and the model {model.origin['path']} has none; choose another model "
            "(model=minilm) or loss=mnrl"
        )


class Transformer:
    """A sentence-transformers model from a local folder, an installed package or the Hub.

    It is found, and downloaded if need be, when this is made, so that a run fails at once where it can't be had.
    SETTING: where the user says which.
    """

    SETTING = "model.path"

    def __init__(
        self,
        *,
        path: str,
        revision: str | None = None,
        packaged: dict[str, str] | None = None,
        prompts: dict[str, str] | None = None,
        max_seq_length: int | None = None,
        dropout: float | None = None,
        dtype: Precision = "auto",
        attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto",
        adapter: Adapter | None = None,
        peft: Literal["lora"] | None = None,
        lora: Lora | None = None,
    ) -> None:
        """Find the model; raises UserError when it can't be had or is not one.

        | parameter      | meaning                                                                              |
        |----------------|--------------------------------------------------------------------------------------|
        | path           | a local folder or a Hub id, the latter at `revision`                                 |
        | packaged       | `module`: an installed Python package that holds the weights of `path` at `revision` |
        |                | in model/, with the SHA-256 `sha256`; used instead of a download of just these       |
        | prompts        | `query` and `passage`, put before every text; null keeps the model's own             |
        | max_seq_length | in tokens; null keeps the model's own                                                |
        | dropout        | while training; null keeps the model's own. 0 is faster on a CPU                     |
        | dtype          | auto: bfloat16 where the hardware is fast at it (on a CPU: with AMX)                 |
        | attention      | auto: the library's choice, but eager while training on a CPU with dropout or in     |
        |                | bfloat16, where torch's fused attention is slower                                    |
        | adapter        | trained behind the model, which stays as it is; null trains the model                |
        | peft           | lora: only low-rank updates of the model's matrices are trained, as `lora` says      |
        """
        self._path, self._prompts, self._dtype, self._attention = path, prompts, dtype, attention
        self._max_seq_length, self._dropout, self._adapter = max_seq_length, dropout, adapter
        self._lora = (lora or Lora()) if peft == "lora" else None
        if peft == "lora":
            refuse_without_peft()
        if dropout is not None and not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout}; it must be from 0 up to, not including, 1")
        self._folder, self._commit = model_folder(path, revision, packaged, setting=self.SETTING)
        if (endpoint := stamp.behind(self._folder)) is not None:
            raise UserError(
                f"{self.SETTING}={path}: {self._folder} holds layers alone, which read the vectors of {endpoint}, and "
                "no model that reads texts. Name the endpoint (model=openai_embeddings), or a model that is whole"
            )

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._folder

    def content(self) -> str:
        """The digest of all that is loaded of it."""
        return hashes(self._folder)["content"]

    def load(self, texts: Iterable[str]) -> EmbeddingModel:
        """Make it ready; it is loaded once it is needed, or now where nothing is kept of it. `texts` is not needed."""
        del texts
        _refuse_unknown(self._prompts)
        digests = hashes(self._folder)
        loaded = functools.cache(functools.partial(self._loaded, digests))
        parts = [digests["content"], self._prompts, self._max_seq_length, self._dropout, self._attention, machine()]
        facts = Facts(**json_kept("model_facts", parts, lambda: asdict(self._facts(loaded()))))
        log.info("model %s, %s tokens at most", self._path, facts.max_seq_length)
        on_cpu = facts.device == "cpu" and facts.transformer
        slow_fused = facts.drops or _wants_bfloat16(self._dtype, facts)  # torch's fused attention, on a CPU
        eager_training = on_cpu and self._attention == "auto" and slow_fused
        origin = {"path": self._path, "commit": self._commit, **digests}
        model = _embedding_model(loaded, facts, self._dtype, origin, eager_training=eager_training)
        return replace(model, adapter=self._adapter, lora=self._lora)

    def _facts(self, model: SentenceTransformer) -> Facts:
        if missing := missing_weights(model):
            raise UserError(
                f"{self.SETTING}={self._path}: {self._folder} lacks weights, in whose place random ones would stand: "
                f"{listed(missing)}. {instead(self.SETTING)}"
            )
        return facts_of(model)

    def _loaded(self, digests: Mapping[str, str]) -> SentenceTransformer:
        chosen = {} if self._attention == "auto" else {"attn_implementation": self._attention}
        try:
            model: SentenceTransformer = libraries.loaded().SentenceTransformer(
                str(self._folder),
                local_files_only=True,
                model_kwargs={"dtype": torch.float32, **SAFETENSORS_ONLY, **chosen},
            )
        except LOADING_ERRORS as error:
            raise UserError(
                f"{self.SETTING}={self._path}: {self._folder} can't be loaded as a model "
                f"({why_not_loaded(self._folder, error)}). {instead(self.SETTING)}"
            ) from error
        if hashes(self._folder) != digests:
            raise UserError(
                f"{self.SETTING}={self._path}: {self._folder} was changed while the run was on; start again"
            )
        if self._max_seq_length is not None:
            positions = getattr(getattr(model[0], "config", None), "max_position_embeddings", None)
            if positions is not None and self._max_seq_length > positions:
                raise UserError(
                    f"model.max_seq_length={self._max_seq_length}: this model reads at most {positions} tokens"
                )
            model.max_seq_length = self._max_seq_length
        if self._dropout is not None:
            for module, name in dropouts(model):
                setattr(module, name, self._dropout)
        if self._prompts is not None:
            # saved with the model, so that encode_query and encode_document use them without embexp
            model.prompts = {"query": self._prompts.get("query", ""), "document": self._prompts.get("passage", "")}
        return model


class Static:
    """A StaticEmbedding with random vectors and a BPE tokenizer trained on the data.

    Trains in seconds on a CPU. Its base is random, so "better than base" says little: compare it with BM25.
    """

    def __init__(self, *, dimension: int = 256, vocabulary: int = 16000, seed: int = 0) -> None:
        if dimension < 1 or vocabulary < 100:
            raise UserError(f"model.dimension={dimension}, vocabulary={vocabulary}; they must be at least 1 and 100")
        self._dimension, self._vocabulary, self._seed = dimension, vocabulary, seed

    def content(self) -> str:
        """What it will be, on the same texts."""
        return f"static {self._dimension} {self._vocabulary} {self._seed}"

    def load(self, texts: Iterable[str]) -> EmbeddingModel:
        """Train the tokenizer on `texts` (the corpus and train's queries) and draw the vectors."""
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))  # WordPiece training differs from run to run
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(vocab_size=self._vocabulary, special_tokens=["[UNK]"], show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        generator = torch.Generator().manual_seed(self._seed)
        weights = torch.randn(tokenizer.get_vocab_size(), self._dimension, generator=generator) / self._dimension**0.5
        library = libraries.loaded()
        static = library.sentence_transformer.modules.StaticEmbedding(tokenizer, embedding_weights=weights)
        model: SentenceTransformer = library.SentenceTransformer(modules=[static])
        digest = hashlib.sha256(weights.numpy().tobytes() + tokenizer.to_str().encode()).hexdigest()
        origin = {"path": "static", "commit": None, "weights": digest, "content": digest}
        return replace(_embedding_model(lambda: model, facts_of(model), "float32", origin), untrained=True)


def _refuse_unknown(prompts: Mapping[str, str] | None) -> None:
    unknown = set(prompts or {}) - {"query", "passage"}
    if unknown:
        raise UserError(f"model.prompts has {', '.join(sorted(unknown))}; it takes query and passage")


def _embedding_model(
    loaded: Callable[[], SentenceTransformer],
    facts: Facts,
    dtype: Precision,
    origin: Mapping[str, str | None],
    *,
    eager_training: bool = False,
) -> EmbeddingModel:
    own = facts.prompts
    passage_prompt = own.get("document") or own.get("passage") or own.get("corpus") or ""
    bfloat16 = _wants_bfloat16(dtype, facts)
    return EmbeddingModel(loaded, facts, own.get("query") or "", passage_prompt, bfloat16, eager_training, origin)


def _wants_bfloat16(dtype: Precision, facts: Facts) -> bool:
    return has_fast_bfloat16(torch.device(facts.device)) if dtype == "auto" else dtype == "bfloat16"
