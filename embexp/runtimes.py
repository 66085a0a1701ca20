"""Embeds with an exported model, by ONNX Runtime or OpenVINO: what a server needs, without torch. Called by `exported`.

model = load("exports/onnx")
scores = model.encode_query(["..."]) @ model.encode_document(["..."]).T
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from embexp.errors import UserError
from embexp.models.folder import STAMP
from embexp.stamp import read

TENSORS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "sentence_embedding"
Tokens = Mapping[str, np.ndarray]  # each (texts, tokens), int64


class Runtime:
    """An exported model in memory."""

    def __init__(
        self, tokenizer: Tokenizer, run: Callable[[Tokens], np.ndarray], *, prompts: Mapping[str, str], dimensions: int
    ) -> None:
        """run: tokens -> (texts, dimensions). prompts: `query` and `passage`."""
        self.tokenizer, self.run, self.prompts, self.dimensions = tokenizer, run, prompts, dimensions

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Unit vectors of questions, (texts, dimensions) float32."""
        return self._encoded([self.prompts["query"] + text for text in texts], batch_size)

    def encode_document(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Unit vectors of passages, (texts, dimensions) float32."""
        return self._encoded([self.prompts["passage"] + text for text in texts], batch_size)

    def tokens(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What the graph reads of texts that have their prompts, cut and padded."""
        found = self.tokenizer.encode_batch(list(texts))
        columns = (
            [each.ids for each in found],
            [each.attention_mask for each in found],
            [each.type_ids for each in found],
        )
        return {name: np.asarray(column, dtype=np.int64) for name, column in zip(TENSORS, columns, strict=True)}

    def _encoded(self, texts: list[str], batch_size: int) -> np.ndarray:
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        parts = [self.run(self.tokens(texts[at : at + batch_size])) for at in range(0, len(texts), batch_size)]
        rows = np.concatenate(parts).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def load(folder: Path | str, *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Runtime:
    """The exported model in a folder, which several threads may use at once.

    providers: of ONNX Runtime, the preferred first, such as CUDAExecutionProvider; OpenVINO chooses by itself. Raises
    UserError when there is no export, its runtime is not installed, or has no such provider.
    """
    folder = Path(folder)
    stamp = read(folder / STAMP)
    for file, runner in (
        (folder / "onnx" / "model.onnx", partial(_onnx, providers=providers)),
        (folder / "openvino" / "openvino_model.xml", _openvino),
    ):
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            return Runtime(tokenizer, runner(file), prompts=stamp["prompts"], dimensions=stamp["dimensions"])
    raise UserError(f"{folder} has no onnx/model.onnx and no openvino/openvino_model.xml; SentenceTransformer loads it")


def _onnx(file: Path, *, providers: Sequence[str]) -> Callable[[Tokens], np.ndarray]:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{file} needs onnxruntime: pip install onnxruntime") from error
    there = onnxruntime.get_available_providers()
    if missing := [name for name in providers if name not in there]:  # it would go on without them
        raise UserError(f"this onnxruntime has no {', '.join(missing)}; it has {', '.join(there)}")
    session = onnxruntime.InferenceSession(str(file), providers=list(providers))
    read = [each.name for each in session.get_inputs()]
    return lambda tokens: session.run([OUTPUT], {name: tokens[name] for name in read})[0]


def _openvino(file: Path) -> Callable[[Tokens], np.ndarray]:
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"{file} needs openvino: pip install openvino") from error
    model: Any = openvino.Core().compile_model(str(file), "AUTO")
    read = [each.get_any_name() for each in model.inputs]

    def run(tokens: Tokens) -> np.ndarray:
        request = model.create_infer_request()  # of its own: the model's is refused to a second thread while it is busy
        return np.asarray(request.infer({name: tokens[name] for name in read})[OUTPUT])

    return run
