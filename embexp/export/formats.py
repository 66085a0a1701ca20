"""The formats that a model is exported to: what each is good for and takes. Imports no torch: `export` checks a command
line with it; `exporters` writes them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

ONNX_FILE, OPENVINO_FILE = "onnx/model.onnx", "openvino/openvino_model.xml"


@dataclass(frozen=True)
class Format:
    """A format: the packages that it takes, and what it is good for."""

    needs: tuple[str, ...]
    for_what: str
    graph: str | None = None  # the file that a runtime loads, in place of weights for torch


FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "fp16": Format((), "half the size, for a GPU or a small disk"),
    "onnx": Format(FOR_ONNX, "ONNX Runtime, no torch needed", ONNX_FILE),
    "onnx_int8": Format(FOR_ONNX, "ONNX Runtime in 8 bits, a quarter of the size", ONNX_FILE),
    "openvino": Format(("openvino",), "OpenVINO on Intel's hardware, no torch needed", OPENVINO_FILE),
}


def problem(name: str) -> str:
    """Why nothing can be exported to a format of this name: there is none, or a package is missing; else empty."""
    if name not in FORMATS:
        known = "; ".join(f"{key}: {each.for_what}" for key, each in FORMATS.items())
        return f"format={name}; there are {known}"
    missing = [package for package in FORMATS[name].needs if importlib.util.find_spec(package) is None]
    return f"format={name} needs {', '.join(missing)}: pip install .[export]" if missing else ""
