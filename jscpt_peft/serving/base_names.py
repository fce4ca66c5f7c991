"""What a base model is called to others: by its Hub id, or as a folder that they do not have."""

from __future__ import annotations

import os.path
from pathlib import PureWindowsPath

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


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
    return PureWindowsPath(base).name  # takes both kinds of slashes
