"""Drift, top to bottom: run -> manifest -> today's passages -> differences -> shift -> recall -> verdict.

Read this module first; every step is one call into the module that does it. Called by `drift.cli`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from embexp import __version__
from embexp.config.checks import CONFIG_FOLDER
from embexp.config.components import build
from embexp.data import manifest
from embexp.data.manifest import Manifest
from embexp.drift import questions, recall, shift, today
from embexp.drift.differences import Differences, between
from embexp.drift.shift import Sides
from embexp.drift.verdict import Found, verdict
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError, counted, listed
from embexp.mine.client import Client
from embexp.mine.passages import Miner
from embexp.mine.summary import unanswered
from embexp.results.finished import Finished, opened
from embexp.service.budget import Budget

log = logging.getLogger(__name__)

MOST_NAMED = 20  # documents of each kind that drift.json names
SENTENCES = "embexp.mine.sentences.SentenceMiner"
OF_STATIC = (
    "This model's vocabulary was made of the passages that the run knew (model=static): a word that is new is cut up, "
    "which alone puts a passage elsewhere. Expect shifts where there are none; ask drift of a run with another model."
)


def drift(folder: str, config: Mapping[str, Any], *, now: today.Today | None = None) -> tuple[dict[str, Any], Path]:
    """The content of drift.json for a run's folder, and where it goes. Raises UserError for what the user can mend.

    now: today's passages, where they are read already.
    """
    run = opened(folder)
    own = {**run.result, "config": _with_packages(run.config, config["allowed_packages"])}
    caps = {name: cap for name, cap in config["model"]["budget"].items() if cap is not None}
    run = Finished(run.folder, own, caps)
    if run.config["limit"] is not None:
        raise UserError(
            f"{folder} was a try with limit={run.config['limit']}: it has not seen all passages. Name a whole run"
        )
    out = Path(config["out"]).expanduser() if config["out"] else run.folder
    out.mkdir(parents=True, exist_ok=True)
    known = manifest.read(run.folder)
    asked, blank = questions.of_log(config["queries"]) if config["queries"] else ({}, 0)
    if now is None:
        log.info("reading today's passages ...")
        now = today.read(run, known, config["documents"])
    differences = between(known, now.texts, now.units)
    log.info("%d new or changed of %d passages", len(differences.fresh), len(now.passages))
    _, encoder = run.tuned()
    found, remarks = _measured(run, known, now, differences, asked, encoder, config, out)
    remarks += [f"{counted(blank, 'row')} of the log had no question."] if blank else []
    remarks += [OF_STATIC] if run.config["model"].get("kind") == "static" else []
    level, reasons = verdict(found, config)
    return _record(run, now, found, (level, reasons), remarks, config), out


def _measured(
    run: Finished, known: Manifest, now: today.Today, differences: Differences, asked: Mapping[str, str],
    encoder: Encoder, config: Mapping[str, Any], out: Path,
) -> tuple[Found, list[str]]:  # fmt: skip
    seed, remarks = config["seed"], []
    shifted = asked_shift = recalled = None
    if differences.fresh:
        settings = config["shift"]
        sides = shift.sides_of(now, differences, known, least=settings["least_documents"], trained=True)
        shifted = shift.of_passages(sides, now.texts, encoder, settings=settings, seed=seed)
        if shifted is None:
            remarks.append(
                f"The embeddings were not tested: {len(sides.new)} documents with something new and {len(sides.known)} "
                f"that are as they were; {settings['least_documents']} of each are needed."
            )
        remarks += _left_out("the test of embeddings", sides)
        settings = config["recall"]
        sides = shift.sides_of(now, differences, known, least=settings["least_documents"], trained=False)
        with _miner(run, known, config, out, remarks) as miner:
            funnel = build(_filter(known), allowed=run.config["allowed_packages"])
            recalled = recall.measured(now, sides, encoder, miner=miner, funnel=funnel, settings=settings, seed=seed)
        if recalled is None:
            remarks.append("Recall was not measured: too few documents gave questions.")
        remarks += _left_out("recall", sides)
    if asked:
        groups, texts, why_not = questions.of_run(run, known)
        if why_not is None:
            asked_shift = shift.of_questions(asked, groups, texts, encoder, settings=config["shift"], seed=seed)
            why_not = "there are too few" if asked_shift is None else None
        if why_not is not None:
            remarks.append(f"The log's questions were not tested: {why_not}.")
    return Found(differences, shifted, asked_shift, recalled), remarks


def _left_out(what: str, sides: Sides) -> list[str]:
    """What a reader would take for looked at."""
    if not sides.left_out:
        return []
    return [
        f"Left out of {what}: {len(sides.left_out):,} of {len(sides.left_out) + len(sides.new):,} documents with "
        "something new. Training had questions either on these or on those compared, and that alone makes a difference."
    ]


def _record(
    run: Finished, now: today.Today, found: Found, said: tuple[str, list[str]], remarks: list[str],
    config: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    differences, at = found.differences, f"recall@{config['recall']['at']}"
    named = ("new_documents", "changed_documents", "removed_documents")
    return {
        "embexp": __version__,
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "run": run.folder.name,
        "verdict": said[0],
        "reasons": said[1],
        "remarks": remarks + ([f"Not read: {listed(now.unreadable)}."] if now.unreadable else []),
        "share": differences.share,
        **differences.counts,
        "names": {name: list(getattr(differences, name)[:MOST_NAMED]) for name in named},
        "shift": asdict(found.shift) if found.shift else None,
        "questions": {**asdict(found.questions), "unlike": None} if found.questions else None,  # ids are the questions
        "recall": asdict(found.recalled) if found.recalled else None,
        "own_test": {at: ((run.result["tuned"] or {}).get("test") or {}).get(at)},
        "config": dict(config),
    }


@contextmanager
def _miner(run: Finished, known: Manifest, config: Mapping[str, Any], out: Path, remarks: list[str]) -> Iterator[Miner]:
    """The miner of sentences, or the LLM that the run's data set was mined with, which keeps its answers in `out`.

    remarks: where it is said that the LLM stopped before all was asked.
    """
    mining, allowed = known.mining, run.config["allowed_packages"]
    own = None if mining is None else mining["miner"]
    if config["recall"]["miner"] == "sentences":
        node = own if own is not None and own["_target_"] == SENTENCES else _file("miner/sentences")
        yield build(node, allowed=allowed)(client=None)
        return
    if mining is None or own is None or own["_target_"] == SENTENCES:
        raise UserError("recall.miner=run: the run's data set was not mined with an LLM; leave it out (sentences)")
    server = build(mining["llm"], allowed=allowed)
    log.info("asking %s at %s", server.model, server.address)
    budget = Budget(**config["budget"])
    with Client(server, journal=out / "answers.jsonl", budget=budget, prices=mining["prices"]["models"]) as client:
        yield build(own, allowed=allowed)(client=client)
        if (why := client.stopped or unanswered(client)) is not None:
            remarks.append(f"Not all passages were asked about: {why}.")


def _filter(known: Manifest) -> Mapping[str, Any]:
    return _file("filter/default") if known.mining is None else known.mining["filter"]


def _file(name: str) -> dict[str, Any]:
    """A file in conf/, as plain values."""
    return OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / f"{name}.yaml"))  # type: ignore[return-value]


def _with_packages(config: Mapping[str, Any], packages: list[str]) -> dict[str, Any]:
    return {**config, "allowed_packages": [*config["allowed_packages"], *packages]}
