"""From the form a client asks for to the one text that the workers' grammar library compiles.

Pure: text in, text out. `grammar_desk.py` adds what needs processes: whether a text compiles, and within which limits.
The text is a JSON object, {"grammars": [...]}, of llguidance's: https://github.com/guidance-ai/llguidance.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayline.protos.errors import InvalidRequest
from rayline.protos.types import StructuredOutput
from rayline.router.grammars.gbnf import NotGbnf, is_lark, lark_of
from rayline.router.grammars.json_schema import json_schema, parsed_json

FIELD = "structured_output"
ANY_TEXT = r"/(?s:.*)/"
MAX_CHOICES = 10_000
MAX_TAGS = 1000


@dataclass(frozen=True, slots=True)
class TaggedSchema:
    """A part of the output in a fixed frame: `begin`, JSON that fits `schema` (a JSON schema as text), then `end`."""

    begin: str
    schema: str
    end: str = ""


def grammar_text(wanted: StructuredOutput, special_ids: Mapping[str, int], field: str = FIELD) -> str:
    """The grammar of a structured output. `special_ids`: the tokenizer's special tokens by name, for structural tags.

    Raises InvalidRequest with `field`.
    """
    if wanted.kind == "json_schema":
        return _json_text({"json_schema": json_schema(wanted.text, field)})
    if wanted.kind == "json_object":
        return _json_text({"json_schema": json_schema('{"type": "object"}', field)})
    if wanted.kind == "regex":
        return _lark_text(f"start: {_pattern(wanted.text)}\n")
    if wanted.kind == "choice":
        return _lark_text(f"start: {_one_of(_choices(wanted.text, field))}\n")
    if wanted.kind == "grammar":
        return _lark_text(_lark(wanted.text, field))
    return _structural_tags(wanted.text, special_ids, field)


def tool_grammar(
    tags: Sequence[TaggedSchema],
    special_ids: Mapping[str, int],
    *,
    triggers: Sequence[str] = (),
    opener: str = "",
    banned: Sequence[str] = (),
    separator: str = "",
    prefix: str = "",
    suffix: str = "",
    most: int | None = None,
    field: str = "tools",
) -> str:
    """Tool calls in a model's own notation. Each call is one of `tags`.

    With `triggers` text is free up to one of them; each tag begins with a trigger, and what follows a trigger is one of
    its tags; none of the `banned` texts is in it. Without, the output is `prefix`, 1 to `most` calls with `separator`
    between them, then `suffix`. With an `opener` too it is those calls, or a text whose first character beside blanks
    is another one, up to a trigger, behind which those calls are the rest.
    `special_ids`: the tokenizer's special tokens by name; in the texts of a frame these names mean the tokens.

    Raises InvalidRequest with `field` for a schema that cannot be followed, or a tag without a trigger.
    """
    if not 0 < len(tags) <= MAX_TAGS:
        raise InvalidRequest(f"{field} holds {len(tags)} tags: allowed are 1 to {MAX_TAGS}", field=field)
    if triggers and not opener:
        return _lark_text(_triggered(tags, triggers, banned, special_ids, field))
    bodies = [_frame(tag.begin, tag, special_ids, field) for tag in tags]
    rules = [f"call: {_either(f'call_{i}' for i in range(len(bodies)))}"]
    rules += [f"call_{i}: {body}" for i, body in enumerate(bodies)]
    more = f"({_items(separator, special_ids)} call)"
    times = "*" if most is None else f"{{0,{most - 1}}}"
    calls = "call" if most == 1 else f"call {more}{times}"
    rules.append(f"calls: {_items(prefix, special_ids)} {calls} {_items(suffix, special_ids)}")
    start = _opened(opener, triggers, special_ids) if opener else ["start: calls"]
    return _lark_text("\n".join([*start, *rules]) + "\n")


def _opened(opener: str, triggers: Sequence[str], special_ids: Mapping[str, int]) -> list[str]:
    """The rules of an output that is `calls`, or text that does not begin as they do, up to a trigger if there is one.

    What reads it takes for blanks what Python does, which are four more than the grammar library's.
    """
    text = rf"/[\s\x1c-\x1f]*([^\s\x1c-\x1f{re.escape(opener)}](?s:.*))?/"
    ways, rules = ["calls", "OTHER"], [f"OTHER: {text}"]
    for number, trigger in enumerate(triggers):
        if trigger in special_ids:
            ways.append(f"OTHER <[{special_ids[trigger]}]> calls")
        else:
            ways.append(f"open_{number} calls")
            rules.append(f"open_{number}[lazy]: OTHER {json.dumps(trigger, ensure_ascii=False)}")
    return [f"start: {_either(ways)}", *rules]


def _triggered(
    tags: Sequence[TaggedSchema],
    triggers: Sequence[str],
    banned: Sequence[str],
    special_ids: Mapping[str, int],
    field: str,
) -> str:
    """Free text, in which a trigger opens one of its tags. A trigger of text is found by a lazy terminal."""
    without = "".join(f" & ~/(?s:.*){re.escape(text)}(?s:.*)/" for text in banned)
    rules = [f"start: ({_either(f'part_{t}' for t in range(len(triggers)))})* TEXT", f"TEXT: {ANY_TEXT}{without}"]
    placed = 0
    for number, trigger in enumerate(triggers):
        mine = [tag for tag in tags if tag.begin.startswith(trigger)] if trigger else []
        if not mine:
            raise InvalidRequest(f"{field}: no tag begins with the trigger {trigger!r}", field=field)
        placed += len(mine)
        bodies = [_frame(tag.begin.removeprefix(trigger), tag, special_ids, field) for tag in mine]
        if trigger in special_ids:
            opening = f"TEXT <[{special_ids[trigger]}]>"
        else:
            opening = f"open_{number}"
            rules.append(f"open_{number}[lazy]: TEXT {json.dumps(trigger, ensure_ascii=False)}")
        rules.append(f"part_{number}: {opening} ({_either(bodies)})")
    if placed != len(tags):
        raise InvalidRequest(f"{field}: each tag must begin with exactly one of the triggers {triggers}", field=field)
    return "\n".join(rules) + "\n"


def _frame(begin: str, tag: TaggedSchema, special_ids: Mapping[str, int], field: str) -> str:
    schema = json.dumps(json_schema(tag.schema, field))
    return f"{_items(begin, special_ids)} %json {schema} {_items(tag.end, special_ids)}"


def _items(text: str, special_ids: Mapping[str, int]) -> str:
    """A fixed text as Lark items: special tokens by id, all else literally."""
    names = sorted((name for name in special_ids if name), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    items = [
        f"<[{special_ids[piece]}]>" if piece in special_ids else json.dumps(piece, ensure_ascii=False)
        for piece in pieces
        if piece
    ]
    return " ".join(items)


def _structural_tags(text: str, special_ids: Mapping[str, int], field: str) -> str:
    """vLLM's {"type": "structural_tag", "structures": [{"begin", "schema", "end"}, ...], "triggers": [...]}."""
    tree = parsed_json(text, field)
    if not isinstance(tree, dict) or set(tree) - {"type", "structures", "triggers"}:
        raise InvalidRequest(
            f"{field}: a structural tag is an object of 'structures' and 'triggers', not {repr(tree)[:60]}", field=field
        )
    structures, triggers = tree.get("structures"), tree.get("triggers")
    if not isinstance(structures, list) or not isinstance(triggers, list) or not triggers:
        raise InvalidRequest(f"{field}: 'structures' and 'triggers' must be lists that are not empty", field=field)
    if not all(isinstance(trigger, str) and trigger for trigger in triggers):
        raise InvalidRequest(f"{field}: each trigger must be a text that is not empty", field=field)
    return tool_grammar([_tag(item, field) for item in structures], special_ids, triggers=triggers, field=field)


