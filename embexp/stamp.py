"""What a model's folder is known by, so that an index made with another model is noticed: re-embed required.

`tuning` and `export` write the stamp, embexp.json, beside the weights. Whoever serves the model stores a copy with the
index and checks at start-up. Reads files and nothing else, so that importing it takes no time; needs no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embexp import __version__
from embexp.durable import write_whole
from embexp.errors import UserError
from embexp.models.folder import LOADED, STAMP, hashes

EXPORTED_FILES = ["*.onnx", "*.onnx.data", "openvino*.xml", "openvino*.bin"]
KEYS = ("content", "weights", "dimensions", "max_seq_length", "prompts", "run")


class ReembedError(UserError):
    """An index holds vectors of another model than the one that questions are embedded with."""


def write(
    folder: Path,
    *,
    dimensions: int,
    max_seq_length: int | None,
    prompts: Mapping[str, str],
    run: str,
    **further: Any,
) -> dict[str, Any]:
    """Stamp the model in a folder and return the stamp.

    max_seq_length: in tokens. prompts: `query` and `passage`. run: the name of its run's folder. further: what an
    export adds: `format`; `same_vectors_as`, digests of models whose index it can search; `routed`, true of a model
    that must be told whether a text is a query; `behind`, the endpoint whose vectors saved layers read, and `adapter`,
    their kind.
    """
    stamp = {
        **_digests(folder),
        "dimensions": dimensions,
        "max_seq_length": max_seq_length,
        "prompts": dict(prompts),
        "run": run,
        "embexp": __version__,
        **further,
    }
    write_whole(folder / STAMP, json.dumps(stamp, indent=2) + "\n")
    return stamp


def read(file: Path) -> dict[str, Any]:
    """The stamp in a file. Raises UserError when there is none."""
    try:
        stamp = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{file} is not there: embexp writes {STAMP} beside every model that it trains or exports; store a copy of "
            "it with each index"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read as a stamp ({error}); copy {STAMP} of the model again") from error
    return _whole(stamp, str(file))


def _whole(stamp: Any, where: str) -> dict[str, Any]:
    missing = [key for key in KEYS if not isinstance(stamp, Mapping) or key not in stamp]
    if missing:
        raise UserError(f"{where} is not a stamp: it has no {', '.join(missing)}. Copy {STAMP} of the model")
    return dict(stamp)


def behind(model: Path) -> str | None:
    """The endpoint whose vectors the saved layers in a model's folder read; None for a model that is whole."""
    file = model / STAMP
    found: str | None = read(file).get("behind") if file.is_file() else None
    return found


def of_model(model: Path | str) -> dict[str, Any]:
    """The stamp of a model's folder, once its files are seen to be those that were stamped (0.1 s for 90 MB).

    Raises UserError when there is no stamp, and when a file has changed since.
    """
    folder = Path(model)
    stamp = read(folder / STAMP)
    found = _digests(folder)
    if found["content"] != stamp["content"]:
        what = "the weights" if found["weights"] != stamp["weights"] else "the tokenizer or a setting"
        raise UserError(
            f"{folder}: {what} changed after the model was stamped (content {found['content'][:12]}, stamped "
            f"{stamp['content'][:12]}). Copy the model's folder again, whole"
        )
    return stamp


def check(model: Path | str, index: Path | str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's stamp when an index was made with this model.

    index: the stamp stored with the index, as a file or its content. Raises ReembedError, with what differs, when it
    was made with another, and UserError when a stamp is missing or the model's files are not those that were stamped.
    """
    now = of_model(model)
    then = _whole(index, "the index's stamp") if isinstance(index, Mapping) else read(Path(index))
    if _same_vectors(now, then):
        return now
    different = [key for key in ("weights", "dimensions", "max_seq_length", "prompts") if then[key] != now[key]]
    shown = [f"{key} {_short(then[key])}, now {_short(now[key])}" for key in different]
    raise ReembedError(
        f"re-embed required: the index was made with the model of run {then['run']}, and {model} is of run "
        f"{now['run']} ({'; '.join(shown) or 'the tokenizer or a setting differs'}). Embed all passages again with "
        "this model, or search with the other one"
    )


def _same_vectors(now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    """Whether passages have the same vectors: the same files, or a model that is said to give the same, told alike.

    A run may read passages of its base with a prompt or a length that are not the base's own.
    """
    if now["content"] == then["content"]:
        return True
    told = [(each["prompts"].get("passage") or "", each["max_seq_length"]) for each in (now, then)]
    return bool(_vectors(now) & _vectors(then)) and told[0] == told[1]


def _vectors(stamp: Mapping[str, Any]) -> set[str]:
    """The digests of all models that give these vectors."""
    return {stamp["content"], *stamp.get("same_vectors_as", ())}


def _digests(folder: Path) -> dict[str, str]:
    return hashes(folder, [*LOADED, *EXPORTED_FILES])


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)


def main(words: Sequence[str]) -> int:
    """Show a model's stamp, or compare it with an index's; returns the exit code, 1 for re-embed required."""
    parser = argparse.ArgumentParser(prog="python -m embexp.stamp", description=main.__doc__)
    parser.add_argument("model", help="the model's folder, such as outputs/<date>/<time>/model")
    parser.add_argument("--index", metavar="FILE", help=f"the copy of {STAMP} that was stored with the index")
    arguments = parser.parse_args(words)
    try:
        stamp = check(arguments.model, arguments.index) if arguments.index else of_model(arguments.model)
    except UserError as error:
        print(f"embexp: {error}", file=sys.stderr)
        return 1
    if arguments.index:
        print(f"the index was made with this model ({stamp['content'][:12]}, run {stamp['run']})")
    else:
        print(
            "\n".join(
                f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in stamp.items()
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
