"""How long the caller of an HTTP request waits for it."""

import math
from collections.abc import Mapping

from rayline.protos.errors import out_of_range

TIMEOUT_HEADER = "x-rayline-timeout-s"
OPENAI_HEADER = "x-stainless-read-timeout"  # openai's clients: how long they wait for the next byte


def seconds_of(headers: Mapping[str, str], *, is_streamed: bool) -> float:
    """What the headers say, inf for no limit. Raises InvalidRequest for a number that is no time.

    A whole answer has one first byte, its last: there openai's clients say when they go away.
    """
    within_s = math.inf
    if (asked := headers.get(TIMEOUT_HEADER)) is not None and not 0.0 < (within_s := _number(asked)) < math.inf:
        raise out_of_range(TIMEOUT_HEADER, asked, "seconds above 0")
    read_s = math.inf if is_streamed else _number(headers.get(OPENAI_HEADER, ""))
    return min(within_s, read_s) if read_s > 0.0 else within_s


def _number(text: str) -> float:
    """nan for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
