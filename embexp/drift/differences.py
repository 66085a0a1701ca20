"""Which passages are new, changed or gone since a run: the run's manifest held against today's passages.

Called by `drifting`, and by whatever mines or trains only what is new; knows nothing of models or files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embexp.data.manifest import Manifest, digest_of


@dataclass(frozen=True)
class Differences:
    """Ids of passages, in today's order (`removed`: the manifest's), and names of documents.

    | field             | holds                                                                          |
    |-------------------|--------------------------------------------------------------------------------|
    | added             | passages whose id the run did not know                                         |
    | changed           | passages whose id it knew with another text                                    |
    | kept              | passages that are as they were                                                 |
    | removed           | passages that it knew and that are no longer there                             |
    | new_documents     | documents of which it knew nothing                                             |
    | changed_documents | documents that it knew, with passages added, changed or removed                |
    | same_documents    | documents whose passages are all as they were                                  |
    | removed_documents | documents of which nothing is left                                             |

    An id made from the text changes with the text: such a passage is one added and one removed, in a changed document.
    A document under a new name with passages that the run knew is not new.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    new_documents: tuple[str, ...]
    changed_documents: tuple[str, ...]
    same_documents: tuple[str, ...]
    removed_documents: tuple[str, ...]

    @property
    def fresh(self) -> tuple[str, ...]:
        """What the run did not know: added and changed passages."""
        return (*self.added, *self.changed)

    @property
    def share(self) -> float:
        """Of today's passages, those that the run did not know."""
        return len(self.fresh) / (len(self.fresh) + len(self.kept))

    @property
    def counts(self) -> dict[str, Any]:
        """Passages and documents of each kind."""
        passages = {name: len(getattr(self, name)) for name in ("added", "changed", "removed", "kept")}
        named = {"new": "new_documents", "changed": "changed_documents", "same": "same_documents"}
        named |= {"removed": "removed_documents"}
        return {"passages": passages, "documents": {name: len(getattr(self, key)) for name, key in named.items()}}


def between(manifest: Manifest, texts: Mapping[str, str], documents: Mapping[str, str]) -> Differences:
    """Hold today's passages (id -> whole text, id -> document) against what a run knew. Time grows with the texts."""
    kinds: dict[str, list[str]] = {"added": [], "changed": [], "kept": []}
    fresh, known = set[str](), set[str]()  # documents
    for key, text in texts.items():
        kind = (
            "added"
            if key not in manifest.digests
            else "kept"
            if manifest.digests[key] == digest_of(text)
            else "changed"
        )
        kinds[kind].append(key)
        (known if kind == "kept" else fresh).add(documents[key])
    removed = [key for key in manifest.digests if key not in texts]
    before = set(manifest.documents.values())
    lost = {manifest.documents[key] for key in removed}
    found: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(documents[key] for key in texts):
        if name not in before and name not in known:
            found["new"].append(name)
        else:
            found["changed" if name in fresh or name in lost else "same"].append(name)
    today = {documents[key] for key in texts}
    still = {manifest.documents[key] for key in kinds["kept"]}  # perhaps under another name
    gone = sorted(before - today - still)
    return Differences(
        **{kind: tuple(keys) for kind, keys in kinds.items()}, removed=tuple(removed),
        new_documents=tuple(found["new"]), changed_documents=tuple(found["changed"]),
        same_documents=tuple(found["same"]), removed_documents=tuple(gone),
    )  # fmt: skip
