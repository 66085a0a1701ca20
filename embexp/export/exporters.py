"""Writes a model in other formats: half precision, ONNX (also in 8 bits) and OpenVINO. Called by `exported`.

A graph takes token ids and gives `sentence_embedding`, pooling and all later modules included, so that a server needs
neither torch nor sentence-transformers. The latter's own backends are not used, since they can't be installed beside
it: optimum-onnx and optimum-intel ask for older versions of transformers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from embexp.errors import UserError
from embexp.export.formats import ONNX_FILE, OPENVINO_FILE
from embexp.models.embedding_model import EmbeddingModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "sentence_embedding"
LARGEST_IN_ONE_FILE = 1_500_000_000  # bytes; an ONNX file ends at 2 GB, weights are put beside it from here on


def _write_fp16(model: EmbeddingModel, folder: Path) -> None:
    model.model.half().save_pretrained(str(folder), create_model_card=False)


def _write_onnx(model: EmbeddingModel, folder: Path) -> None:
    graph, example = _graph_with_example(model)
    _save_beside(model, folder, ONNX_FILE)
    size = sum(weights.numel() * weights.element_size() for weights in model.model.parameters())
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}  # texts, tokens
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            graph,
            tuple(example.values()),
            str(folder / ONNX_FILE),
            input_names=list(example),
            output_names=[OUTPUT],
            dynamic_shapes=(tuple(free for _ in example),),
            dynamo=True,
            verbose=False,
            external_data=size > LARGEST_IN_ONE_FILE,
        )


def _write_onnx_int8(model: EmbeddingModel, folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _write_onnx(model, folder)
    whole = folder / ONNX_FILE
    with _quiet():
        small = whole.with_name("int8.onnx")
        quantize_dynamic(str(whole), str(small), weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    for file in whole.parent.glob("model.onnx*"):
        file.unlink()
    small.rename(whole)


def _write_openvino(model: EmbeddingModel, folder: Path) -> None:
    import openvino

    graph, example = _graph_with_example(model)
    _save_beside(model, folder, OPENVINO_FILE)
    with _quiet(), torch.no_grad():
        converted = openvino.convert_model(graph, example_input=tuple(example.values()))
    for port, name in zip(converted.inputs, example, strict=True):
        port.get_tensor().set_names({name})
    converted.outputs[0].get_tensor().set_names({OUTPUT})
    openvino.save_model(converted, str(folder / OPENVINO_FILE), compress_to_fp16=False)


WRITERS: dict[str, Callable[[EmbeddingModel, Path], None]] = {
    "fp16": _write_fp16,
    "onnx": _write_onnx,
    "onnx_int8": _write_onnx_int8,
    "openvino": _write_openvino,
}


class _Graph(torch.nn.Module):
    """The whole model as a function of tensors alone."""

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self._model, self._names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The texts' vectors, (texts, dimensions), from tensors of token ids and the like, each (texts, tokens)."""
        return self._model(dict(zip(self._names, tensors, strict=True)))[OUTPUT]


def _graph_with_example(model: EmbeddingModel) -> tuple[_Graph, dict[str, torch.Tensor]]:
    """The graph with two texts of different lengths, from which an exporter learns what varies."""
    if model.model.transformers_model is None:
        raise UserError("this format is for transformers, and the model is none; format=fp16 takes any")
    if model.facts.routed:
        raise UserError(
            "this format has one way for all texts, and the model embeds queries otherwise than passages; "
            "format=fp16 takes any"
        )
    if _backend(model) is None:
        raise UserError(
            "this format needs a fast tokenizer, and the model's is written in Python; format=fp16 takes any"
        )
    if any(not getattr(module, "include_prompt", True) for module in model.model):
        raise UserError("this format can't leave a prompt out of the mean, as this model does; format=fp16 takes any")
    model.model.to("cpu").eval()
    model.model.transformers_model.set_attn_implementation("eager")  # the one that every exporter knows
    features = model.model.preprocess(["a text with some words", "another"])
    example = {name: features[name] for name in INPUTS if name in features}
    return _Graph(model.model, tuple(example)), example


def _save_beside(model: EmbeddingModel, folder: Path, file: str) -> None:
    """All but the weights, which the graph holds; the tokenizer cuts and pads by itself."""
    model.model.save_pretrained(str(folder), create_model_card=False)
    for weights in folder.rglob("*.safetensors*"):
        weights.unlink()
    backend = Tokenizer.from_str(_backend(model).to_str())
    tokenizer, longest = model.model.tokenizer, model.model.max_seq_length
    backend.enable_truncation(longest)
    side, token = tokenizer.padding_side, tokenizer.pad_token
    backend.enable_padding(direction=side, pad_id=tokenizer.pad_token_id, pad_token=token)
    backend.save(str(folder / "tokenizer.json"))
    (folder / file).parent.mkdir()


def _backend(model: EmbeddingModel) -> Any:
    return getattr(model.model.tokenizer, "backend_tokenizer", None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell of every operator that they meet."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
