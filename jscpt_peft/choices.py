"""A named choice with a helpful error: the ground that every package stands on."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(value: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the choice nearest to `value`, or nothing where none is near."""
    close = get_close_matches(str(value), list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_choice(argument: str, value: str, choices: Iterable[str]) -> None:
    """Raises a ValueError that names `argument`, its `value` and the nearest of `choices` if it is none of them."""
    choices = tuple(choices)
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"`{argument}` must be one of {known}, got {value!r}.{nearest(value, choices)}")
