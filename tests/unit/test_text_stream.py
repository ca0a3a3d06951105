"""Tokens to deltas: stop strings over token borders, min_tokens, stop tokens, logprobs."""

from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import KINDS, byte_level, served
from tokenizers import AddedToken

from rayline.protos.conversation import Tool
from rayline.protos.events import Delta, FinishReason, TokenEvent, TokenLogprob
from rayline.protos.types import SamplingParams
from rayline.router.output_form import OutputForm
from rayline.router.reasoning import MISTRAL, THINK
from rayline.router.text_stream import TextStream, joined
from rayline.router.tokenizer import Tokenizer
from rayline.router.tools.formats import FORMATS

TOKENIZER = served("byte_level")


def events(text: str) -> list[TokenEvent]:
    return [TokenEvent("r", index, i) for index, i in enumerate(TOKENIZER.encode(text))]


def run(stream: TextStream, tokens: list[TokenEvent]) -> list[Delta]:
    deltas = [stream.push(token) for token in tokens]
    last = stream.finish()
    return deltas if last is None else [*deltas, last]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_a_stop_string_split_over_two_tokens_ends_the_stream() -> None:
    tokens = events("the quick brown fox")
    assert len(tokens) == 4
    stream = TextStream(TOKENIZER, SamplingParams(stop=("k br",)))
    deltas = run(stream, tokens)
    assert text_of(deltas) == "the quic"
    assert stream.stopped == "k br"
    assert stream.output_tokens == sum(len(delta.token_ids) for delta in deltas) < len(tokens)


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_the_text_is_the_decoded_text_up_to_the_first_stop_string(text: str, stops: list[str]) -> None:
    stream = TextStream(TOKENIZER, SamplingParams(stop=tuple(stops)))
    said = text_of(run(stream, events(text)))
    whole = TOKENIZER.decode([event.token_id for event in events(text)])
    if stream.stopped is None:
        assert said == whole and not any(stop in whole for stop in stops)
    else:
        assert whole.startswith(said + stream.stopped)


@given(st.text(max_size=20), st.integers(1, 5))
def test_tokens_of_one_step_pushed_together_say_the_same(text: str, together: int) -> None:
    tokens = events(text)
    params = SamplingParams(stop=("e ", "oo"))
    one, many = TextStream(TOKENIZER, params), TextStream(TOKENIZER, params)
    singly = run(one, tokens)
    groups = [many.push(*tokens[at : at + together]) for at in range(0, len(tokens), together)]
    last = many.finish()
    assert text_of(groups) + (last.text if last else "") == text_of(singly)
    assert one.stopped == many.stopped and one.output_tokens == many.output_tokens


def test_stop_strings_in_the_first_min_tokens_are_ignored() -> None:
    tokens = events("dog dog dog")
    first = len(events("dog"))
    stream = TextStream(TOKENIZER, SamplingParams(stop=("dog",), min_tokens=first))
    assert text_of(run(stream, tokens)) == "dog "
    assert TextStream(TOKENIZER, SamplingParams(stop=("dog",))).push(*tokens).text == ""


def test_the_text_of_a_stop_token_is_left_out() -> None:
    tokens = events("fox.")
    dot = tokens[-1].token_id
    assert text_of(run(TextStream(TOKENIZER, SamplingParams(stop_token_ids=(dot,))), tokens)) == "fox"
    late = SamplingParams(stop_token_ids=(dot,), min_tokens=len(tokens))
    assert text_of(run(TextStream(TOKENIZER, late), tokens)) == "fox."


def test_special_tokens_add_ids_but_no_text() -> None:
    (end,) = TOKENIZER.encode("</s>")
    delta = TextStream(TOKENIZER, SamplingParams()).push(TokenEvent("r", 0, end))
    assert delta == Delta(0, (end,), "")


def test_logprobs_carry_the_text_each_candidate_stands_for() -> None:
    the, dog = (TOKENIZER.encode(word)[0] for word in ("the", "dog"))
    token = TokenEvent("r", 0, the, -0.5, (TokenLogprob(the, -0.5), TokenLogprob(dog, -1.5)))
    (logprob,) = TextStream(TOKENIZER, SamplingParams(logprobs=2)).push(token).logprobs
    word = TOKENIZER.decode([dog])
    assert logprob.text == TOKENIZER.decode([the]) and logprob.logprob == -0.5
    assert logprob.top == ((the, logprob.text, -0.5), (dog, word, -1.5))


