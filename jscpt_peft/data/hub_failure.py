"""Whether the Hub or the network failed on the way, which says nothing of what is on the Hub."""

from __future__ import annotations

import json

import pyarrow as pa
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionResolutionError

# The base of all that goes wrong in httpx or httpx2, whichever huggingface_hub uses.
HTTP_ERROR = HfHubHTTPError.__bases__[0]

# The first two stand for every 5xx, 429 and timeout; ArrowInvalid is a file that is cut off or garbled,
# JSONDecodeError an answer that is not the Hub's. Some of them are ValueErrors or FileNotFoundErrors, and `datasets`
# makes such of others, which look as if the data set were not there.
WITHOUT_REASON = (LocalEntryNotFoundError, RevisionResolutionError)
BROKEN = (*WITHOUT_REASON, HTTP_ERROR, ConnectionError, TimeoutError, pa.ArrowInvalid, json.JSONDecodeError)


def interruption(error: BaseException) -> BaseException | None:
    """What broke the way to the Hub, among all that led to `error`, also behind `from None`.

    Of several it is what says most: the Hub's answer, then what the network or the file says. None: `error` has
    another reason, such as a 404, which would be the same another time.
    """
    led_to = [error]
    for each in led_to:  # grows while it is walked
        led_to += [one for one in (each.__cause__, each.__context__) if one is not None and one not in led_to]
    found = [each for each in led_to if isinstance(each, BROKEN) and _may_pass(_status(each))]
    return min(found, key=lambda each: (isinstance(each, WITHOUT_REASON), _status(each) is None), default=None)


def _may_pass(status: int | None) -> bool:
    return status is None or status in (408, 429) or status >= 500


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
