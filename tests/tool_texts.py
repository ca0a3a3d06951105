"""What models write when they call tools, in each format, with what must come out of it."""

from collections.abc import Callable
from dataclasses import dataclass

from rayline.protos.events import ToolCallDelta
from rayline.router.tools.formats import FORMATS
from rayline.router.tools.output import CallIds, Parsed
from rayline.router.tools.parser import ToolParser

TOOLS = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {"enum": ["C", "F"]}},
        "required": ["city"],
    },
    "add": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    "write": {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "content": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "dry": {"type": "boolean"},
        },
    },
    "now": {"type": "object", "properties": {}},
}

Call = tuple[str, str]  # name, arguments


@dataclass(frozen=True)
class Said:
    """A model's output and what it means."""

    format: str
    output: str
    text: str
    calls: tuple[Call, ...]


def parse(
    format: str, pieces: list[str], hidden: frozenset[str] = frozenset(), most: int | None = None
) -> list[Parsed]:
    parser = ToolParser(FORMATS[format], TOOLS, CallIds((1, 2, 3)), hidden, most)
    return [*map(parser.push, pieces), parser.finish()]


def text_of(parsed: list[Parsed]) -> str:
    return "".join(part.text for part in parsed)


def calls_of(parsed: list[Parsed]) -> tuple[Call, ...]:
    """Pieces of calls put together as a client does: by index, id and name on the first piece alone."""
    calls: dict[int, list[ToolCallDelta]] = {}
    for part in parsed:
        for piece in part.calls:
            calls.setdefault(piece.index, []).append(piece)
    assert list(calls) == list(range(len(calls)))
    for pieces in calls.values():
        assert pieces[0].id and pieces[0].name
        assert not any(piece.id or piece.name for piece in pieces[1:])
    return tuple((pieces[0].name, "".join(piece.arguments for piece in pieces)) for pieces in calls.values())


def _hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def _llama3(name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "parameters": {arguments}}}'


