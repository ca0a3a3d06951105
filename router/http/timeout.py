"""How long the caller of an HTTP request waits for it."""

import math
from collections.abc import Mapping

from rayline.protos.errors import out_of_range

TIMEOUT_HEADER = "x-rayline-timeout-s"
OPENAI_HEADER = "x-stainless-read-timeout"  # openai's clients: how long they wait for the next byte


def seconds_of(headers: Mapping[str, str], *, streams: bool) -> float | None:
    """What the headers say, None for no limit. Raises InvalidRequest for a number that is no time.

    A whole answer has one first byte, its last: there openai's clients say when they go away.
    """
    timeout_s = None
    if (asked := headers.get(TIMEOUT_HEADER)) is not None:
        timeout_s = _seconds(asked)
        if timeout_s is None:
            raise out_of_range(TIMEOUT_HEADER, asked, "seconds above 0")
    if streams or (read_s := _seconds(headers.get(OPENAI_HEADER, ""))) is None:
        return timeout_s
    return read_s if timeout_s is None else min(timeout_s, read_s)


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0.0 < seconds < math.inf else None
