"""A completed run, opened again: its data, held against what they were then, and its base and tuned models.

Called by `search`, `export`, `drift` and `retrain`. The run's own config says what to load, so a run's folder is
trusted as its config was.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from embexp import stamp
from embexp.cache import digest, folder_of
from embexp.config.components import build
from embexp.data.retrieval_set import Splits
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.experiment import splits_of
from embexp.models.embedding_model import EmbeddingModel, Transformer
from embexp.models.folder import hashes, refuse_unsafe
from embexp.reporting import report as reports
from embexp.reranking.reranker import FOLDER
from embexp.results import result as results
from embexp.rows.teachers import CrossEncoderScores, Judge

log = logging.getLogger(__name__)

LOADED_LIKE_THE_BASE = ("dtype", "attention")  # what a saved model does not know of itself


@dataclass(frozen=True)
class Finished:
    """A run's folder, and the content of its result.json. caps: of an endpoint's budget, instead of the run's."""

    folder: Path
    result: Mapping[str, Any]
    caps: Mapping[str, float] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """The composed config, as plain values."""
        return self.result["config"]

    @property
    def has_model(self) -> bool:
        """Whether a tuned model was kept: not where nothing was trained."""
        return (self.folder / "model").is_dir()

    @property
    def cache_folder(self) -> Path | None:
        """Where the run kept results, an endpoint's vectors among them; None for nowhere."""
        with self.started_from():
            folder = folder_of(self.config["cache"])
            return None if folder is None else folder.absolute()

    def splits(self, *, changed_data: bool, by: str) -> Splits:
        """The run's data. Raises UserError, naming what changed, when they are not as they were.

        changed_data: or says so and goes on. by: how a user asks for that.
        """
        with self.started_from():
            splits = splits_of(self.config)
        found = results.data_digests(splits)
        changed = [name for name, digest in found.items() if digest != self.result["fingerprint"][name]]
        if changed:
            what = f"the data have changed since the run in {self.folder}: {', '.join(changed)}"
            if not changed_data:
                raise UserError(f"{what}. Bring back what the run had; {by} goes on all the same")
            log.warning("%s", what)
        return splits

    def base(self, splits: Splits) -> tuple[EmbeddingModel, Encoder]:
        """The model before training. Raises UserError when it is not the one of then."""
        model = self._loaded(splits.tokenizer_texts)
        return model, Encoder(model, progress="base model", content=model.origin["content"])

    def _loaded(self, texts: Sequence[str]) -> EmbeddingModel:
        with self.started_from():
            source = build(self._node, allowed=self.config["allowed_packages"], without=["kind"])
            model: EmbeddingModel = source.load(texts)
        if model.origin["content"] != self.result["fingerprint"]["model"]["content"]:
            raise UserError(
                f"the base model has changed since the run in {self.folder} (model.path="
                f"{self.config['model'].get('path', 'made from the data')}). Name the same one, or use the tuned alone"
            )
        return model

    @property
    def _node(self) -> Mapping[str, Any]:
        """The config's model, an endpoint's with today's caps."""
        node: Mapping[str, Any] = self.config["model"]
        if not self.caps:
            return node
        if node.get("kind") != "endpoint":
            keys = ", ".join(f"model.budget.{name}" for name in self.caps)
            raise UserError(
                f"{keys} caps what an endpoint is sent, and the base of {self.folder} is none; leave it out"
            )
        return {**node, "budget": {**node["budget"], **self.caps}}

    def tuned(self) -> tuple[EmbeddingModel, Encoder]:
        """The model after training. Raises UserError when the run has none."""
        if not self.has_model:
            raise UserError(f"the run in {self.folder} has no tuned model: nothing was trained")
        if self.behind is not None:
            return self._head()
        chosen = {key: self.config["model"][key] for key in LOADED_LIKE_THE_BASE if key in self.config["model"]}
        model = Transformer(path=str(self.folder / "model"), **chosen).load([])
        return model, Encoder(model, progress="tuned model", content=model.origin["content"])

    def reranker(self) -> tuple[Judge, int, float]:
        """What re-ordered the first passages, how many, and with what weight. Raises UserError when nothing did."""
        found = self.result.get("reranker")  # an older run has no such key
        if not found:
            raise UserError(f"the run in {self.folder} has no reranker; reranker=trained makes a run with one")
        path = str(self.folder / FOLDER) if found["path"] == FOLDER else found["path"]
        with self.started_from():
            return CrossEncoderScores(path, setting="reranker.path"), found["depth"], found.get("weight", 1.0)

    @property
    def behind(self) -> str | None:
        """The endpoint whose vectors the tuned model's layers read; None for a model that is whole."""
        return stamp.behind(self.folder / "model")

    def _head(self) -> tuple[EmbeddingModel, Encoder]:
        from embexp.models.adapters import head_of

        base, folder = self._loaded([]), self.folder / "model"
        refuse_unsafe(folder, f"the run in {self.folder}")
        model = head_of(folder, base, Encoder(base, progress="base model", content=base.origin["content"]))
        content = digest([base.origin["content"], hashes(folder)["content"]])
        return model, Encoder(model, progress="tuned model", content=content)

    @contextlib.contextmanager
    def started_from(self) -> Any:
        """Paths of the config are relative to where the run was started, if that is still there."""
        started = OmegaConf.select(OmegaConf.load(self.folder / ".hydra" / "hydra.yaml"), "hydra.runtime.cwd")
        with contextlib.chdir(started) if Path(started).is_dir() else contextlib.nullcontext():
            yield


def opened(folder: str) -> Finished:
    """The completed run in a folder. Raises UserError when there is none."""
    path = Path(folder).expanduser().absolute()
    if not (path / ".hydra" / "hydra.yaml").is_file():
        inside = sorted(file.parent.name for file in path.glob("*/result.json"))
        hint = f" It holds {len(inside)} runs: name one, such as {path / inside[0]}." if inside else ""
        raise UserError(f"{folder} is not the folder of a run (it has no .hydra/hydra.yaml).{hint}")
    result = reports.read(path)
    if result is None:
        raise UserError(f"{folder}: this run has not ended by itself: python -m embexp resume={folder} goes on with it")
    if result["status"] != "completed":
        raise UserError(
            f"{folder}: this run was not completed, but {result['status']} ({result['error']}); name another"
        )
    return Finished(path, result)
