"""Where chat templates run. They come with the model and count as untrusted code.

jinja's immutable sandbox keeps them from everything but plain JSON values. It bounds neither time nor memory, so every
pass of a loop, every call of a macro and every character that operators and outputs make is paid from one allowance.
What nothing here can interrupt is a single call of a filter or of a string's method (`"x" | center(10 ** 12)`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_WORK = 1 << 27  # of one rendering: a few seconds at most. A character costs 1
PASS_WORK = 64  # for a pass of a loop: two million
CALL_WORK = 512  # for a call of a macro: a quarter of a million
MAX_BITS = 4096  # of a number
ALLOWANCE = " allowance"  # a variable that no template can name
PASS, JOIN = "count_pass", "count_join"


@dataclass(slots=True)
class Allowance:
    """What one rendering may still cost."""

    left: int = MAX_WORK

    def pay(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise SecurityError("it does more work than a prompt is worth")


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks training targets; a prompt just shows its body."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_shown"), [], [], body).set_lineno(line)

    def _shown(self, caller: Callable[[], str]) -> str:
        return caller()


class PublicNamespace(Namespace):
    """jinja's namespace() without underscore names, which could reach the interpreter's internals."""

    def __init__(self, /, *args: Any, **kwargs: Any):
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_public(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with transformers' additions, and with every costly step paid for."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], finalize=_pay_for_output
        )
        self.filters["tojson"] = _tojson
        self.filters[PASS] = _pay_for_pass
        self.filters[JOIN] = _pay_for_join
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = PublicNamespace
        self.globals["dict"] = _new_dict

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        counted = _Counted().visit(template)
        assert isinstance(counted, nodes.Template)
        return counted

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _allowance(context).pay(_made_by(operator, left, right))
        return super().call_binop(context, operator, left, right)


class _Counted(NodeTransformer):
    """Writes a payment into the body of each loop and macro, and around each `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._with_payment(node, PASS_WORK)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_payment(node, CALL_WORK)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._with_payment(node, CALL_WORK)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), JOIN, node.lineno)

    def _with_payment(self, node: nodes.For | nodes.Macro | nodes.CallBlock, work: int) -> nodes.Node:
        self.generic_visit(node)
        cost = work + sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        payment = _filter(nodes.Const(cost, lineno=node.lineno), PASS, node.lineno)
        node.body.insert(0, nodes.ExprStmt(payment, lineno=node.lineno))
        return node


def _filter(value: nodes.Expr, name: str, line: int) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=line)


def _allowance(context: Context) -> Allowance:
    allowance = context.parent[ALLOWANCE]
    assert isinstance(allowance, Allowance)
    return allowance


@pass_context
def _pay_for_pass(context: Context, cost: int) -> None:
    _allowance(context).pay(cost)


@pass_context
def _pay_for_join(context: Context, values: Sequence[Any]) -> str:
    parts = [str(value) for value in values]
    _allowance(context).pay(sum(map(len, parts)))
    return "".join(parts)


@pass_context
def _pay_for_output(context: Context, value: Any) -> Any:
    _allowance(context).pay(len(value) if isinstance(value, str) else 1)
    return value


def _made_by(operator: str, left: Any, right: Any) -> int:
    """Characters or items that an operation makes. Raises SecurityError for numbers that no prompt needs."""
    if isinstance(left, int | float) and isinstance(right, int | float):
        bits = [value.bit_length() if isinstance(value, int) else 0 for value in (left, right)]
        if operator != "+" and (bits[0] * abs(right) if operator == "**" else sum(bits)) > MAX_BITS:
            raise SecurityError(f"it makes numbers of more than {MAX_BITS} bits")
        return 1
    if operator == "*":
        times = max((value for value in (left, right) if isinstance(value, int)), default=1)
        return max(0, times) * max(len(value) for value in (left, right, "") if isinstance(value, str | list | tuple))
    return sum(len(value) for value in (left, right) if isinstance(value, str | list | tuple))


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not set {name!r} on a namespace")


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """dict() as a call only: the class itself has methods that lead out of the sandbox."""
    return dict(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja's own filter would escape HTML, which prompts must not have."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
