"""Thoughts told apart from answers, wherever the text is cut; which marks a model uses; what workers are told."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import served

from rayline.protos.conversation import ChatMessage, Conversation
from rayline.protos.errors import InvalidRequest
from rayline.protos.types import SamplingParams, Spec, Thinking
from rayline.router.output_form import ChatFormats, output_form, thinking_of
from rayline.router.reasoning import FORMATS, MISTRAL, THINK, ReasoningSplitter, detected

TOKENIZER = served("byte_level")
CHAT = ChatFormats(None, THINK)
SCRAPS = ["<think>", "</think>", "[THINK]", "[/THINK]", "\n", " ", "<", "/", "think>", "a", "é"]


def split(pieces: list[str], is_open: bool = False, hidden: frozenset[str] = frozenset()) -> tuple[str, str]:
    splitter = ReasoningSplitter(THINK, is_open, hidden)
    said = [*map(splitter.push, pieces), splitter.finish()]
    return "".join(thought for thought, _ in said), "".join(answer for _, answer in said)


EXAMPLES = [
    ("<think>\nLet me see.\n\nYes.\n</think>\n\nIt is 4.", False, "Let me see.\n\nYes.", "It is 4."),
    ("\n<think>a</think>b\n", False, "a", "b\n"),
    ("<think>\n\n</think>\n\nHi", False, "", "Hi"),
    ("hm\n</think>\n\nHi", True, "hm", "Hi"),
    ("<think>said twice</think>Hi", True, "said twice", "Hi"),
    ("<think>cut o", False, "cut o", ""),
    ("cut off\n", True, "cut off", ""),
    (" plain <think>no</think>", False, "", " plain <think>no</think>"),
    ("a</think>b<think>c</think>", True, "a", "b<think>c</think>"),
    ("a < b </thin", True, "a < b </thin", ""),
    ("", True, "", ""),
]


@pytest.mark.parametrize(("output", "is_open", "thought", "answer"), EXAMPLES)
def test_an_output_is_split_into_thought_and_answer(output: str, is_open: bool, thought: str, answer: str) -> None:
    assert split([output], is_open) == (thought, answer)
    assert split(list(output), is_open) == (thought, answer)


@given(st.lists(st.sampled_from(SCRAPS), max_size=12), st.booleans(), st.integers(1, 5))
def test_any_output_is_split_alike_wherever_it_is_cut(scraps: list[str], is_open: bool, size: int) -> None:
    output = "".join(scraps)
    pieces = [output[at : at + size] for at in range(0, len(output), size)]
    thought, answer = split(pieces, is_open)
    assert (thought, answer) == split([output], is_open)
    said = re.sub(r"\s", "", thought + answer)
    whole = re.sub(r"\s", "", output)
    assert said == whole or said in (whole.replace("<think>", "", 1), _without_marks(whole))


def _without_marks(output: str) -> str:
    return output.removeprefix("<think>").replace("</think>", "", 1)


def test_thoughts_come_as_they_are_thought() -> None:
    splitter = ReasoningSplitter(THINK)
    assert [splitter.push(piece) for piece in ("<thi", "nk>\nFirst", ", second", ". </", "think>", "\n\nDone")] == [
        ("", ""),
        ("First", ""),
        (", second", ""),
        (".", ""),
        ("", ""),
        ("", "Done"),
    ]
    assert not splitter.is_thinking


@pytest.mark.parametrize(
    ("template", "tokens", "format"),
    [
        ("{{ message.content.split('</think>')[-1] }}", [], THINK),
        ("{{ '<think>\\n\\n</think>\\n\\n' }}", [], THINK),
        ("{{ '[THINK]' + thought + '[/THINK]' }}", [], MISTRAL),
        ("{{ message.content }}", ["<think>", "</think>"], THINK),
        ("{{ message.content }}", ["<think>"], None),
        ("{{ message.content }}", [], None),
    ],
)
def test_the_marks_are_those_of_the_template_or_the_vocabulary(
    template: str, tokens: list[str], format: object
) -> None:
    assert detected(template, tokens) is format


def asked(prompt: str, **changes: object) -> tuple[Spec, tuple[int, ...]]:
    """A spec and the ids of the prompt that its template made."""
    conversation = changes.pop("conversation", Conversation((ChatMessage("user", "hi"),)))
    assert isinstance(conversation, Conversation | None)
    params = SamplingParams(**changes)  # type: ignore[arg-type]
    given = None if conversation is not None else prompt
    return Spec("r", "", params, prompt=given, conversation=conversation), TOKENIZER.encode(prompt)


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("user\nhi\nassistant\n<think>\n", True),
        ("user\nhi\nassistant\n", False),
        ("user\nhi\nassistant\n<think>\n\n</think>\n\n", False),
        ("user\nis <think> a tag?\nassistant\n", False),
    ],
)
def test_an_output_begins_inside_of_a_thought_when_the_prompt_opened_it(prompt: str, is_open: bool) -> None:
    spec, prompt_ids = asked(prompt)
    assert output_form(spec, prompt_ids, TOKENIZER, CHAT).is_open is is_open
    start, end = (TOKENIZER.encode(mark, add_special_tokens=False) for mark in ("<think>", "</think>"))
    assert thinking_of(spec, prompt_ids, TOKENIZER, CHAT) == Thinking(start, end, None, is_open)


@pytest.mark.parametrize(("content", "is_open"), [("<think>so far", True), ("<think>a</think>b", False), ("b", False)])
def test_a_continued_message_may_stop_in_the_middle_of_a_thought(content: str, is_open: bool) -> None:
    messages = (ChatMessage("user", "hi"), ChatMessage("assistant", content))
    conversation = Conversation(messages, add_generation_prompt=False, continue_final_message=True)
    spec, prompt_ids = asked(f"assistant\n{content}", conversation=conversation, thinking_budget=7)
    assert output_form(spec, prompt_ids, TOKENIZER, CHAT).is_open is is_open
    thinking = thinking_of(spec, prompt_ids, TOKENIZER, CHAT)
    assert thinking is not None and thinking.is_open is is_open and thinking.budget_tokens == 7


def test_a_plain_prompt_is_answered_in_plain_text_but_can_be_given_a_budget() -> None:
    spec, prompt_ids = asked("Q <think>", conversation=None)
    assert output_form(spec, prompt_ids, TOKENIZER, CHAT).reasoning is None
    assert thinking_of(spec, prompt_ids, TOKENIZER, CHAT) is None
    spec, prompt_ids = asked("Q <think>", conversation=None, thinking_budget=0)
    thinking = thinking_of(spec, prompt_ids, TOKENIZER, CHAT)
    assert thinking is not None and thinking.is_open and thinking.budget_tokens == 0


def test_a_budget_that_nothing_can_keep_is_refused() -> None:
    spec, prompt_ids = asked("hi", thinking_budget=5)
    with pytest.raises(InvalidRequest, match="does not mark what it thinks") as caught:
        thinking_of(spec, prompt_ids, TOKENIZER, ChatFormats())
    assert caught.value.field == "thinking_budget"


def test_each_format_is_found_by_its_name() -> None:
    assert {name: format.name for name, format in FORMATS.items()} == {"think": "think", "mistral": "mistral"}
