"""Names: a choice with a helpful error, and how to print them. The ground that every package stands on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

# Control characters, invisible formatting (as of text's direction), halves of characters, ends of lines; but for the
# two joiners that emoji and several scripts are written with.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"
# Fillers that count as letters, marks of variants, and joiners without anything to join.
_INVISIBLE = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
    r"|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)


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


def printable(text: str) -> str:
    r"""`text` on one line, without what a terminal would obey: an escape character becomes `\x1b`.

    Names come from strangers' folders and adapters.
    """
    if text.isascii() and text.isprintable():  # most names, of which there may be many thousands
        return text
    return "".join(
        ascii(each)[1:-1] if unicodedata.category(each) in _UNPRINTABLE and each not in _JOINERS else each
        for each in text
    )


def visible(name: str) -> str:
    """What can be seen of a name: without invisible characters, spaces around it, and forms of accents."""
    if not name.isascii():  # within ASCII both leave it as it is
        name = _INVISIBLE.sub("", unicodedata.normalize("NFC", name))
    return " ".join(name.split())


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that nobody could tell apart on a screen, if there are such."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(visible(name), name)) is not name:
            return other, name
    return None


def markdown(text: str) -> str:
    """`text` as words, or a table's cell, of GitHub Markdown: no markup, HTML, link or image of its own."""
    return re.sub(r"([\\`|<\[*])", r"\\\1", printable(text))
