"""Reads back what a run has kept offline for wandb, since wandb itself has no reader of its files."""

from __future__ import annotations

import json
import struct


def records(file):
    """The records of a .wandb file: 7 bytes of header, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B", data[:7]
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # too short for a header: padding
            place += left
            continue
        _crc, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            yield Record.FromString(parts)
            parts = b""


def read_back(file):
    """History rows, config, the summary that was set, tags, group and exit code of an offline run.

    What wandb itself adds to the summary from the history is written some time later or, at times, not at all.
    """
    kinds = {}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        kinds.setdefault(kind, []).append(getattr(record, kind))

    def plain(items):
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    summary = {name: value for each in kinds.get("summary", ()) for name, value in plain(each.update).items()}
    run, end = kinds["run"][0], kinds["exit"][-1]
    history = [plain(row.item) for row in kinds.get("history", ())]
    return history, plain(run.config.update), summary, list(run.tags), run.run_group, end.exit_code


def runs(folder):
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
