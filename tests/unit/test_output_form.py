"""Which formats a model writes, found in its templates or named; how a request's output is read."""

from typing import get_args

import pytest
from chat_templates import TEMPLATES
from small_tokenizers import served

from rayline.cluster.config import ReasoningParser, ToolParser
from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolChoice
from rayline.protos.errors import InvalidRequest
from rayline.protos.types import SamplingParams, Spec
from rayline.router import reasoning
from rayline.router.output_form import NO_FORMATS, PLAIN_OUTPUT, ChatFormats, chat_formats, output_form
from rayline.router.reasoning import THINK
from rayline.router.tools.formats import FORMATS, detected

SPOKEN = {
    "qwen3": ("hermes", "think"),
    "qwen3_coder": ("qwen3_coder", "none"),
    "llama3.1": ("llama3", "none"),
    "mistral": ("mistral", "none"),
    "magistral": ("mistral_v11", "mistral"),
    "deepseek_r1": ("deepseek", "think"),
    "gemma": ("none", "none"),
    "llama4": ("pythonic", "none"),
    "corners": ("none", "none"),
}
TOKENIZER = served("byte_level")
BOTH = ChatFormats(FORMATS["hermes"], THINK)
NOW = Tool("now", "", '{"type": "object"}')


def form(conversation: Conversation | None, chat: ChatFormats = BOTH) -> object:
    prompt = "x" if conversation is None else None
    return output_form(Spec("r", "", SamplingParams(), prompt, conversation=conversation), (1,), TOKENIZER, chat)


def talk(*tools: Tool, choice: ToolChoice = ToolChoice(), parallel: bool = True) -> Conversation:  # noqa: B008
    return Conversation((ChatMessage("user", "hi"),), tools, choice, parallel)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_shows_what_its_model_writes(name: str) -> None:
    assert chat_formats(served("byte_level", TEMPLATES[name])).names == SPOKEN[name]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ tools }}<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "deepseek_v31"),
        ("{{ tools }} [func_name1(params)]", "pythonic"),
        ("{{ tools }} <tool_call>{name}<arg_key>", "none"),  # GLM
        ("a chat about <tool_call>", "none"),
        ("{{ tools | tojson }}", "none"),
        ("", "none"),
    ],
)
def test_a_format_is_known_by_its_signs_where_tools_are_shown(template: str, name: str) -> None:
    found = detected(template)
    assert (found.name if found else "none") == name


def test_a_format_that_is_named_is_taken_whatever_the_template_says() -> None:
    tokenizer = served("byte_level", TEMPLATES["qwen3"])
    assert chat_formats(tokenizer, "llama3", "mistral").names == ("llama3", "mistral")
    assert chat_formats(tokenizer, "none", "none") == NO_FORMATS
    assert chat_formats(served("byte_level")) == NO_FORMATS


def test_every_format_has_a_name_in_the_configuration() -> None:
    assert set(get_args(ToolParser)) == {"auto", "none", *FORMATS}
    assert set(get_args(ReasoningParser)) == {"auto", "none", *reasoning.FORMATS}


def test_a_plain_prompt_is_answered_in_plain_text() -> None:
    assert form(None) == PLAIN_OUTPUT and PLAIN_OUTPUT.markers == ()


def test_calls_are_looked_for_only_where_tools_may_be_called() -> None:
    for conversation in (talk(), talk(NOW, choice=ToolChoice("none"))):
        found = form(conversation)
        assert found == output_form(Spec("r", "", SamplingParams(), conversation=talk()), (1,), TOKENIZER, BOTH)
        assert found.tools is None and found.reasoning is THINK  # type: ignore[attr-defined]
    found = form(talk(NOW))
    assert found.tools is FORMATS["hermes"] and found.max_calls is None  # type: ignore[attr-defined]
    assert found.schemas() == {"now": {"type": "object"}}  # type: ignore[attr-defined]
    assert found.markers == ("<think>", "</think>", "<tool_call>", "</tool_call>")  # type: ignore[attr-defined]


@pytest.mark.parametrize("conversation", [talk(NOW, parallel=False), talk(NOW, choice=ToolChoice("named", "now"))])
def test_one_call_is_told_where_one_is_wanted(conversation: Conversation) -> None:
    assert form(conversation).max_calls == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["", "a b", "f(", 'x"', "{", "größe", "a" * 129])
def test_a_function_has_a_name_that_every_notation_can_hold(name: str) -> None:
    talk(Tool("a.b-c_9" + "x" * 121)).check()
    with pytest.raises(InvalidRequest, match="1 to 128 letters") as caught:
        talk(Tool(name)).check()
    assert caught.value.field == "tools"


def test_a_functions_name_stands_in_its_call_as_it_is() -> None:
    assert FORMATS["hermes"].begin_of("xBAREy").endswith('{"name": "xBAREy", "arguments": ')
    assert FORMATS["mistral_v11"].begin_of("xNAMEy") == "[TOOL_CALLS]xNAMEy[ARGS]"


def test_tools_are_refused_where_it_is_not_known_how_they_are_called() -> None:
    for choice in (ToolChoice(), ToolChoice("required"), ToolChoice("named", "now")):
        with pytest.raises(InvalidRequest, match="tool_parser") as caught:
            form(talk(NOW, choice=choice), NO_FORMATS)
        assert caught.value.field == "tools"
    assert form(talk(NOW, choice=ToolChoice("none")), NO_FORMATS) == PLAIN_OUTPUT