def _deepseek(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"


def _deepseek_v31(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"


def _around(begin: str, end: str, separator: str, one: Callable[[str, str], str]) -> Callable[[tuple[Call, ...]], str]:
    return lambda calls: begin + separator.join(one(name, arguments) for name, arguments in calls) + end


# How each format that keeps the arguments' own JSON writes several calls.
WRITERS: dict[str, Callable[[tuple[Call, ...]], str]] = {
    "hermes": _around("", "", "\n", _hermes),
    "qwen3_coder": _around("", "", "\n", _hermes),
    "llama3": _around("", "", "; ", _llama3),
    "mistral": _around("[TOOL_CALLS] [", "]", ", ", lambda n, a: f'{{"name": "{n}", "arguments": {a}}}'),
    "mistral_v11": _around("", "", "", lambda n, a: f"[TOOL_CALLS]{n}[ARGS]{a}"),
    "pythonic": _around("[", "]", ", ", _llama3),
    "deepseek": _around("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "\n", _deepseek),
    "deepseek_v31": _around("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "", _deepseek_v31),
}

PARIS = '{"city": "Paris"}'
KOELN = '{"city": "Köln </tool_call> {\\"x\\": [1, 2]} 😀", "days": -1.5e3}'

EXAMPLES = (
    # Qwen 2.5 and 3, Hermes 2 and 3
    Said("hermes", _hermes("get_weather", PARIS), "", (("get_weather", PARIS),)),
    Said(
        "hermes",
        f"I'll look both up.\n\n{_hermes('get_weather', PARIS)}\n{_hermes('get_weather', KOELN)}\n",
        "I'll look both up.",
        (("get_weather", PARIS), ("get_weather", KOELN)),
    ),
    Said("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', "", (("add", '{"a": 1}'),)),
    Said("hermes", '<tool_call>{"name": "now"}</tool_call> done', " done", (("now", "{}"),)),
    Said("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", (("now", "{}"),)),
    Said("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", (("add", '{"a": 1}'),)),
    Said(
        "hermes",
        '<tool_call>{"name": "write", "arguments": {"content": "two\nlines\t"}}</tool_call>',
        "",
        (("write", '{"content": "two\\nlines\\t"}'),),
    ),
    Said("hermes", f"{_hermes('unknown', '{}')}", "", (("unknown", "{}"),)),
    Said("hermes", _hermes("add", '{"a": 1}').replace("</tool_call>", ""), "", (("add", '{"a": 1}'),)),
    Said("hermes", "A <tool_call> tag in prose.\n", "A <tool_call> tag in prose.\n", ()),
    Said("hermes", '<tool_call>{"nam', '<tool_call>{"nam', ()),
    Said("hermes", "<tool_call>[1, 2]</tool_call>", "<tool_call>[1, 2]</tool_call>", ()),
    Said("hermes", '<tool_call>{"name": 7}</tool_call>', '<tool_call>{"name": 7}</tool_call>', ()),
    Said("hermes", 'a\n<tool_call>\n{"name" "x"}', 'a\n<tool_call>\n{"name" "x"}', ()),
    Said("hermes", '<tool_call>{"name": "\\ud800"}', '<tool_call>{"name": "\\ud800"}', ()),
    Said("hermes", '<tool_call>{"name": "add", "arguments": {"a": 01}}', "}}", (("add", '{"a": 01'),)),
    Said("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1', "", (("add", '{"a": 1'),)),
    # Qwen 3 Coder
    Said(
        "qwen3_coder",
        "Writing it.\n<tool_call>\n<function=write>\n<parameter=path>\na b.py\n</parameter>\n"
        '<parameter=content>\ndef f():\n    return "<a>"\n\n</parameter>\n<parameter=tags>\n["x", "y"]\n</parameter>\n'
        "<parameter=limit>\n10\n</parameter>\n<parameter=dry>\nTrue\n</parameter>\n</function>\n</tool_call>",
        "Writing it.",
        (
            (
                "write",
                '{"path": "a b.py", "content": "def f():\\n    return \\"<a>\\"\\n", "tags": ["x", "y"], "limit": 10, '
                '"dry": true}',
            ),
        ),
    ),
    Said(
        "qwen3_coder",
        "<function=write>\n<parameter=limit>\nnull\n</parameter>\n<parameter=unknown>5</parameter></function>",
        "",
        (("write", '{"limit": null, "unknown": "5"}'),),
    ),
    Said("qwen3_coder", "<tool_call>\n<function=now>\n</function>\n</tool_call>", "", (("now", "{}"),)),
    Said("qwen3_coder", "<function=now></tool_call>", "", (("now", "{}"),)),
    Said(
        "qwen3_coder",
        "<function=get_weather><parameter=units>C</parameter><parameter=days>many</parameter></function>",
        "",
        (("get_weather", '{"units": "C", "days": "many"}'),),
    ),
    Said("qwen3_coder", "<function=", "<function=", ()),
    Said("qwen3_coder", "<function=now>\noops", "oops", (("now", "{}"),)),
    Said("qwen3_coder", "<function=write><parameter=path>a/b", "", (("write", '{"path": "a/b'),)),
    # Llama 3.1 to 3.3
    Said("llama3", _llama3("get_weather", PARIS), "", (("get_weather", PARIS),)),
    Said("llama3", '{"type": "function", "name": "add", "parameters": {"a": 1}}', "", (("add", '{"a": 1}'),)),
    Said(
        "llama3",
        f"\n<|python_tag|>{_llama3('add', '{}')}; {_llama3('now', '{}')}",
        "",
        (("add", "{}"), ("now", "{}")),
    ),
    Said("llama3", f"{_llama3('add', '{}')}\n{_llama3('now', '{}')}\n", "", (("add", "{}"), ("now", "{}"))),
    Said("llama3", 'Look: <|python_tag|>{"name": "f", "parameters": {}}', "Look:", (("f", "{}"),)),
    Said("llama3", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', ()),
    Said("llama3", '{"answer": {"name": "add"}}', '{"answer": {"name": "add"}}', ()),
    Said("llama3", 'Use {"name": "add", "parameters": {}}', 'Use {"name": "add", "parameters": {}}', ()),
    Said("llama3", '{"name": "add", "age": 3}', '{"name": "add", "age": 3}', ()),
    Said("llama3", "<|python_tag|>print(1)", "<|python_tag|>print(1)", ()),
    Said("llama3", f"{_llama3('add', '{}')}; and so on", "; and so on", (("add", "{}"),)),
    # Mistral
    Said(
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "VvvODy9mT"}]',
        "",
        (("get_weather", PARIS),),
    ),
    Said("mistral", 'Well. [TOOL_CALLS][{"name": "now", "arguments": {}}', "Well.", (("now", "{}"),)),
    Said("mistral", "[TOOL_CALLS]add[ARGS]{}[TOOL_CALLS]now{}", "", (("add", "{}"), ("now", "{}"))),
    Said("mistral", '[TOOL_CALLS]add[CALL_ID]abc123XYZ[ARGS]{"a": 1}', "", (("add", '{"a": 1}'),)),
    Said("mistral", "[TOOL_CALLS] nothing", "[TOOL_CALLS] nothing", ()),
    Said("mistral", "[TOOL_CALLS] [1]", "[TOOL_CALLS] [1]", ()),
    # Llama 4, ToolACE, Gemma
    Said(
        "pythonic",
        "[get_weather(city=\"Pa(r)is, 'FR'\", days=-2), add(a=1.5, b=2e3)]",
        "",
        (("get_weather", '{"city": "Pa(r)is, \'FR\'", "days": -2}'), ("add", '{"a": 1.5, "b": 2000.0}')),
    ),
    Said(
        "pythonic",
        "[write(path='C:\\\\x', content='it\\'s \"é\"', tags=['x', [], {'k': None}], dry=true, limit=null)]",
        "",
        (
            (
                "write",
                '{"path": "C:\\\\x", "content": "it\'s \\"é\\"", "tags": ["x", [], {"k": null}], '
                '"dry": true, "limit": null}',
            ),
        ),
    ),
    Said("pythonic", "<|python_start|>[now()]<|python_end|>", "", (("now", "{}"),)),
    Said("pythonic", "[write(from='a', class='b')]", "", (("write", '{"from": "a", "class": "b"}'),)),
    Said("pythonic", "[add(a=1,)]", "[add(a=1,)]", ()),
    Said("pythonic", "[1, 2, 3]", "[1, 2, 3]", ()),
    Said("pythonic", "[add(a=open('x'))]", "[add(a=open('x'))]", ()),
    Said("pythonic", "[add(1, 2)]", "[add(1, 2)]", ()),
    Said("pythonic", "[other(a=1)]", "[other(a=1)]", ()),
    Said("pythonic", "[now(), other()] and more", ", other()] and more", (("now", "{}"),)),
    Said("pythonic", "[add(a=1e999)]", "[add(a=1e999)]", ()),
    Said("pythonic", "[ now ( ) ]", "[ now ( ) ]", ()),
    # DeepSeek R1, V3, V3.1
    Said("deepseek", "<｜tool▁calls▁begin｜> none", "<｜tool▁calls▁begin｜> none", ()),
    Said("deepseek", f"Hm.\n{_deepseek('add', '{}')}", "Hm.", (("add", "{}"),)),
    Said(
        "deepseek",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n{}",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n{}",
        (),
    ),
    *(
        Said(name, write((("get_weather", PARIS), ("write", KOELN))), "", (("get_weather", PARIS), ("write", KOELN)))
        for name, write in WRITERS.items()
    ),
)