def test_a_held_beginning_of_a_stop_string_is_said_at_the_end() -> None:
    stream = TextStream(TOKENIZER, SamplingParams(stop=("fox!",)))
    deltas = [stream.push(token) for token in events("the fox")]
    assert text_of(deltas) == "the "
    assert stream.finish() == Delta(0, (), "fox")


def test_a_held_half_character_can_still_complete_a_stop_string() -> None:
    broken = [TokenEvent("r", n, i) for n, i in enumerate(TOKENIZER.encode("\u0fff")[:-1])]
    stream = TextStream(TOKENIZER, SamplingParams(stop=("\ufffd",)))
    assert run(stream, broken)[-1].text == "" and stream.stopped == "\ufffd"


def test_every_kind_of_tokenizer_serves() -> None:
    for kind in KINDS:
        tokenizer = served(kind)
        tokens = [TokenEvent("r", n, i) for n, i in enumerate(tokenizer.encode("the dog"))]
        stream = TextStream(tokenizer, SamplingParams(stop=("dog",)))
        assert text_of(run(stream, tokens)).rstrip() == "the", kind
        assert stream.stopped == "dog", kind


def test_a_stop_string_or_token_can_be_part_of_the_text() -> None:
    tokens = events("the quick fox.")
    params = SamplingParams(stop=("k f",), include_stop_str_in_output=True)
    assert text_of(run(TextStream(TOKENIZER, params), tokens)) == "the quick f"
    params = SamplingParams(stop_token_ids=(tokens[-1].token_id,), include_stop_str_in_output=True)
    assert text_of(run(TextStream(TOKENIZER, params), tokens)) == "the quick fox."


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_can_be_shown(kind: str) -> None:
    tokenizer = served(kind)
    special = sorted(tokenizer.special_ids)[:2]
    ids = [*special, *tokenizer.encode("the dog", add_special_tokens=False), *special]
    tokens = [TokenEvent("r", n, i) for n, i in enumerate(ids)]
    shown = text_of(run(TextStream(tokenizer, SamplingParams(skip_special_tokens=False)), tokens))
    assert shown == tokenizer.decode(ids, skip_special_tokens=False)
    assert text_of(run(TextStream(tokenizer, SamplingParams()), tokens)) == tokenizer.decode(ids)


def test_the_end_of_sequence_is_no_text_even_where_special_tokens_are_shown() -> None:
    tokenizer = served("byte_level", eos_token="</s>")
    tokens = [TokenEvent("r", n, i) for n, i in enumerate(tokenizer.encode("a<s>b</s>"))]
    shown = SamplingParams(skip_special_tokens=False)
    assert text_of(run(TextStream(tokenizer, shown), tokens)) == "a<s>b"
    for params in (replace(shown, ignore_eos=True), replace(shown, include_stop_str_in_output=True)):
        assert text_of(run(TextStream(tokenizer, params), tokens)) == "a<s>b</s>"


NOW = (Tool("now", "", '{"type": "object"}'),)
HERMES = OutputForm(THINK, False, FORMATS["hermes"], NOW)
CALL = '<tool_call>\n{"name": "now", "arguments": {"x": "</think>"}}\n</tool_call>'


def with_specials(*names: str) -> Tokenizer:
    """A byte-level tokenizer with further special tokens."""
    backend = byte_level()
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    return Tokenizer(backend, {}, {})


def spoken(tokenizer: Tokenizer, form: OutputForm, output: str, **params: Any) -> tuple[TextStream, Delta]:
    """The stream after an output, and all its deltas joined."""
    stream = TextStream(tokenizer, SamplingParams(**params), (1, 2), 0, form)
    tokens = [TokenEvent("r", n, i) for n, i in enumerate(tokenizer.encode(output, add_special_tokens=False))]
    whole = reduce(joined, run(stream, tokens), Delta(0, (), ""))
    assert len(whole.token_ids) == stream.output_tokens
    return stream, whole


def test_thoughts_answer_and_calls_come_apart() -> None:
    stream, delta = spoken(TOKENIZER, HERMES, f"<think>\nHm <tool_call>\n</think>\n\nNow:\n{CALL}\n")
    assert (delta.reasoning, delta.text) == ("Hm <tool_call>", "Now:")
    assert [(call.index, call.name) for call in delta.tool_calls if call.name] == [(0, "now")]
    assert "".join(call.arguments for call in delta.tool_calls) == '{"x": "</think>"}'
    assert stream.reason(FinishReason.STOP) is FinishReason.TOOL_CALLS
    assert stream.reason(FinishReason.LENGTH) is FinishReason.LENGTH


