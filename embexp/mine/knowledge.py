"""The knowledge base that is mined: documents cut into passages, or the passages of a data set. Called by `mining`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from embexp.config.components import build
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.errors import UserError, listed
from embexp.mine import documents
from embexp.mine.passages import Document, Passage, hashed
from embexp.models.embedding_model import EmbeddingModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Knowledge:
    """Passages with unique ids, and how they came about.

    unreadable: file -> why. counts: what the chunker dropped. splits: of the data set, where the passages are one's.
    model: the one that is to be tuned, and its tokenizer.
    """

    passages: Sequence[Passage]
    unreadable: Mapping[str, str]
    counts: Mapping[str, int]
    splits: Splits | None
    model: EmbeddingModel
    tokenizer: Tokenizer

    def count_tokens(self, text: str) -> int:
        """How many tokens the model that is to be tuned makes of a text."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)


def read(config: Mapping[str, Any], folder: Path) -> Knowledge:
    """Read and cut what `documents` names, or take the passages of `dataset`; `limit` takes some of the documents.

    folder: where the data set is written; it is not read, should it lie among the documents.

    Raises UserError when there is nothing to mine, and when one id stands for two passages.
    """
    allowed = config["allowed_packages"]
    source = build(config["model"], allowed=allowed, without=["kind"])  # found, or not, before documents are read
    if config["dataset"] is not None:
        splits: Splits = build(config["dataset"], allowed=allowed)
        found = _limited(passages_of(splits.train), config["limit"])
        return Knowledge(found, {}, {}, splits, *_model(config, source, found))
    places = config["documents"]
    got = documents.read([places] if isinstance(places, str) else places, without=folder)
    texts = _limited_documents(got.documents, config["limit"])
    ready = _limited(got.passages, config["limit"])
    model, tokenizer = _model(config, source, [*texts, *ready])
    cut = build(config["chunker"], allowed=allowed).cut(texts, tokenizer)
    passages = list({(passage.id, passage.whole): passage for passage in [*cut.passages, *ready]}.values())
    twice = [key for key, count in Counter(passage.id for passage in passages).items() if count > 1]
    if twice:
        raise UserError(f"{len(twice)} passage ids stand for two passages: {listed(twice)}. Give each an id of its own")
    if not passages:
        raise UserError(
            f"documents={places}: nothing is left to ask about; dropped: {dict(cut.counts)}, "
            f"unreadable: {listed(got.unreadable)}"
        )
    return Knowledge(passages, got.unreadable, cut.counts, None, model, tokenizer)


def passages_of(data: RetrievalSet) -> list[Passage]:
    """A data set's passages, with the ids that they have there."""
    places: Counter[str] = Counter()
    found = []
    for key, text in data.corpus.items():
        document = data.documents.get(key, key)  # a user's own source may lack some
        found.append(Passage(text, document, position=places[document], given_id=key))
        places[document] += 1
    return found


def _limited_documents(texts: Sequence[Document], limit: int | None) -> list[Document]:
    kept = set(sorted((text.name for text in texts), key=partial(hashed, "limit"))[:limit])
    return [text for text in texts if text.name in kept]


def _limited(passages: Sequence[Passage], limit: int | None) -> list[Passage]:
    kept = set(sorted({passage.document for passage in passages}, key=partial(hashed, "limit"))[:limit])
    return [passage for passage in passages if passage.document in kept]


def _model(
    config: Mapping[str, Any], source: Any, texts: Sequence[Document | Passage]
) -> tuple[EmbeddingModel, Tokenizer]:
    log.info("loading the model that is to be tuned, whose tokenizer measures passages ...")
    loaded: EmbeddingModel = source.load([each.text for each in texts])
    tokenizer = getattr(loaded.model.tokenizer, "backend_tokenizer", loaded.model.tokenizer)
    most, asked = getattr(loaded.model, "max_seq_length", None), config["chunker"].get("tokens")
    if isinstance(most, int) and isinstance(asked, int) and asked > most:
        log.warning("chunker.tokens=%d: the model reads %d tokens and cuts the rest off; lower it", asked, most)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(
            f"model.path={config['model'].get('path')} has no tokenizer.json, and passages are cut by its tokens; "
            "choose another model (model=minilm): the cut differs little between models"
        )
    return loaded, tokenizer
