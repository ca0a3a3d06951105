"""Tokens to deltas: stop strings over token borders, min_tokens, stop tokens, logprobs."""

from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import KINDS, served

from rayline.protos.events import Delta, TokenEvent, TokenLogprob
from rayline.protos.types import SamplingParams
from rayline.router.text_stream import TextStream

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