def _tag(item: Any, field: str) -> TaggedSchema:
    if not isinstance(item, dict) or set(item) != {"begin", "schema", "end"}:
        raise InvalidRequest(f"{field}: each structure has exactly 'begin', 'schema' and 'end'", field=field)
    begin, end = item["begin"], item["end"]
    if not isinstance(begin, str) or not isinstance(end, str):
        raise InvalidRequest(f"{field}: 'begin' and 'end' must be texts", field=field)
    return TaggedSchema(begin, json.dumps(item["schema"]), end)


def _pattern(text: str) -> str:
    """A regular expression that the whole output must match, as a Lark terminal: ^ and $ around it say nothing."""
    inner = text.removeprefix("^")
    dollar = re.search(r"(?<!\\)(?:\\\\)*\$\Z", inner)
    inner = inner[:-1] if dollar else inner
    safe = re.sub(r"\\.|/|\n|\r", lambda found: _SAFE.get(found[0], found[0]), inner, flags=re.DOTALL)
    return f"/(?:{safe})/"


_SAFE = {"/": r"\/", "\n": r"\n", "\r": r"\r", "\\\n": r"\n", "\\\r": r"\r"}


def _one_of(choices: Sequence[str]) -> str:
    """One terminal for all: it is followed as an automaton, however many there are."""
    escaped = ("".join(c if c.isascii() and c.isalnum() else rf"\x{{{ord(c):x}}}" for c in text) for text in choices)
    return f"/(?:{'|'.join(escaped)})/"


def _choices(text: str, field: str) -> list[str]:
    choices = parsed_json(text, field)
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidRequest(f"{field}: choices are a JSON list of strings that are not empty", field=field)
    if not 0 < len(choices) <= MAX_CHOICES:
        raise InvalidRequest(f"{field} holds {len(choices)} choices: allowed are 1 to {MAX_CHOICES}", field=field)
    return choices


def _lark(text: str, field: str) -> str:
    if is_lark(text):
        return text
    try:
        return lark_of(text)
    except NotGbnf as error:
        raise InvalidRequest(f"{field} is no grammar in Lark's or llama.cpp's notation: {error}", field=field) from None


def _either(options: Any) -> str:
    return " | ".join(options)


def _lark_text(lark: str) -> str:
    return _json_text({"lark_grammar": lark})


def _json_text(grammar: Mapping[str, Any]) -> str:
    return json.dumps({"grammars": [grammar]}, separators=(",", ":"))
