"""What one thread does with a model that other threads use too is said by context variables, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


@contextmanager
def set_within(variable: ContextVar, value: Any) -> Iterator[None]:
    """Within, the variable has this value, for this thread alone."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
