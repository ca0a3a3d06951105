"""llama.cpp's notation in Lark's: the same texts fit."""

import json
from contextlib import suppress

import pytest
from grammars import accepts
from hypothesis import given
from hypothesis import strategies as st

from rayline.router.grammars.gbnf import NotGbnf, is_lark, lark_of

JSON = r"""root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""


def fits(grammar: str, text: str) -> bool:
    return accepts(json.dumps({"grammars": [{"lark_grammar": lark_of(grammar)}]}), text)


@pytest.mark.parametrize("text", ['{"a": [1.5e3, "x\\u00e9é", {}], "b": null}\n', "{}", '{"a":{"b":[true, false]}}'])
def test_llama_cpps_own_grammar_of_json_takes_json(text: str) -> None:
    assert fits(JSON, text)


@pytest.mark.parametrize("text", ['{"a": }', "[1]", '{"a": 01}', '{"a"}', "{} {}"])
def test_and_nothing_else(text: str) -> None:
    assert not fits(JSON, text)


def test_rules_give_back_what_the_next_one_needs() -> None:
    grammar = 'root ::= ident "x" digits\nident ::= [a-z]+\ndigits ::= [0-9]{2,3}'
    assert fits(grammar, "foox12") and fits(grammar, "xxx123")
    assert not fits(grammar, "foo12") and not fits(grammar, "x12") and not fits(grammar, "foox1234")


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ("root ::= [^a-c\\n\\]]", "d", "b"),
        ("root ::= [a-c-]", "-", "d"),
        ("root ::= [-a]", "-", "b"),
        ('root ::= "a"*', "", "b"),
        ('root ::= "a"+', "aa", ""),
        ('root ::= "a" ? "b"', "b", "a"),
        ('root ::= ("ab" | "c"){2}', "abc", "ab"),
        ('root ::= "a"{2,}', "aaa", "a"),
        ('root ::= "a"{,2}', "aa", "aaa"),
        ("root ::= . .", "é\n", "a"),
        ('root ::= "\\x41\\u0042\\U0001F600\\n"', "AB😀\n", "AB"),
        ('root ::= a-b\na-b ::= "x"', "x", "y"),
        ('root ::= a\n  | "y"\na ::= "x"', "y", "z"),
        ('root ::= | "x"', "", "y"),
        ('root::="/" [/] # "comment"', "//", "/"),
        ('root ::= "r0" start\nstart ::= "s"', "r0s", "r0"),
    ],
)
def test_what_the_notation_means(grammar: str, good: str, bad: str) -> None:
    assert fits(grammar, good)
    assert not fits(grammar, bad)


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("", "no rule 'root'"),
        ('a ::= "x"', "no rule 'root'"),
        ("root ::= a", "rule 'a' is used and not defined"),
        ('root ::= "x"\nroot ::= "y"', "defined twice"),
        ('root ::= "x', "unexpected end"),
        ("root ::= [a", "unexpected end"),
        ('root ::= ("x"', "expected )"),
        ('root ::= "x")', "expected a rule"),
        ("root ::= [z-a]", "is empty"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "\\ud800"', "no character"),
        ('root ::= "\\x4"', "unknown escape"),
        ('root ::= "x"{999999999}', "no repetition"),
        ('root ::= "x"{}', "no repetition"),
        ("root ::= " + "(" * 300, "parentheses"),
        ("root ::= \x00", "NUL"),
        ('"x"', "line 1: expected a rule"),
        ('root ::= "x"\n\n!', "line 3"),
    ],
)
def test_what_is_no_grammar_is_named(grammar: str, why: str) -> None:
    with pytest.raises(NotGbnf, match=why.replace("(", r"\(").replace(")", r"\)")):
        lark_of(grammar)


@given(st.text())
def test_any_text_is_a_grammar_or_not(text: str) -> None:
    with suppress(NotGbnf):
        lark_of(text)


@given(st.text(alphabet='root:= "ax[]^-(){}|*+?,12\\n#\n', max_size=60))
def test_any_text_of_the_notations_own_signs_is_a_grammar_or_not(text: str) -> None:
    with suppress(NotGbnf):
        lark_of(f"root ::= {text}")


@pytest.mark.parametrize(
    "text", ['start: "x"', '%llguidance {}\nstart: "x"', "%import common.INT\nstart: INT", "?start: A"]
)
def test_lark_is_told_apart(text: str) -> None:
    assert is_lark(text)


@pytest.mark.parametrize("text", ['root ::= "start: x"', 'root ::= start\nstart ::= "x"', "start ::= root"])
def test_gbnf_is_not_taken_for_lark(text: str) -> None:
    assert not is_lark(text)
