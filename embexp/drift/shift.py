"""Do today's new passages, and the questions that are asked, lie where the run's lay? Called by `drifting`.

Draws whole documents of both sides, embeds them with the tuned model and hands the kernel to `two_sample`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embexp.data.manifest import Manifest
from embexp.drift.differences import Differences
from embexp.drift.today import Today
from embexp.drift.two_sample import Tested, kernel_of, tested
from embexp.encoding.encoder import Encoder
from embexp.mine.passages import hashed

Groups = Mapping[str, Sequence[str]]  # unit -> the ids of its texts
MOST_NAMED = 10  # documents that are least like those known


@dataclass(frozen=True)
class Shift:
    """A test, and what it was made on. unlike: the new units furthest from the known ones, with their mean kernel.

    That is 1 for the same text, and 0.37 for two at the median distance.
    """

    tested: Tested
    new: int
    known: int
    alike: bool  # whether training saw as much of the new ones as of the known ones
    unlike: Mapping[str, float]


@dataclass(frozen=True)
class Sides:
    """Documents that are compared: with what is new in each, and with all passages of those that are as they were.

    alike: whether training saw as much of the ones as of the others. left_out: documents with something new that the
    comparison is without.
    """

    new: Groups
    known: Groups
    alike: bool
    left_out: Sequence[str] = ()


def sides_of(today: Today, differences: Differences, manifest: Manifest, *, least: int, trained: bool) -> Sides:
    """What to compare, so that training alone makes no difference.

    Training moves the documents that it had questions on, and keeps them apart from others when they change. So those
    that it had none on are compared with each other, where both sides have `least`: brand-new documents are such. If
    not, those that it had some on are, where `trained` allows that; else all with all, which are not alike.

    trained: false for recall, since questions on what training knew may be those that it learnt from.
    """
    fresh = set(differences.fresh)
    names = (*differences.new_documents, *differences.changed_documents)
    new = {name: keys for name in names if (keys := [key for key in today.by_document[name] if key in fresh])}
    same = {name: today.by_document[name] for name in differences.same_documents}
    untrained, learnt = (_with_training(new, same, manifest, trained=was) for was in (False, True))
    if min(map(len, untrained)) >= least:
        return Sides(*untrained, alike=True, left_out=list(learnt[0]))
    if trained and min(map(len, learnt)) >= least:
        return Sides(*learnt, alike=True, left_out=list(untrained[0]))
    return Sides(new, same, alike=not any(learnt))


def _with_training(new: Groups, same: Groups, manifest: Manifest, *, trained: bool) -> tuple[Groups, Groups]:
    """Of both, the documents that training had questions on, or those that it had none on."""
    kept = [
        {name: keys for name, keys in side.items() if manifest.was_trained(name, keys) is trained}
        for side in (new, same)
    ]
    return kept[0], kept[1]


def drawn(names: Sequence[str], *, most: int, seed: int) -> list[str]:
    """At most so many, by a hash of name and seed: adding a document leaves the others drawn."""
    return sorted(sorted(names, key=lambda name: hashed(str(seed), name))[:most])


def of_passages(
    sides: Sides, texts: Mapping[str, str], encoder: Encoder, *, settings: Mapping[str, Any], seed: int
) -> Shift | None:
    """Test the passages of both sides; None where either has too few documents."""
    new, known = sides.new, sides.known
    rng = np.random.default_rng(seed)
    fresh = {name: _some(new[name], settings["passages"], rng) for name in _drawn(new, settings, seed)}
    sizes = [len(keys) for keys in fresh.values()]
    # as many passages of each as a new one has: a mean of few lies further out than one of many
    before = {name: _some(known[name], int(rng.choice(sizes)), rng) for name in _drawn(known, settings, seed) if sizes}
    return _of(fresh, before, texts, encoder.passages, alike=sides.alike, settings=settings, seed=seed)


def of_questions(
    log: Mapping[str, str], before: Groups, texts: Mapping[str, str], encoder: Encoder, *, settings: Mapping[str, Any],
    seed: int,
) -> Shift | None:  # fmt: skip
    """Test a log's questions, each for itself, against the run's own by document; None where there are too few."""
    asked = {key: [key] for key in _drawn(log, settings, seed)}
    rng = np.random.default_rng(seed)
    own = {name: _some(before[name], 1, rng) for name in _drawn(before, settings, seed)}
    return _of(asked, own, {**texts, **log}, encoder.queries, alike=True, settings=settings, seed=seed)


def _drawn(names: Mapping[str, Any], settings: Mapping[str, Any], seed: int) -> list[str]:
    return drawn(list(names), most=settings["documents"], seed=seed)


def _of(
    new: Groups, known: Groups, texts: Mapping[str, str], embed: Any, *, alike: bool, settings: Mapping[str, Any],
    seed: int,
) -> Shift | None:  # fmt: skip
    if min(len(new), len(known)) < settings["least_documents"]:
        return None
    groups = [*new.values(), *known.values()]
    rows = embed([texts[key] for keys in groups for key in keys])
    kernel = kernel_of(rows, np.repeat(np.arange(len(groups)), [len(keys) for keys in groups]))
    is_new = np.arange(len(groups)) < len(new)
    found = tested(kernel, is_new, permutations=settings["permutations"], seed=seed)
    nearness = dict(zip(new, kernel[: len(new), len(new) :].mean(axis=1).tolist(), strict=True))
    furthest = sorted(nearness, key=lambda name: (nearness[name], name))[:MOST_NAMED]
    return Shift(found, len(new), len(known), alike, {name: round(nearness[name], 4) for name in furthest})


def _some(keys: Sequence[str], most: int, rng: np.random.Generator) -> list[str]:
    return list(keys) if len(keys) <= most else [keys[place] for place in sorted(rng.permutation(len(keys))[:most])]
