"""Conversations through the real engine: the embedded model under a template that teaches tools and thoughts."""

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from chat_templates import QWEN3
from tool_texts import TOOLS

from rayline.deploy.llm import LLM
from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolChoice
from rayline.protos.events import FinishReason
from rayline.protos.types import SamplingParams

EMBEDDED = Path(__file__).parents[2] / "deploy/embedded"
THESE = tuple(Tool(name, "", json.dumps(schema)) for name, schema in TOOLS.items())


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("model")
    for file in EMBEDDED.iterdir():
        if not file.name.endswith(".jinja"):
            (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").write_text(QWEN3)
    with LLM(str(folder), max_model_len=2048) as llm:
        yield llm


def asked(choice: ToolChoice, parallel: bool = True, tools: tuple[Tool, ...] = THESE) -> Conversation:
    return Conversation((ChatMessage("user", "add 1 and 2"),), tools, choice, parallel)


@pytest.mark.parametrize("seed", range(2))
def test_required_tools_are_called_with_arguments_that_fit(llm: LLM, seed: int) -> None:
    params = SamplingParams(seed=seed, max_tokens=250, temperature=0.8, thinking_budget=6)
    (completion,) = llm.chat([asked(ToolChoice("required"))], params)
    (choice,) = completion.choices
    assert choice.tool_calls and all(call.id.startswith("call_") for call in choice.tool_calls)
    assert completion.usage.reasoning_tokens <= 6 + len(llm.tokenizer.encode("<think></think>"))
    ended = choice.finish_reason is FinishReason.TOOL_CALLS
    assert choice.text == "" or not ended
    for call in choice.tool_calls if ended else choice.tool_calls[:-1]:  # the last one may be cut off
        jsonschema.validate(json.loads(call.arguments), TOOLS[call.name])


def test_a_named_tool_is_called_once_and_alike_each_time(llm: LLM) -> None:
    conversation = asked(ToolChoice("named", "now"))
    params = SamplingParams(seed=5, max_tokens=100, thinking_budget=6)
    (first,), (again,) = llm.chat([conversation], params), llm.chat([conversation], params)
    (call,) = first.choices[0].tool_calls
    assert call.name == "now" and first.choices[0].finish_reason is FinishReason.TOOL_CALLS
    assert again.choices == first.choices
