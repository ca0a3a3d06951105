"""The notations in which models write tool calls, and which of them a chat template speaks."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from rayline.router.tools.deepseek import deepseek
from rayline.router.tools.hermes import hermes, qwen3_coder
from rayline.router.tools.llama3 import llama3
from rayline.router.tools.mistral import mistral
from rayline.router.tools.output import IdStyle, Output
from rayline.router.tools.pythonic import pythonic
from rayline.router.tools.source import Reading, Source


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One notation. `markers` are shown to the parser where they are special tokens, which text leaves out.

    The other fields say how a grammar writes calls: prefix, calls with `separator` between them, suffix; each call is
    begin (NAME stands for the function's name as JSON, BARE for the name itself), the arguments as JSON, end.
    trigger: what begins a call in free text. opener: the character with which an output begins that is a call without
    the trigger, "" where none is. banned: other beginnings of calls, which no JSON could follow.
    """

    name: str
    read: Callable[[Source, Output], Reading[None]]
    markers: tuple[str, ...]
    begin: str
    end: str
    separator: str
    prefix: str = ""
    suffix: str = ""
    trigger: str = ""
    opener: str = ""
    banned: tuple[str, ...] = ()
    id_style: IdStyle = "openai"

    def begin_of(self, function: str) -> str:
        """The text before the arguments of a call of `function`."""
        forms = {"NAME": json.dumps(function), "BARE": function}
        return re.sub("NAME|BARE", lambda found: forms[found[0]], self.begin)


_HERMES_BEGIN = '<tool_call>\n{"name": NAME, "arguments": '
_HERMES_END = "}\n</tool_call>"
_TAGS = ("<tool_call>", "</tool_call>")
_DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
_CALLS, _CALL, _SEPARATOR, _CALL_END, _CALLS_END = _DEEPSEEK
_MISTRAL = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")

FORMATS = {
    format.name: format
    for format in (
        ToolFormat("hermes", hermes, _TAGS, _HERMES_BEGIN, _HERMES_END, "\n", trigger="<tool_call>"),
        ToolFormat(
            "qwen3_coder",
            qwen3_coder,
            _TAGS,
            _HERMES_BEGIN,
            _HERMES_END,
            "\n",
            trigger="<tool_call>",
            banned=("<function=",),
        ),
        ToolFormat(
            "llama3",
            llama3,
            ("<|python_tag|>",),
            '{"name": NAME, "parameters": ',
            "}",
            "; ",
            trigger="<|python_tag|>",
            opener="{",
        ),
        ToolFormat(
            "mistral",
            mistral,
            _MISTRAL,
            '{"name": NAME, "arguments": ',
            "}",
            ", ",
            prefix="[TOOL_CALLS][",
            suffix="]",
            trigger="[TOOL_CALLS]",
            id_style="mistral",
        ),
        ToolFormat(
            "mistral_v11",
            mistral,
            _MISTRAL,
            "[TOOL_CALLS]BARE[ARGS]",
            "",
            "",
            trigger="[TOOL_CALLS]",
            id_style="mistral",
        ),
        ToolFormat(
            "pythonic",
            pythonic,
            ("<|python_start|>", "<|python_end|>"),
            '{"name": NAME, "parameters": ',
            "}",
            ", ",
            prefix="[",
            suffix="]",
            trigger="<|python_start|>",
            opener="[",
        ),
        ToolFormat(
            "deepseek",
            deepseek,
            _DEEPSEEK,
            f"{_CALL}function{_SEPARATOR}BARE\n```json\n",
            f"\n```{_CALL_END}",
            "\n",
            prefix=_CALLS,
            suffix=_CALLS_END,
            trigger=_CALLS,
        ),
        ToolFormat(
            "deepseek_v31",
            deepseek,
            _DEEPSEEK,
            f"{_CALL}BARE{_SEPARATOR}",
            _CALL_END,
            "",
            prefix=_CALLS,
            suffix=_CALLS_END,
            trigger=_CALLS,
        ),
    )
}

# What a template says when it speaks a notation; the first line that holds decides.
_SIGNS: tuple[tuple[str, str], ...] = (
    ("<arg_key>", ""),  # GLM: tags in tags of its own, which nothing here reads
    ("<｜tool▁sep｜>", "deepseek"),
    ("[TOOL_CALLS]", "mistral"),
    ("<function=", "qwen3_coder"),
    ("<|python_start|>", "pythonic"),
    ("func_name1(", "pythonic"),
    ("<tool_call>", "hermes"),
    ('"parameters": dictionary of argument name', "llama3"),
    ("<|python_tag|>", "llama3"),
)


def detected(template: str) -> ToolFormat | None:
    """The notation a chat template teaches its model; None when it shows no tools or speaks another one."""
    if "tools" not in template:
        return None
    name = next((name for sign, name in _SIGNS if sign in template), "")
    if name == "mistral" and "[ARGS]" in template:
        name = "mistral_v11"
    if name == "deepseek" and "```json" not in template:
        name = "deepseek_v31"
    return FORMATS.get(name)
