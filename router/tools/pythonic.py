"""`[get_weather(city="Paris"), add(a=1, b=2)]` as the whole answer: Llama 4, Llama 3.2, ToolACE, Gemma.

Values are Python or JSON literals. A call is told when it is complete: only then its literals are known.
"""

import ast
import warnings
from typing import Any

from rayline.router.tools.json_calls import MAX_NAME
from rayline.router.tools.mistral import read_list
from rayline.router.tools.output import Output
from rayline.router.tools.prose import give_up, read_prose
from rayline.router.tools.source import Reading, Source
from rayline.router.tools.values import as_json

START, END = "<|python_start|>", "<|python_end|>"
MAX_CALL = 1 << 18  # characters of one call
_NAMES = {"true": True, "false": False, "null": None}


def pythonic(source: Source, output: Output) -> Reading[None]:
    """Without the marker, a list at the very beginning holds calls when they name tools: lists are also prose."""
    yield from source.blanks()
    yield from _list(source, output)
    while (yield from read_prose(source, output, (START,))):
        yield from _list(source, output)


def _list(source: Source, output: Output) -> Reading[None]:
    if (yield from source.marker(START)):
        source.skip(START)
        yield from source.blanks()
    if (yield from source.peek()) == "[":
        yield from _calls(source, output)
        yield from _end(source, output)
    give_up(source, output)


def _end(source: Source, output: Output) -> Reading[None]:
    if (yield from source.marker(END)):
        source.skip(END)
        if output.calls:
            source.settle()


def _calls(source: Source, output: Output) -> Reading[None]:
    if (yield from _holds_objects(source)):  # what a forced call looks like
        yield from read_list(source, output)
        return
    while True:
        call = yield from _call(source, output)
        if call is None:
            return
        output.begin(call[0])
        output.arguments(call[1])
        source.settle()
        yield from source.blanks()
        if not (marker := (yield from source.marker(",", "]"))):
            return
        source.skip(marker)
        if marker == "]":
            source.settle()
            return
        yield from source.blanks()


def _holds_objects(source: Source) -> Reading[bool]:
    """Read the bracket when calls follow it; leave it where an object does."""
    seen = 1
    while True:
        after = source.rest[seen:].lstrip()
        if after or source.ended:
            break
        yield
    if after.startswith("{"):
        return True
    source.take(1)
    yield from source.blanks()
    return False


def _call(source: Source, output: Output) -> Reading[tuple[str, str] | None]:
    """(name, arguments as JSON) of the call that comes next, None when none does."""
    name = yield from _name(source)
    if name not in output.tools:
        return None
    arguments = yield from _parentheses(source)
    if arguments is None:
        return None
    try:
        return name, as_json(dict(_argument(text) for text in arguments if text.strip() or len(arguments) > 1))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None


def _name(source: Source) -> Reading[str]:
    """A dotted name; a hyphen is no Python, but functions are called so."""
    name = ""
    while True:
        character = yield from source.peek()
        if not (character.isalnum() or character in ("_", ".", "-")) or len(name) > MAX_NAME:
            return name
        name += source.take(1)


def _parentheses(source: Source) -> Reading[list[str] | None]:
    """What stands between "(" and the ")" that closes it, cut at its commas, not at those in strings and lists."""
    if (yield from source.peek()) != "(":
        return None
    source.take(1)
    parts: list[list[str]] = [[]]
    depth, quote = 1, ""
    for _ in range(MAX_CALL):
        character = yield from source.peek()
        if not character:
            return None
        source.take(1)
        if quote:
            if character == "\\":
                character += (yield from source.peek()) and source.take(1)
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return ["".join(part) for part in parts]
        if depth == 1 and character == "," and not quote:
            parts.append([])
        else:
            parts[-1].append(character)
    return None


def _argument(text: str) -> tuple[str, Any]:
    """(name, value) of `name=literal`; the name may be one that Python keeps for itself. Raises ValueError."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise ValueError(f"{text!r} is no keyword argument")
    with warnings.catch_warnings(action="ignore"):  # escapes that Python warns of are kept as they are
        return name.strip(), _literal(ast.parse(value.strip(), mode="eval").body)


def _literal(node: ast.expr) -> Any:
    """The value of a literal. Raises ValueError for anything that would have to be computed."""
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_key(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True)}
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"{type(value).__name__} has no JSON")
    return value


def _key(node: ast.expr | None) -> str:
    key = None if node is None else _literal(node)
    if not isinstance(key, str):
        raise ValueError("keys of a JSON object are strings")
    return key
