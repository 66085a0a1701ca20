"""The knowledge base that is mined: documents cut into passages, or the passages of a data set. Called by `mining`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from embexp.components import build
from embexp.errors import UserError, listed
from embexp.mine import documents
from embexp.mine.passages import Document, Passage, hashed
from embexp.retrieval_set import RetrievalSet, Splits


@dataclass(frozen=True)
class Knowledge:
    """Passages with unique ids, and how they came about.

    unreadable: file -> why. counts: what the chunker dropped. splits: of the data set, where the passages are one's.
    tokenizer: of the model that is to be tuned.
    """

    passages: Sequence[Passage]
    unreadable: Mapping[str, str]
    counts: Mapping[str, int]
    splits: Splits | None
    tokenizer: Tokenizer

    def count_tokens(self, text: str) -> int:
        """How many tokens the model that is to be tuned makes of a text."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)


def read(config: Mapping[str, Any]) -> Knowledge:
    """Read and cut what `documents` names, or take the passages of `dataset`; `limit` takes some of the documents.

    Raises UserError when there is nothing to mine, and when one id stands for two passages.
    """
    allowed = config["allowed_packages"]
    if config["dataset"] is not None:
        splits: Splits = build(config["dataset"], allowed=allowed)
        found = _limited(_passages_of(splits.train), config["limit"])
        return Knowledge(found, {}, {}, splits, _tokenizer(config, found))
    places = config["documents"]
    got = documents.read([places] if isinstance(places, str) else places)
    texts = _limited_documents(got.documents, config["limit"])
    ready = _limited(got.passages, config["limit"])
    tokenizer = _tokenizer(config, [*texts, *ready])
    cut = build(config["chunker"], allowed=allowed).cut(texts, tokenizer)
    passages = [*cut.passages, *ready]
    twice = [key for key, count in Counter(passage.id for passage in passages).items() if count > 1]
    if twice:
        raise UserError(f"{len(twice)} passage ids stand for two passages: {listed(twice)}. Give each an id of its own")
    if not passages:
        raise UserError(
            f"documents={places}: nothing is left to ask about; dropped: {dict(cut.counts)}, "
            f"unreadable: {listed(got.unreadable)}"
        )
    return Knowledge(passages, got.unreadable, cut.counts, None, tokenizer)


def _passages_of(data: RetrievalSet) -> list[Passage]:
    places: Counter[str] = Counter()
    found = []
    for key, text in data.corpus.items():
        document = data.documents[key]
        found.append(Passage(text, document, position=places[document], given_id=key))
        places[document] += 1
    return found


def _limited_documents(texts: Sequence[Document], limit: int | None) -> list[Document]:
    kept = set(sorted((text.name for text in texts), key=partial(hashed, "limit"))[:limit])
    return [text for text in texts if text.name in kept]


def _limited(passages: Sequence[Passage], limit: int | None) -> list[Passage]:
    kept = set(sorted({passage.document for passage in passages}, key=partial(hashed, "limit"))[:limit])
    return [passage for passage in passages if passage.document in kept]


def _tokenizer(config: Mapping[str, Any], texts: Sequence[Document | Passage]) -> Tokenizer:
    source = build(config["model"], allowed=config["allowed_packages"], without=["kind"])
    model = source.load([each.text for each in texts]).model
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(
            f"model.path={config['model'].get('path')} has no tokenizer.json, and passages are cut by its tokens; "
            "choose another model (model=minilm): the cut differs little between models"
        )
    return tokenizer
