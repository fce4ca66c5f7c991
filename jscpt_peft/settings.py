"""Values are checked where they are given, by the annotations and the metadata of a dataclass's fields."""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping
from dataclasses import field, fields
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .choices import check_choice

BOUNDS = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}
"""Keys of a field's metadata that bound a number; another key that counts is `choices`."""

NAMES = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a string",
    list: "a list",
    dict: "a mapping",
    NoneType: "None",
}
type_hints = cache(get_type_hints)


def setting(default: Any, text: str, **limits: Any) -> Any:
    """A field of a dataclass.

    Args:
        default: its default.
        text: its help.
        limits: `BOUNDS` of a number, `choices` of a word; and what else its metadata are to say.
    """
    return field(default=default, metadata={"help": text, **limits})


def check_settings(
    settings: Any,
    annotations: Mapping[str, Any] | None = None,
    limits: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Checks every field of a dataclass instance; to be called by its `__post_init__`.

    Args:
        settings: it.
        annotations: of fields whose own ones say too little or too much.
        limits: of inherited fields: name -> what their metadata would say.

    Raises:
        ValueError: a value is of another type, no number, out of its bounds or none of the choices.
    """
    hints = {**type_hints(type(settings)), **(annotations or {})}
    for each in fields(settings):
        more = {} if limits is None else limits.get(each.name, {})
        check_setting(each.name, getattr(settings, each.name), hints[each.name], {**each.metadata, **more})


def check_setting(argument: str, value: Any, annotation: Any, limits: Mapping[str, Any]) -> None:
    """Checks one value.

    Args:
        argument: its name.
        value: it.
        annotation: what it may be; a whole number will do for a `float`, `True` is no number, NaN and infinities
            are none.
        limits: `BOUNDS` of a number, `choices` of a word.

    Raises:
        ValueError: it is none of that; the message names the argument, the value and what would do.
    """
    _check_type(argument, value, annotation)
    if value is None:
        return
    if "choices" in limits:
        check_choice(argument, value, limits["choices"])
    for name, (holds, words) in BOUNDS.items():
        if name in limits and not holds(value, limits[name]):
            raise ValueError(f"`{argument}` must be {words} {limits[name]}, got {value!r}.")


def _check_type(argument: str, value: Any, annotation: Any) -> None:
    kinds = _kinds(annotation)
    kind = next((each for each in kinds if _fits(value, each)), None)
    if kind is None:
        for choices in filter(_is_enumeration, kinds if isinstance(value, str) else ()):
            check_choice(argument, value, [each.value for each in choices])
        text = repr(value)
        text = text if len(text) <= 100 else text[:97] + "..."
        raise ValueError(f"`{argument}` must be {' or '.join(map(_named, kinds))}, got {text}.")
    inner = get_args(kind)
    if get_origin(kind) is list:
        for position, each in enumerate(value):
            _check_type(f"{argument}[{position}]", each, inner[0])
    elif get_origin(kind) is dict:
        for key, each in value.items():
            _check_type(f"key {key!r} of {argument}", key, inner[0])
            _check_type(f"{argument}[{key!r}]", each, inner[1])


@cache
def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; beside an enumeration `str` stands for its values alone."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(kind for kind in kinds if kind is not str or not any(map(_is_enumeration, kinds)))


def _is_enumeration(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, whatever is inside it."""
    origin = get_origin(kind) or kind
    if origin is Any:
        return True
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in get_args(kind))
    if origin in (int, float) and isinstance(value, bool):
        return False
    if origin is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # NaN is not
    if origin is int:
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if origin is list:
        return isinstance(value, list | tuple)
    if _is_enumeration(origin) and isinstance(value, str):
        return value in [each.value for each in origin]
    return isinstance(value, origin)


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if _is_enumeration(kind):
        return "one of " + ", ".join(repr(each.value) for each in kind)
    origin = get_origin(kind) or kind
    return NAMES.get(origin, f"a {origin.__name__}")
