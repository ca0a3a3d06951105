"""Chat templates: messages to one prompt text, rendered as transformers' apply_chat_template does.

Templates come with the model and count as untrusted code: they run in jinja's immutable sandbox and
see nothing but plain JSON values.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from rayline.protos.errors import InvalidRequest, ModelError


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


class ChatTemplate:
    """One compiled template with the model's special tokens (bos_token, eos_token...) as variables."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]):
        """Raises ModelError when the template is no valid jinja."""
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ModelError(f"the model's chat template is broken: {error}", field="path") from None
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        """The prompt of a conversation. Raises InvalidRequest with the template's own words when it refuses."""
        if not messages:
            raise InvalidRequest("messages is empty: at least one message must be given", field="messages")
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except Exception as error:  # a template is a program of somebody else's: it may raise anything
            raise InvalidRequest(f"messages do not fit the chat template: {error}", field="messages") from None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = PublicNamespace
    environment.globals["dict"] = _new_dict
    return environment


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
