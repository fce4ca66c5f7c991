"""Whether the Hub or the network failed on the way, which says nothing of what is on the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

# The base of all that goes wrong in httpx or httpx2, whichever huggingface_hub uses.
HTTP_ERROR = HfHubHTTPError.__bases__[0]

# LocalEntryNotFoundError is what stands for every 5xx, 429 and timeout of a download; ArrowInvalid is a file that is
# cut off or garbled, JSONDecodeError an answer that is not the Hub's. Some of them are ValueErrors or
# FileNotFoundErrors, and `datasets` makes such of others, which look as if the data set were not there.
BROKEN = (LocalEntryNotFoundError, HTTP_ERROR, ConnectionError, TimeoutError, pa.ArrowInvalid, json.JSONDecodeError)


def interruption(error: BaseException) -> BaseException | None:
    """What broke the way to the Hub, among all that led to `error`; None: `error` has another reason.

    Of several it is what says most: the Hub's answer, then what the network or the file says.
    """
    found = [each for each in _led_to(error) if isinstance(each, BROKEN) and _may_pass(each)]
    found.sort(key=lambda each: (isinstance(each, LocalEntryNotFoundError), _status(each) is None))
    return found[0] if found else None


def _may_pass(error: BaseException) -> bool:
    """False for an answer that would be the same another time, such as 404."""
    status = _status(error)
    return status is None or status in (408, 429) or status >= 500


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _led_to(error: BaseException) -> Iterator[BaseException]:
    """`error`, and what it was raised from or while handling, nearest first; also behind `from None`."""
    pending: list[BaseException | None] = [error]
    seen: list[BaseException] = []
    while pending:
        each = pending.pop(0)
        if each is not None and not any(each is other for other in seen):
            seen.append(each)
            pending += [each.__cause__, each.__context__]
            yield each
