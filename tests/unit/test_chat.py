"""Chat prompts against transformers' apply_chat_template, for templates in the style of the common families."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CORNERS, MISTRAL, QWEN3, TEMPLATES
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import served, write
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolCall, ToolChoice
from rayline.protos.errors import InvalidRequest, ModelError
from rayline.router.chat import MAX_PROMPT_CHARACTERS, ChatTemplates
from rayline.router.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parents[2] / "deploy/embedded"

WEATHER = Tool(
    "get_weather",
    "The weather <now> in a city.",
    json.dumps(
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Köln"},
                "days": {"type": "integer"},
            },
            "required": ["city"],
        }
    ),
)
NOW = Tool("now")
PARIS = ToolCall("VvvODy9mT", "get_weather", '{"city": "Paris", "days": 2, "deep": {"x": [1, null]}}')
NONE = ToolCall("aaaaaaaa1", "now", "")
ODD = ToolCall("aaaaaaaa2", "now", "not json")


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def assistant(text: str, *calls: ToolCall, reasoning: str = "") -> ChatMessage:
    return ChatMessage("assistant", text, reasoning=reasoning, tool_calls=calls)


MESSAGES = [
    (user("  Hi <b>& you</b>  "),),
    (user("one"), assistant("<think>x</think>\nzwei é 😀"), user("three")),
    (ChatMessage("system", "Be brief."), user("Q")),
    (user("a"), ChatMessage("skip", "b"), user("")),
    (user("weather?"), assistant("", PARIS), ChatMessage("tool", "22", name="get_weather", tool_call_id=PARIS.id)),
    (
        ChatMessage("system", "S"),
        user("weather?"),
        assistant("Looking.", PARIS, NONE, reasoning="I must look."),
        ChatMessage("tool", '{"temp": 22}', tool_call_id=PARIS.id),
        ChatMessage("tool", "noon", tool_call_id=NONE.id),
        assistant("22 at noon.", reasoning="Easy."),
        user("thanks"),
    ),
    (user("q"), assistant("", NONE), ChatMessage("tool", "x", tool_call_id="short")),
    (user("q"), assistant("\n  open end  ", reasoning="half")),
    (user("q"), assistant("", ODD)),
]
TOOLS: list[tuple[Tool, ...]] = [(), (WEATHER,), (WEATHER, NOW)]
ARGS: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False, "extra": {"a": [1]}},
    {"bos_token": "<bos>", "documents": [{"title": "t", "text": "x"}], "tools_in_user_message": False},
    {"date_string": "1 Jan", "builtin_tools": ["get_weather"]},
]
FORMS = [(True, False), (False, False), (False, True)]  # add_generation_prompt, continue_final_message


def as_transformers_has_it(message: ChatMessage) -> dict[str, Any]:
    """A message as a user of transformers writes it, None for what is not there."""
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": read(call.arguments)}}
        for call in message.tool_calls
    ]
    return {
        "role": message.role,
        "content": message.content,
        "name": message.name or None,
        "reasoning_content": message.reasoning or None,
        "tool_call_id": message.tool_call_id or None,
        "tool_calls": calls or None,
    }


def read(arguments: str) -> Any:
    return arguments if arguments == "not json" else json.loads(arguments or "{}")


def tool_dict(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    parameters = json.loads(tool.parameters) or {"type": "object", "properties": {}}
    return {"type": "function", "function": {**function, "parameters": parameters}}


def oracle(folder: Path, conversation: Conversation) -> str | Exception:
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(folder))
    try:
        return str(
            tokenizer.apply_chat_template(
                [as_transformers_has_it(message) for message in conversation.messages],
                tools=[tool_dict(tool) for tool in conversation.tools] or None,
                tokenize=False,
                add_generation_prompt=conversation.add_generation_prompt,
                continue_final_message=conversation.continue_final_message,
                **json.loads(conversation.template_args),
            )
        )
    except Exception as error:
        return error


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_that_transformers_renders(tmp_path: Path, name: str) -> None:
    """Every template with every conversation, with and without tools, variables, an open end: equal or both refused."""
    write(tmp_path, "byte_level", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATES[name])
    tokenizer = Tokenizer.load(tmp_path)
    rendered = 0
    for messages in MESSAGES:
        for tools in TOOLS:
            for args in ARGS:
                for prompt, continued in FORMS:
                    conversation = Conversation(
                        messages,
                        tools,
                        add_generation_prompt=prompt,
                        continue_final_message=continued,
                        template_args=json.dumps(args),
                    )
                    expected = oracle(tmp_path, conversation)
                    if isinstance(expected, str):
                        assert tokenizer.render_chat(conversation) == expected
                        rendered += 1
                        continue
                    with pytest.raises(InvalidRequest) as caught:
                        tokenizer.render_chat(conversation)
                    if not continued:
                        assert str(expected) in caught.value.message and caught.value.field == "messages"
    assert rendered >= 36


def test_tools_choose_the_template_that_is_made_for_them(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": QWEN3}, {"name": "tool_use", "template": "with {{ tools | tojson }}"}]
    write(tmp_path, "byte_level", chat_template=templates)
    tokenizer = Tokenizer.load(tmp_path)
    for tools in TOOLS:
        conversation = Conversation(MESSAGES[0], tools)
        assert tokenizer.render_chat(conversation) == oracle(tmp_path, conversation)
    assert tokenizer.render_chat(Conversation(MESSAGES[0], TOOLS[1])).startswith("with ")
    assert tokenizer.template_text.startswith("with ")


def test_a_model_with_templates_for_tools_alone_serves_only_these() -> None:
    templates = ChatTemplates({"tool_use": "x"}, {})
    assert templates.render(Conversation(MESSAGES[0], TOOLS[1])) == "x"
    with pytest.raises(InvalidRequest, match="no chat template"):
        templates.render(Conversation(MESSAGES[0]))


def test_tools_that_may_not_be_called_are_not_shown() -> None:
    templates = ChatTemplates({"default": QWEN3}, {})
    hidden = Conversation(MESSAGES[0], TOOLS[2], ToolChoice("none"))
    assert templates.render(hidden) == templates.render(Conversation(MESSAGES[0]))


@pytest.mark.parametrize("messages", MESSAGES[:3])
def test_the_embedded_models_prompts_are_those_of_transformers(messages: tuple[ChatMessage, ...]) -> None:
    expected = AutoTokenizer.from_pretrained(str(EMBEDDED)).apply_chat_template(
        [as_transformers_has_it(m) for m in messages], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    tokenizer = Tokenizer.load(EMBEDDED)
    assert list(tokenizer.encode(tokenizer.render_chat(Conversation(messages)), add_special_tokens=False)) == expected


def test_a_refusal_of_the_template_reaches_the_caller_in_its_own_words() -> None:
    with pytest.raises(InvalidRequest, match="Only user and assistant roles are supported"):
        render(MISTRAL, Conversation((user("x"), ChatMessage("critic", "y"))), bos_token="")


def test_an_end_that_the_template_does_not_show_cannot_stay_open() -> None:
    conversation = Conversation(
        (user("q"), assistant("shown nowhere")), add_generation_prompt=False, continue_final_message=True
    )
    for template in ("{{ messages[0].content }}", "constant", "{{ messages[1].content[:5] }}"):
        with pytest.raises(InvalidRequest) as caught:
            render(template, conversation)
        assert caught.value.field == "continue_final_message"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("[]", "must be a JSON object"),
        ("{", "no JSON"),
        ('{"messages": []}', "'messages'"),
        ('{"add_generation_prompt": true}', "'add_generation_prompt'"),
        ('{"documents": [1]}', "list of objects"),
        ('{" allowance": 1}', "no template can use"),
    ],
)
def test_variables_that_no_template_may_be_given_are_refused(args: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        render("x", Conversation(MESSAGES[0], template_args=args))
    assert caught.value.field == "template_args"


def test_no_messages_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one message"):
        render("x", Conversation(()))


def test_a_template_that_is_no_jinja_is_a_start_up_error() -> None:
    with pytest.raises(ModelError, match="chat template is broken"):
        ChatTemplates({"default": "{% for %}"}, {})


def render(source: str, conversation: Conversation = Conversation(MESSAGES[0]), **special_tokens: str) -> str:  # noqa: B008
    return ChatTemplates({"default": source}, special_tokens).render(conversation)


ESCAPES = [
    "{{ messages.append(1) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ dict.mro() }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace.mro() }}",
    "{{ 1 / 0 }}",
    "{{ range(999999999) }}",
    "{{ undefined.x }}",
]
BOMBS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [[1, [2]] * 9] recursive %}"
    "{% for i in range(9) %}{{ loop(x) if x is iterable }}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}" + "spam " * 200 + "{% endfor %}{% endfor %}",
    "{% set x = 'x' * 30000000 %}{% for i in range(99) %}{% set y %}{{ x }}{% endset %}{% endfor %}",
    "{% for i in range(30) %}{{ 'x' * 1000000 }}{% endfor %}",
    "{{ 'x' * 10 ** 12 }}",
    "{{ [1] * 10 ** 12 }}",
    "{{ 10 ** 100000 }}",
]


@pytest.mark.parametrize("source", [*ESCAPES, *BOMBS])
def test_what_a_template_may_not_do_is_refused(source: str) -> None:
    began_s = time.process_time()
    with pytest.raises(InvalidRequest, match="do not fit the chat template"):
        render(source)
    assert time.process_time() - began_s < 30


def test_a_prompt_cannot_be_longer_than_a_message_to_the_server() -> None:
    most = "x" * MAX_PROMPT_CHARACTERS
    assert len(render("{{ messages[0].content }}", Conversation((user(most),)))) == MAX_PROMPT_CHARACTERS
    with pytest.raises(InvalidRequest, match="longer than"):
        render("{{ messages[0].content }}x", Conversation((user(most),)))


def test_a_long_conversation_is_far_from_the_limits() -> None:
    messages = tuple(user("x" * 200) if i % 2 == 0 else assistant("y" * 200) for i in range(4000))
    assert len(render(QWEN3, Conversation(messages))) > 800_000


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.sampled_from(["", " ", "\n", "a"]))
def test_a_continued_message_ends_the_prompt(text: str, tail: str) -> None:
    """Whatever the message is, the prompt ends in it, but for the blanks at its end that a template may trim."""
    conversation = Conversation(
        (user("q"), assistant(text + tail)), add_generation_prompt=False, continue_final_message=True
    )
    assert render("{{ messages[1].content }}<end>", conversation) == text + tail
    assert render("{{ messages[1].content | trim }}<end>", conversation) == (text + tail).strip()


def test_rendering_leaves_the_callers_messages_alone() -> None:
    with pytest.raises(InvalidRequest):
        render("{% set m = messages[0] %}{{ m.update({'content': 'y'}) }}")
    assert MESSAGES[0][0].content == "  Hi <b>& you</b>  "


def test_the_corners_of_jinja_are_all_in_use() -> None:
    assert "abab" in render(CORNERS) and served("byte_level").chat_templates is None
