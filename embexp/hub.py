"""Fetches a model or data set from the Hugging Face Hub, or finds it in the Hub's cache, at a recorded commit.

Called by `models.sources` and `datasets.parquet`. Without a network the cache answers, else the error says what to do.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from embexp import libraries
from embexp.errors import UserError

log = logging.getLogger(__name__)


def snapshot(
    repository: str, *, revision: str | None, kind: Literal["model", "dataset"], files: Sequence[str], instead: str
) -> tuple[Path, str]:
    """The local folder and the commit of a Hub repository's files that match the patterns `files`.

    A commit already in the cache is used without a request. A branch, a tag or no revision is looked up on the Hub;
    when the Hub does not answer, the copy in the cache is used and said so.
    Raises UserError, which ends with the text `instead`, when the files can be had neither way.
    """
    from huggingface_hub import constants, snapshot_download  # not needed for local models and data
    from huggingface_hub.errors import LocalEntryNotFoundError

    libraries.hide_downloads()

    def fetch(*, offline: bool) -> Path:
        return Path(
            snapshot_download(
                repository,
                repo_type=kind,
                revision=revision,
                allow_patterns=list(files),
                local_files_only=offline,
                etag_timeout=5,
            )
        )

    is_commit = re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None
    if is_commit:
        try:
            return _checked(fetch(offline=True), files, repository)
        except Exception:  # not in the cache, or not whole: ask the Hub
            log.debug("%s is not in the cache at %s", repository, revision)
    reachable = _reachable(constants.ENDPOINT)
    if reachable:
        log.info("fetching %s from %s ...", repository, constants.ENDPOINT)
    try:
        return _checked(fetch(offline=not reachable), files, repository)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        # what the library says then is to switch the network on, which is no help where there is none
        cause = "" if isinstance(error, LocalEntryNotFoundError) else f" ({type(error).__name__}: {first})"
        where = f"{repository}{f' at revision {revision}' if revision else ''}"
        state = "" if reachable else f"the Hub ({constants.ENDPOINT}) can't be reached and "
        raise UserError(f"{kind} {where} can't be had: {state}the cache does not hold it{cause}. {instead}") from error


def _reachable(endpoint: str) -> bool:
    """Whether the Hub answers at all within 5 s; the client's own retries would take minutes to say so."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(endpoint, timeout=5)
    except Exception as error:  # the client's HTTP library differs by version, and so do its errors
        log.warning("%s does not answer (%s); looking in the cache", endpoint, type(error).__name__)
        return False
    return True


def _checked(folder: Path, files: Sequence[str], repository: str) -> tuple[Path, str]:
    if not any(path.is_file() for pattern in files for path in folder.glob(pattern)):
        raise FileNotFoundError(f"{repository} has no file like {', '.join(files)}")
    return folder, folder.name  # the cache names a snapshot's folder after its commit
