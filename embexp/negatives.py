"""Passages taken as not relevant to a query. Named by the files in conf/negatives; called by `shapes`.

No known positive is ever a negative. Passages that were judged not relevant (grade 0) come first.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from embexp.errors import UserError
from embexp.retrieval_set import RetrievalSet

# query ids of the set -> query id -> negative passage ids; needs (retrieval_set, seed=...)
Negatives = Callable[..., dict[str, list[str]]]


def draw_random(retrieval_set: RetrievalSet, *, per_query: int, seed: int) -> dict[str, list[str]]:
    """Draw `per_query` passages for each query: those judged not relevant first, then at random from the corpus.

    Raises UserError when a query leaves fewer passages than asked.
    """
    if per_query < 1:
        raise UserError(f"negatives.per_query={per_query}; it must be at least 1")
    rng = random.Random(seed)
    corpus = list(retrieval_set.corpus)
    drawn = {}
    for query in retrieval_set.queries:
        grades = retrieval_set.qrels[query]
        judged = sorted(passage for passage, grade in grades.items() if grade <= 0 and passage in retrieval_set.corpus)
        if len(corpus) - sum(passage in retrieval_set.corpus for passage in retrieval_set.relevant(query)) < per_query:
            raise UserError(
                f"negatives: query {query} has fewer than {per_query} passages that are not relevant, among "
                f"{len(corpus)}; lower negatives.per_query or choose a loss that reads pairs (loss=mnrl)"
            )
        chosen = dict.fromkeys(judged[:per_query])
        while len(chosen) < per_query:  # by rejection: relevant passages are few
            passage = rng.choice(corpus)
            if passage not in grades:
                chosen[passage] = None
            elif len(corpus) <= len(grades) + per_query:
                chosen.update(dict.fromkeys(p for p in corpus if grades.get(p, 0) <= 0))
        drawn[query] = list(chosen)[:per_query]
    return drawn
