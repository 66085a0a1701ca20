"""Looks through a model's folder before anything in it is loaded, and refuses what could run code or reach outside.

sentence-transformers imports the classes that a folder's files name, and reads a pickle where safetensors are missing.
Called by `models.embedding_model`; reads JSON and file names only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from embexp.errors import UserError

LOADED = ["*.json", "*.safetensors", "*.txt", "*.model"]  # the files that a model is made of
WEIGHTS = {".safetensors", ".onnx", ".data", ".bin"}
STAMP, EXPORT = "embexp.json", "export.json"  # of `stamp` and `export`: beside the model, no part of it
MODULES = (  # the classes that a folder may name live in these
    "sentence_transformers.models", "sentence_transformers.base.modules",
    "sentence_transformers.sentence_transformer.modules",
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.h5", "*.msgpack")
HARMLESS = {  # what a folder's files may pass to the library's loaders
    "add_pooling_layer", "attn_implementation", "common", "do_lower_case", "dtype", "max_length", "model_max_length",
    "num_labels", "padding", "padding_side", "text", "torch_dtype", "truncation", "truncation_side",
    "trust_remote_code",  # refused on its own unless it is false
    "use_cache",
}  # fmt: skip
RERUN = "Save the model again with SentenceTransformer.save_pretrained, from a source that you trust"


def refuse_unsafe(folder: Path, name: str) -> None:
    """Raise UserError with all that makes the folder unsafe to load; `name` is how the user named it."""
    problems = [f"{name}: {problem}. {RERUN}" for problem in _problems(folder)]
    if problems:
        raise UserError(*dict.fromkeys(problems))


def why_not_loaded(folder: Path, error: Exception) -> str:
    """An error of the library's loader; for an argument that a class does not take, the file that holds it too."""
    taken = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    for file in sorted(folder.rglob("*.json")) if taken else ():
        content = _content(file)
        if taken and isinstance(content, Mapping) and taken[1] in content:
            return f"{file} has {taken[1]!r}, which the installed sentence-transformers does not know"
    return str(error)


def _problems(folder: Path) -> Iterator[str]:
    yield from _links(folder)
    contents = {file: _content(file) for file in sorted(folder.rglob("*.json"))}
    for file, content in contents.items():
        yield from _said(content, file.relative_to(folder))
    modules = contents.get(folder / "modules.json") or []
    if not isinstance(modules, list) or not all(isinstance(module, Mapping) for module in modules):
        yield "modules.json is not a list of modules"
        return
    named = [(folder / "modules.json", module.get("path"), module.get("type")) for module in modules]
    for file, content in contents.items():
        if isinstance(content, Mapping) and isinstance(content.get("types"), Mapping):  # a Router's parts
            named += [(file, path, kind) for path, kind in content["types"].items()]
    places = [folder]
    for file, path, kind in named:
        yield from _class(kind, str(file.relative_to(folder)))
        yield from _path(path, str(file.relative_to(folder)))
        places.append(file.parent / str(path))
    yield from _pickles(folder, places)


def _said(node: Any, file: Path) -> Iterator[str]:
    """Keys, at any depth, that make a library import code, or fetch a model from elsewhere."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ("auto_map", "custom_pipelines") and value:
                yield f"{file} has {key}: code that comes with the model, which is not run"
            if key == "trust_remote_code" and value:
                yield f"{file} has trust_remote_code, which runs code that comes with the model"
            if key == "activation_function" and "." in str(value) and not str(value).startswith("torch.nn.modules."):
                yield f"{file} names the activation {value!r}; only those in torch.nn.modules are taken"
            if key == "tokenizer_class" and "." in str(value):
                yield from _class(value, str(file))
            if key == "weight_map" and isinstance(value, Mapping):
                for part in set(map(str, value.values())):
                    yield from _path(part, str(file))
            if str(key).endswith("attn_implementation") and "/" in str(value):
                yield f"{file} names attention code from elsewhere: {value!r}"
            if key in ("tokenizer_name_or_path", "gguf_file") and value:
                yield f"{file} has {key}, which reads {value!r} instead of the model's own files"
            if str(key).endswith(("_args", "_kwargs")) and isinstance(value, Mapping):
                yield from _arguments(value, f"{file} has {key}")
            if key == "base_model_name_or_path" and file.name == "adapter_config.json":
                yield f"{file} is an adapter of {value!r}, which would be loaded from elsewhere; merge it first"
            yield from _said(value, file)
    elif isinstance(node, list):
        for value in node:
            yield from _said(value, file)


def _arguments(values: Mapping[str, Any], place: str) -> Iterator[str]:
    """Arguments that could make a loader read another file or format, as `use_safetensors` does."""
    for name, value in values.items():
        if name not in HARMLESS:
            yield f"{place}.{name}, which may change what is read; taken are {', '.join(sorted(HARMLESS))}"
        elif isinstance(value, Mapping):
            yield from _arguments(value, f"{place}.{name}")


def _class(reference: Any, file: str) -> Iterator[str]:
    inside = any(str(reference).startswith(f"{place}.") for place in MODULES)
    name = str(reference).rpartition(".")[2]  # a module that such a file imports, torch say, is in lower case
    if not inside or not name[:1].isupper():
        yield f"{file} names the class {reference!r}; only modules of sentence_transformers are loaded"


def _path(path: Any, file: str) -> Iterator[str]:
    text = str(path)
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("\\")
    if not isinstance(path, str) or absolute or ".." in text.replace("\\", "/").split("/"):
        yield f"{file} names the path {path!r}, which leads out of the model's folder"


def _links(folder: Path) -> Iterator[str]:
    """Links that leave the folder; in the Hub's cache a snapshot's files are links into blobs/ of its repository."""
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append(folder.parent.parent.resolve() / "blobs")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in roots):
            yield f"{path.relative_to(folder)} is a link that leads out of the model's folder"


def _pickles(folder: Path, places: Sequence[Path]) -> Iterator[str]:
    """Weights that only a pickle holds, in the folders of modules: the library would read it."""
    if not any(folder.rglob("*.safetensors")):
        yield f"{folder} has no *.safetensors; other formats can run code and are not read"
    for place in places:
        files = sorted(file for pattern in PICKLES for file in place.glob(pattern) if file.name != "training_args.bin")
        if files and not any(place.glob("*.safetensors")):
            yield f"{place.name}/{files[0].name} may be a pickle, which can run code, and no *.safetensors lies beside"


def _content(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever needs it will say so


def hashes(folder: Path, patterns: Sequence[str] = LOADED) -> dict[str, str]:
    """SHA-256 digests of a model's folder: `weights`, of them alone; `content`, of all files that are loaded.

    The model card, the stamp and an export's scores are no part of it.
    """
    weights, content = hashlib.sha256(), hashlib.sha256()
    own = {folder / STAMP, folder / EXPORT}
    for file in sorted({file for pattern in patterns for file in folder.rglob(pattern) if file.is_file()} - own):
        found = sha256(file)
        if file.suffix in WEIGHTS:
            weights.update(found)
        content.update(hashlib.sha256(file.relative_to(folder).as_posix().encode()).digest() + found)
    return {"weights": weights.hexdigest(), "content": content.hexdigest()}


def sha256(file: Path) -> bytes:
    """A file's digest, read once for as long as the system says that it is the same."""
    stat = file.stat()
    return _read_sha256(file, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.cache
def _read_sha256(file: Path, state: tuple[int, ...]) -> bytes:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").digest()
