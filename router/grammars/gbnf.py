"""llama.cpp's GBNF, and the EBNF that users of vLLM write, in Lark's notation.

Grammar of the notation: llama.cpp, grammars/README.md. Rules stay rules, down to single characters: a terminal of
Lark's takes the longest match and never gives back, which `ident "x"` with ident ::= [a-z]+ does not mean.
"""

import json
import re
from dataclasses import dataclass, field
from typing import NoReturn

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^", "/": "/"}
HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
MAX_GROUPS = 200  # parentheses in one another
MAX_TIMES = 100_000
LARK = re.compile(r"^[ \t]*(%llguidance|%import|%ignore|\?*start\b[^:=]*:(?!:=))", re.MULTILINE)
BLANKS = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
TIMES = re.compile(r"\{[ \t]*(\d*)[ \t]*(?:(,)[ \t]*(\d*))?[ \t]*\}")
REFERENCE = re.compile("\x00([^\x00]*)\x00")
RULE = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)(?:[ \t\r\n]|#[^\n]*)*::=")


class NotGbnf(Exception):
    """The text is no grammar; the message names the line."""


def is_lark(text: str) -> bool:
    """Whether a grammar is in Lark's notation: it has a rule `start: ...` or one of Lark's directives."""
    return LARK.search(text) is not None


def lark_of(text: str) -> str:
    """A GBNF grammar in Lark's notation; `root` is where it starts. Raises NotGbnf."""
    parser = _Parser(text)
    rules = parser.rules()
    if "root" not in rules:
        raise NotGbnf("there is no rule 'root'")
    if unknown := sorted(parser.used - rules.keys()):
        raise NotGbnf(f"rule {unknown[0]!r} is used and not defined")
    names = {name: "start" if name == "root" else f"r{index}" for index, name in enumerate(rules)}
    lines = [f"{names[name]}: {body}" for name, body in rules.items()]
    return "\n".join(_with_names(line, names) for line in lines) + "\n"


def _with_names(line: str, names: dict[str, str]) -> str:
    return REFERENCE.sub(lambda found: names[found[1]], line)


@dataclass(slots=True)
class _Parser:
    """Recursive descent over the text; references to rules come out between NULs, until all names are known."""

    text: str
    at: int = 0
    depth: int = 0
    used: set[str] = field(default_factory=set)

    def rules(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if "\x00" in self.text:
            raise NotGbnf("it holds a NUL character")
        self._skip()
        while self.at < len(self.text):
            rule = RULE.match(self.text, self.at)
            if rule is None:
                self._fail("expected a rule: name ::= ...")
            if rule[1] in found:
                self._fail(f"rule {rule[1]!r} is defined twice")
            self.at = rule.end()
            found[rule[1]] = self._alternatives()
        return found

    def _alternatives(self) -> str:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return " | ".join(parts)

    def _sequence(self) -> str:
        """Items up to the end of the alternative. A name in front of ::= begins the next rule."""
        parts: list[str] = []
        self._skip()
        while self.at < len(self.text) and self.text[self.at] not in "|)" and not RULE.match(self.text, self.at):
            parts.append(self._item() + self._times())
            self._skip()
        return " ".join(parts) or '""'

    def _item(self) -> str:
        first = self.text[self.at]
        if first == '"':
            return self._literal()
        if first == "[":
            return self._characters()
        if first == "(":
            return self._group()
        if first == ".":
            self.at += 1
            return r"/(?s:.)/"
        name = NAME.match(self.text, self.at)
        if name is None:
            self._fail(f"{first!r} begins nothing")
        self.at = name.end()
        self.used.add(name[0])
        return f"\x00{name[0]}\x00"

    def _group(self) -> str:
        self.depth += 1
        if self.depth > MAX_GROUPS:
            self._fail(f"more than {MAX_GROUPS} parentheses in one another")
        self.at += 1
        inner = self._alternatives()
        if not self._take(")"):
            self._fail("expected )")
        self.depth -= 1
        return f"({inner})"

    def _times(self) -> str:
        self._skip()
        if self.at < len(self.text) and self.text[self.at] in "*+?":
            self.at += 1
            return self.text[self.at - 1]
        found = TIMES.match(self.text, self.at)
        if found is None:
            return ""
        least, comma, most = found.groups()
        if (not least and not most) or max(int(least or 0), int(most or 0)) > MAX_TIMES:
            self._fail(f"{found[0]} is no repetition: allowed are up to {MAX_TIMES} times")
        self.at = found.end()
        return f"{{{least or 0},{most or ''}}}" if comma else f"{{{least}}}"

    def _literal(self) -> str:
        self.at += 1
        characters: list[str] = []
        while not self._ahead('"'):
            characters.append(self._character())
        self.at += 1
        return json.dumps("".join(characters), ensure_ascii=False)

    def _characters(self) -> str:
        """[a-z] or [^a-z], with every character by its number."""
        self.at += 1
        inverted = self._ahead("^")
        self.at += inverted
        parts: list[str] = []
        while not self._ahead("]"):
            first = self._character()
            last = first
            if self._ahead("-") and self.text[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                last = self._character()
            if last < first:
                self._fail(f"range {first!r} to {last!r} is empty")
            parts.append(rf"\x{{{ord(first):x}}}-\x{{{ord(last):x}}}")
        self.at += 1
        if not parts:
            return "/(?s:.)/" if inverted else "/[^\\x00-\\x{10ffff}]/"
        return f"/[{'^' if inverted else ''}{''.join(parts)}]/"

    def _character(self) -> str:
        found = self.text[self.at : self.at + 1]
        if found in ("", "\n"):
            self._fail("unexpected end of a literal")
        self.at += 1
        if found != "\\":
            return found
        kind = self.text[self.at : self.at + 1]
        self.at += 1
        if kind in ESCAPES and kind:
            return ESCAPES[kind]
        digits = self.text[self.at : self.at + HEX_ESCAPES.get(kind, 0)]
        if kind not in HEX_ESCAPES or not re.fullmatch(rf"[0-9A-Fa-f]{{{HEX_ESCAPES[kind]}}}", digits):
            self._fail(f"unknown escape \\{kind}{digits}")
        self.at += len(digits)
        number = int(digits, 16)
        if number > 0x10FFFF or 0xD800 <= number < 0xE000:
            self._fail(f"\\{kind}{digits} is no character")
        return chr(number)

    def _ahead(self, character: str) -> bool:
        return self.text[self.at : self.at + 1] == character

    def _take(self, character: str) -> bool:
        self._skip()
        found = self._ahead(character)
        self.at += found
        return found

    def _skip(self) -> None:
        found = BLANKS.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def _fail(self, why: str) -> NoReturn:
        raise NotGbnf(f"line {self.text.count(chr(10), 0, self.at) + 1}: {why}")
