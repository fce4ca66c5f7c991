"""Which commit a branch or tag of a repository is: asked once a run, remembered for when there is no network."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from urllib.parse import quote

import datasets
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

logger = logging.getLogger(__name__)

COMMIT = re.compile("[0-9a-f]{40}")


def commit_of(repository: str, repo_type: str, revision: str | None) -> str:
    """The commit (40 hex digits) that `revision` names; None is the newest.

    Rows are known by their numbers, and copies on disk by the repository's commit: both hold for one commit only.

    Raises:
        FileNotFoundError: offline, and the repository was never looked at before.
        huggingface_hub.errors.RepositoryNotFoundError, RevisionNotFoundError: there is none.
        OSError: it cannot be reached, and was never looked at before.
    """
    revision = revision or "main"
    if COMMIT.fullmatch(revision):
        return revision
    name = quote(f"{repo_type}s/{repository}@{revision}", safe="@")
    remembered = Path(constants.HF_HOME, "jscpt_peft", "revisions", name)
    if datasets.config.HF_HUB_OFFLINE:
        if not remembered.exists():
            raise FileNotFoundError(f"{repository}@{revision} is not in the cache")
        return remembered.read_text(encoding="utf-8")
    try:
        commit = HfApi().repo_info(repository, repo_type=repo_type, revision=revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception as error:  # the network's failures have no common base
        if not remembered.exists():
            raise OSError(f"{repository} cannot be reached ({type(error).__name__}: {error})") from error
        commit = remembered.read_text(encoding="utf-8")
        logger.warning("%s cannot be reached: %s is taken as it was last seen (%s).", repository, revision, commit)
        return commit
    remembered.parent.mkdir(parents=True, exist_ok=True)
    aside = remembered.with_name(f"{name}-{os.getpid()}")
    aside.write_text(commit, encoding="utf-8")
    os.replace(aside, remembered)
    return commit
