"""Where a reader of server-sent events is: the id of each event, which comes back as Last-Event-ID.

17               one choice: the index of the event
17:5.6.6         three choices: also how many events of each came so far
17:9.8/12:6.6    two prompts, each with its own
"""

from collections.abc import Sequence

from rayline.protos.errors import InvalidRequest
from rayline.protos.position import Position, Reading


def event_id(readings: Sequence[Reading]) -> str:
    """The id of the event that was just read. A prompt of which nothing came yet has an empty place."""
    return "/".join([_place(reading.position, reading.choices) for reading in readings])


def positions_of(last_event_id: str | None, prompts: int) -> list[Position]:
    """Where each prompt's stream goes on. Raises InvalidRequest for an id that is none of ours."""
    if last_event_id is None:
        return [Position()] * prompts
    places = last_event_id.split("/")
    if len(places) != prompts:
        raise _unknown(last_event_id)
    try:
        return [_position(place) for place in places]
    except ValueError:
        raise _unknown(last_event_id) from None


def _place(position: Position, choices: int) -> str:
    if not position.next_index:
        return ""
    index = str(position.next_index - 1)
    return index if choices == 1 else f"{index}:{'.'.join(map(str, position.seen))}"


def _position(place: str) -> Position:
    """Raises ValueError."""
    if not place:
        return Position()
    index, _, seen = place.partition(":")
    return Position(_count(index) + 1, tuple(_count(count) for count in seen.split(".")) if seen else ())


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise ValueError(text)
    return int(text)


def _unknown(last_event_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"last-event-id = {last_event_id!r} is not the id of an event of this stream", field="last-event-id"
    )
