"""Tools and thoughts through the OpenAI HTTP API and gRPC, with the real openai package, over fake groups."""

import json
from typing import Any

import openai
import pytest
from doors import HI, client_of
from fakes import FakeGroup, info, saying, service_of
from openai.types.chat import ChatCompletion

from rayline.router.output_form import ChatFormats
from rayline.router.reasoning import THINK
from rayline.router.tools.formats import FORMATS

TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}\n"
    "{% endfor %}{{ mood | default('') }}"
)
CHAT = ChatFormats(FORMATS["hermes"], THINK)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLING = (
    "<think>\nA tool.\n</think>\n\nI look.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
)


def group(text: str) -> FakeGroup:
    return FakeGroup(saying(text), info=info(max_model_len=2000))


def collected(answer: Any, stream: bool) -> tuple[dict[str, Any], str]:
    """One choice's message and reason, put together from deltas as clients do."""
    if not stream:
        assert isinstance(answer, ChatCompletion)
        message = answer.choices[0].message.model_dump()
        calls = [call["function"] | {"id": call["id"]} for call in message["tool_calls"] or []]
        return {**message, "tool_calls": calls}, answer.choices[0].finish_reason
    text, thought, reason = "", "", ""
    calls: list[dict[str, Any]] = []
    for chunk in answer:
        choice = chunk.choices[0]
        delta = choice.delta.model_dump()
        text += delta["content"] or ""
        thought += delta.get("reasoning_content") or ""
        for piece in delta["tool_calls"] or []:
            if piece["index"] == len(calls):
                calls.append({"id": piece["id"], "name": piece["function"]["name"], "arguments": ""})
            calls[piece["index"]]["arguments"] += piece["function"]["arguments"] or ""
        reason = choice.finish_reason or reason
    return {"content": text or None, "reasoning_content": thought, "tool_calls": calls}, reason


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_comes_apart_from_thought_and_text(stream: bool) -> None:
    fake = group(CALLING)
    service = service_of(fake, template=TEMPLATE, chat=CHAT)
    with client_of(service) as client:
        answer: Any = client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER], stream=stream)
        message, reason = collected(answer, stream)
    (call,) = message["tool_calls"]
    assert reason == "tool_calls" and call["name"] == "weather" and call["id"]
    assert json.loads(call["arguments"]) == {"city": "Köln"}
    assert (message["content"] or "").strip() == "I look." and message["reasoning_content"].strip() == "A tool."
    prompt = service.detokenize("tiny", fake.requests[0].prompt_ids)
    assert "tools:" in prompt and "The weather in a city." in prompt


def test_thoughts_count_as_reasoning_tokens() -> None:
    with client_of(service_of(group("<think>hm hm</think>yes"), template=TEMPLATE, chat=CHAT)) as client:
        answer = client.chat.completions.create(model="tiny", messages=HI)
    assert answer.choices[0].message.content == "yes" and answer.usage is not None
    assert answer.choices[0].message.model_dump()["reasoning"] == "hm hm"
    details = answer.usage.completion_tokens_details
    assert details is not None and details.reasoning_tokens is not None
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens


def test_calls_and_their_answers_are_laid_out_as_turns() -> None:
    fake = group("Rain.")
    service = service_of(fake, template=TEMPLATE, chat=CHAT)
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
    turns: Any = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    with client_of(service) as client:
        client.chat.completions.create(model="tiny", messages=turns, tools=[WEATHER])
    shown = service.detokenize("tiny", fake.requests[0].prompt_ids)
    assert 'weather({"city": "Köln"})' in shown and "tool: rain" in shown


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=["required", "named"]
)
def test_a_forced_call_is_held_to_a_grammar(choice: Any) -> None:
    fake = group(CALLING)
    with client_of(service_of(fake, template=TEMPLATE, chat=CHAT)) as client:
        client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER], tool_choice=choice)
        client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER])
    forced, free = fake.requests
    assert "weather" in forced.rules.grammar and "city" in forced.rules.grammar
    assert free.rules.grammar == ""
    assert forced.rules.thinking is not None and forced.rules.thinking.budget_tokens is None


def test_tool_choice_none_shows_the_model_no_tools() -> None:
    fake = group("Sun.")
    service = service_of(fake, template=TEMPLATE, chat=CHAT)
    with client_of(service) as client:
        client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER], tool_choice="none")
    assert "tools:" not in service.detokenize("tiny", fake.requests[0].prompt_ids)


def test_response_format_reaches_the_group_as_a_grammar() -> None:
    fake = group("{}")
    schema = {"name": "s", "schema": WEATHER["function"]["parameters"], "strict": True}
    with client_of(service_of(fake, template=TEMPLATE)) as client:
        client.chat.completions.create(
            model="tiny",
            messages=HI,
            response_format={"type": "json_schema", "json_schema": schema},  # type: ignore[typeddict-item]
        )
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="tiny", prompt="x", extra_body={"structured_outputs": {"regex": "("}})
    assert "city" in fake.requests[0].rules.grammar and len(fake.requests) == 1
    assert refused.value.param == "structured_output"


def test_effort_and_budget_reach_template_and_group() -> None:
    fake = group("yes")
    service = service_of(fake, template=TEMPLATE + "{{ reasoning_effort }} {{ enable_thinking }}", chat=CHAT)
    with client_of(service) as client:
        client.chat.completions.create(model="tiny", messages=HI, reasoning_effort="none")
        client.chat.completions.create(
            model="tiny", messages=HI, extra_body={"thinking_budget": 5, "chat_template_kwargs": {"mood": "calm"}}
        )
    none, five = fake.requests
    assert none.rules.thinking is not None and none.rules.thinking.budget_tokens == 0
    assert five.rules.thinking is not None and five.rules.thinking.budget_tokens == 5
    assert service.detokenize("tiny", none.prompt_ids).endswith("none False")
    assert "calm" in service.detokenize("tiny", five.prompt_ids)
