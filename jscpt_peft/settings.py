"""Values are checked where they are given, by the annotations of a dataclass.

Annotations say what fields may hold: `seed: int`, `prompt_depth: PositiveInt | None`,
`towers: Annotated[str, OneOf(TOWERS)]`. Parsers and type checkers that know nothing of it see plain types.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cache
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .choices import check_choice


@dataclass(frozen=True)
class Between:
    """Bounds of a number; `low` itself is allowed unless `open_low`, `high` unless `open_high`."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def check(self, argument: str, value: float) -> None:
        if value < self.low or (self.open_low and value == self.low):
            raise ValueError(
                f"`{argument}` must be {'above' if self.open_low else 'at least'} {self.low}, got {value}."
            )
        if value > self.high or (self.open_high and value == self.high):
            words = "below" if self.open_high else "at most"
            raise ValueError(f"`{argument}` must be {words} {self.high}, got {value}.")


class NotBlank:
    """Of a path or a name that is given at all: an empty one would mean the working directory, or nothing."""

    def check(self, argument: str, value: str) -> None:
        if not value.strip():
            raise ValueError(f"`{argument}` is {value!r}: name something, or leave it out.")


class Pattern:
    """Of a regular expression."""

    def check(self, argument: str, value: str) -> None:
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"`{argument}` is {value!r}, no regular expression ({error}): leave it out.") from error


class OneOf:
    """The choices for a word; what a program adds to them later counts too."""

    def __init__(self, choices: Collection[str]) -> None:
        self.choices = choices

    def check(self, argument: str, value: str) -> None:
        check_choice(argument, value, self.choices)


Name = Annotated[str, NotBlank()]

MOST = 1_000_000_000
"""More steps, images, seconds or epochs than any run has: beyond it is a slip, and what follows would overflow."""

PositiveInt = Annotated[int, Between(1, MOST)]
NonNegativeInt = Annotated[int, Between(0, MOST)]
PositiveFloat = Annotated[float, Between(0, MOST, open_low=True)]
NonNegativeFloat = Annotated[float, Between(0, MOST)]
Fraction = Annotated[float, Between(0, 1, open_low=True)]
# What memory is taken by, or what is repeated within a step or a process.
Tokens = Annotated[int, Between(0, 4096)]
Width = Annotated[int, Between(1, 16_384)]
Terms = Annotated[int, Between(0, 10_000)]
BatchSize = Annotated[int, Between(1, 65_536)]
# What multiplies parameters: above it nothing finite is left of them.
Rate = Annotated[float, Between(0, 10_000)]
PositiveRate = Annotated[float, Between(0, 10_000, open_low=True)]

_short = reprlib.Repr()  # of values that may be as large, or as often within themselves, as they like
_short.maxstring = _short.maxother = _short.maxlong = 100

NAMES = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a string",
    list: "a list",
    dict: "a mapping",
    NoneType: "None",
    PathLike: "a path",
}


def setting(default: Any, text: str, **metadata: Any) -> Any:
    """A field of a dataclass with a default, its help and, if need be, other metadata."""
    return field(default=default, metadata={"help": text, **metadata})


@cache
def annotations_of(settings: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, by their names."""
    hints = get_type_hints(settings, include_extras=True)
    return {each.name: hints[each.name] for each in fields(settings)}


def check_settings(settings: Any, annotations: Mapping[str, Any] | None = None) -> None:
    """Checks every field of a dataclass instance; to be called by its `__post_init__`.

    `annotations` are of inherited fields whose own ones say too little or too much.

    Raises:
        ValueError: as `check_setting`.
    """
    for name, annotation in {**annotations_of(type(settings)), **(annotations or {})}.items():
        check_setting(name, getattr(settings, name), annotation)


def path_given(argument: str, value: Any) -> Path:
    """A path that was given as a string or as one; not an empty one, which would mean the working directory.

    Raises:
        ValueError: it is neither.
    """
    check_setting(argument, value, Name | PathLike)
    return Path(value)


def check_setting(argument: str, value: Any, annotation: Any) -> None:
    """Checks that the value of an argument is what an annotation says.

    A whole number will do for a `float`; `True` is no number, NaN and infinities are none; of an enumeration the
    values will do.

    Raises:
        ValueError: it is something else; the message names the argument, the value and what would do.
    """
    kinds = _kinds(annotation)
    kind = next((each for each in kinds if _fits(value, each)), None)
    if kind is None:
        for choices in filter(_is_enumeration, kinds if isinstance(value, str) else ()):
            check_choice(argument, value, [each.value for each in choices])
        raise ValueError(f"`{argument}` must be {' or '.join(map(_named, kinds))}, got {_short.repr(value)}.")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"`{argument}` must be without null characters, got {_short.repr(value)}.")
    inner = get_args(kind)
    if get_origin(kind) is Annotated:
        inner[1].check(argument, value)
    elif get_origin(kind) is list:
        for position, each in enumerate(value):
            check_setting(f"{argument}[{position}]", each, inner[0])
    elif get_origin(kind) is dict:
        for key, each in value.items():
            check_setting(f"key {key!r} of {argument}", key, inner[0])
            check_setting(f"{argument}[{key!r}]", each, inner[1])


@cache
def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; beside an enumeration `str` stands for its values alone."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(kind for kind in kinds if kind is not str or not any(map(_is_enumeration, kinds)))


def _is_enumeration(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _outer(kind: Any) -> Any:
    """`int` of `Annotated[int, ...]`, `list` of `list[str]`."""
    origin = get_origin(kind)
    return get_args(kind)[0] if origin is Annotated else origin or kind


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, whatever is inside it."""
    outer = _outer(kind)
    if outer is Any:
        return True
    if outer is Literal:
        return any(type(value) is type(each) and value == each for each in get_args(kind))
    if outer in (int, float) and isinstance(value, bool):
        return False
    if outer is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # NaN is not
    if outer is int:
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if outer is list:
        return isinstance(value, list | tuple)
    if _is_enumeration(outer) and isinstance(value, str):
        return value in [each.value for each in outer]
    return isinstance(value, outer)


def _named(kind: Any) -> str:
    outer = _outer(kind)
    if outer is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if _is_enumeration(outer):
        return "one of " + ", ".join(repr(each.value) for each in outer)
    return NAMES.get(outer, f"a {outer.__name__}")
