"""Calls that models write as JSON objects: {"name": "f", "arguments": {...}}, in any order of the members."""

import json
from collections.abc import Callable, Collection

from rayline.router.tools.json_text import JsonText
from rayline.router.tools.output import Output
from rayline.router.tools.source import Reading, Source

ARGUMENTS = ("arguments", "parameters")
MEMBERS = ("name", *ARGUMENTS, "id", "type")  # what a call may begin with
MAX_NAME = 256  # characters of a function's name


def read_call(source: Source, output: Output, known: Collection[str] | None = None) -> Reading[bool]:
    """Read the object that comes next. False when it is no call; what it had not told yet is raw.

    The call begins as soon as its name is known and its arguments come, which are told as they come. `known`: the
    names a call may have, None for any.
    """
    call = _Call(output, known)
    source.take(1)
    closer = yield from _next(source)
    while closer != "}":
        if not (yield from _member(source, call)):
            return False
        closer = yield from _next(source)
        if closer not in (",", "}"):
            return False
        if closer == ",":
            source.take(1)
            yield from source.blanks()
    if not call.complete():
        return False
    source.take(1)
    source.settle()
    return True


def read_arguments(source: Source, output: Output) -> Reading[bool]:
    """Tell the JSON object that comes next as the last call's arguments. False when it breaks off."""
    return (yield from _value(source, output.arguments, settles=True))


class _Call:
    """A call whose members have been read in part."""

    def __init__(self, output: Output, known: Collection[str] | None):
        self.output = output
        self.begun = False
        self._known = known
        self._name: str | None = None
        self._arguments: str | None = None

    def named(self, name: object) -> bool:
        """False when no function can have this name."""
        if not isinstance(name, str) or not is_name(name) or self._name is not None:
            return False
        self._name = name
        return self._known is None or name in self._known

    def begin(self) -> bool:
        """Tell the call's name; False while it is unknown."""
        if self._name is None or self.begun:
            return False
        self.output.begin(self._name)
        self.begun = True
        return True

    def hold(self, arguments: str) -> bool:
        """Arguments that came before the name, or as a string of JSON. False when they are no JSON object."""
        if self._arguments is not None or self.begun or not _is_object(arguments):
            return False
        self._arguments = arguments
        return True

    def complete(self) -> bool:
        """Tell what has been held; False when there is no name."""
        if self.begun:
            return True
        if not self.begin():
            return False
        self.output.arguments(self._arguments or "{}")
        return True


def _member(source: Source, call: _Call) -> Reading[bool]:
    key = yield from _collect(source)
    if not isinstance(key, str) or (key not in MEMBERS and not call.begun):
        return False
    if (yield from _next(source)) != ":":
        return False
    source.take(1)
    first = yield from _next(source)
    if key == "name":
        return call.named((yield from _collect(source)))
    if key in ARGUMENTS:
        return (yield from _arguments(source, call, first))
    return (yield from _value(source, lambda text: None))


def _arguments(source: Source, call: _Call, first: str) -> Reading[bool]:
    if first == "{" and call.begin():
        source.settle()
        return (yield from read_arguments(source, call.output))
    if first == "{":
        pieces: list[str] = []
        return (yield from _value(source, pieces.append)) and call.hold("".join(pieces))
    value = yield from _collect(source)  # a string of JSON, or null
    return call.hold("{}" if value is None else str(value))


def _next(source: Source) -> Reading[str]:
    yield from source.blanks()
    return (yield from source.peek())


def _collect(source: Source) -> Reading[object]:
    """The value that comes next, as Python has it; False when the text is no JSON."""
    pieces: list[str] = []
    whole = yield from _value(source, pieces.append)
    try:
        return json.loads("".join(pieces)) if whole else False
    except ValueError:
        return False


def _value(source: Source, tell: Callable[[str], None], settles: bool = False) -> Reading[bool]:
    """Read one JSON value. False when the text stops being one, or ends first."""
    value = JsonText()
    while True:
        used, text = value.feed(source.rest)
        source.take(used)
        tell(text)
        if settles:
            source.settle()
        if value.done or value.broken or source.ended:
            return value.done
        yield


def is_name(text: str) -> bool:
    """Whether a function may be called so; half a surrogate pair is not printable."""
    return 0 < len(text) <= MAX_NAME and text.isprintable()


def _is_object(text: str) -> bool:
    try:
        text.encode()
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
