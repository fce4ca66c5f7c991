"""What a base model is called to others: by its Hub id, as the package's own, or as a folder that they do not have."""

from __future__ import annotations

import os.path
from pathlib import PureWindowsPath

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# Where the path `jscpt_peft.assets.TINY_CLIP` ends on every machine; adapters store the whole of it.
PACKAGED = ("jscpt_peft", "assets", "tiny-clip")


def is_packaged(base: str | None) -> bool:
    """Whether a path is that of the package's own CLIP, on this machine or another."""
    return bool(base) and PureWindowsPath(base).parts[-len(PACKAGED) :] == PACKAGED  # takes both kinds of slashes


def is_hub_id(base: str | None) -> bool:
    """Whether a name can be one on the Hub, and is no folder here."""
    if not base or os.path.exists(base):  # `Path.exists` would raise where a folder may not be looked into
        return False
    try:
        validate_repo_id(base)
    except HFValidationError:
        return False
    return True


def public_name(base: str | None) -> str | None:
    """The name of a base model without folders of this machine; None where it has none."""
    if not base or is_hub_id(base):
        return base or None
    return ".".join((*PACKAGED[:-1], "TINY_CLIP")) if is_packaged(base) else PureWindowsPath(base).name