def test_an_output_without_calls_ends_as_it_would_without_tools() -> None:
    stream, delta = spoken(TOKENIZER, HERMES, "No <tool_call> here.\n")
    assert delta.text == "No <tool_call> here.\n" and not delta.tool_calls
    assert stream.reason(FinishReason.STOP) is FinishReason.STOP
    assert TextStream(TOKENIZER, SamplingParams()).reason(FinishReason.STOP) is FinishReason.STOP


@pytest.mark.parametrize(
    ("output", "is_open", "thought"),
    [
        ("<think>a b</think> c d", False, "<think>a b</think>"),
        ("a b</think> c d", True, "a b</think>"),
        ("<think>a b c d", False, "<think>a b c d"),
        ("a b c d", True, "a b c d"),
        ("a b c d", False, ""),
    ],
)
def test_tokens_up_to_the_end_of_thinking_are_counted(output: str, is_open: bool, thought: str) -> None:
    tokenizer = with_specials("<think>", "</think>")
    stream, _ = spoken(tokenizer, OutputForm(THINK, is_open), output)
    assert stream.reasoning_tokens == len(tokenizer.encode(thought, add_special_tokens=False))


def test_marks_that_are_special_tokens_are_seen_by_the_parsers_and_by_nobody_else() -> None:
    tokenizer = with_specials("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]")
    form = OutputForm(MISTRAL, False, FORMATS["mistral_v11"], NOW)
    _, delta = spoken(tokenizer, form, '[THINK]hm[/THINK]Hi[ARGS] you.[TOOL_CALLS]now[ARGS]{"x": 1}<s>')
    assert (delta.reasoning, delta.text) == ("hm", "Hi you.")
    assert "".join(call.arguments for call in delta.tool_calls) == '{"x": 1}'
    assert len(delta.tool_calls[0].id) == 9
    _, delta = spoken(tokenizer, OutputForm(MISTRAL), "[/THINK]Hi[THINK]<s>!")
    assert (delta.reasoning, delta.text) == ("", "Hi!")
    _, delta = spoken(tokenizer, OutputForm(MISTRAL), "Hi[THINK]<s>", skip_special_tokens=False)
    assert delta.text == "Hi[THINK]<s>"


def test_stop_strings_end_the_raw_text_whatever_it_is_part_of() -> None:
    stream, delta = spoken(TOKENIZER, HERMES, f"<think>a b</think>Hi the {CALL}", stop=("b</t",))
    assert stream.stopped == "b</t" and (delta.reasoning, delta.text) == ("a", "")
    stream, delta = spoken(TOKENIZER, HERMES, f"Hi \n{CALL}", stop=('"x"',))
    assert stream.stopped == '"x"' and delta.text == "Hi" and delta.tool_calls[-1].arguments.endswith("{")
    stream, delta = spoken(TOKENIZER, HERMES, "Hi <tool", stop=("ool",))
    assert delta.text == "Hi <t"


def test_the_last_delta_holds_all_that_a_stop_string_left() -> None:
    """Nobody asks a stopped stream for more."""
    stream = TextStream(TOKENIZER, SamplingParams(stop=("dog",)), (), 0, HERMES)
    tokens = [TokenEvent("r", n, i) for n, i in enumerate(TOKENIZER.encode("the <tool dog"))]
    assert text_of([stream.push(token) for token in tokens]) == "the <tool "
    assert stream.stopped == "dog"


@given(st.lists(st.sampled_from(["<think>", "</think>", CALL, "<tool_call>", "\n", "the ", '{"a":']), max_size=6))
def test_tokens_pushed_together_say_the_same_through_parsers(parts: list[str]) -> None:
    tokens = events("".join(parts))
    one, many = (TextStream(TOKENIZER, SamplingParams(), (1,), 0, HERMES) for _ in range(2))
    singly = reduce(joined, run(one, tokens), Delta(0, (), ""))
    together = many.push(*tokens)
    rest = many.finish()
    whole = together if rest is None else joined(together, rest)
    assert (whole.text, whole.reasoning) == (singly.text, singly.reasoning)
    assert "".join(c.arguments for c in whole.tool_calls) == "".join(c.arguments for c in singly.tool_calls)
