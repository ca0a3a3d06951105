"""Incremental detokenisation against the tokenizers library's own decode of all ids at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import BYTES, KINDS, served

from rayline.router.detokenizer import ContextDetokenizer, Detokenizer, detokenizer_for
from rayline.router.tokenizer import Tokenizer

TOKENIZERS = {kind: served(kind) for kind in KINDS}
TEXT = "the café 😀 日本語 \u202e\ufffd  two  blanks\n"


def pieces(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    return [*map(detokenizer.push, token_ids), detokenizer.finish()]


def ids_of(kind: str) -> st.SearchStrategy[list[int]]:
    """Any ids: broken characters, special tokens, runs of one token, ids past the end of the vocabulary."""
    size = TOKENIZERS[kind].vocab_size
    runs = st.tuples(st.integers(0, size + 2), st.integers(1, 4)).map(lambda run: [run[0]] * run[1])
    words = st.text(max_size=8).map(lambda text: list(TOKENIZERS[kind].encode(text)))
    return st.lists(st.one_of(runs, words), max_size=12).map(lambda parts: [i for part in parts for i in part])


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_the_pieces_add_up_to_the_whole_decoded_at_once(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    token_ids = data.draw(ids_of(kind))
    assert "".join(pieces(detokenizer_for(tokenizer), token_ids)) == tokenizer.decode(token_ids)


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_in_a_sequence", "byte_fallback"])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=30))
def test_no_piece_ends_inside_a_character(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    said = pieces(detokenizer_for(tokenizer), list(tokenizer.encode(text, add_special_tokens=False)))
    assert not any("\ufffd" in piece for piece in said)
    assert "".join(said).strip() == text.strip()


@given(data=st.data())
def test_a_window_over_byte_level_tokens_says_the_same_as_the_direct_way(data: st.DataObject) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    token_ids = data.draw(ids_of("byte_level"))
    direct, window = detokenizer_for(tokenizer), ContextDetokenizer(tokenizer, tokenizer.special_ids)
    assert "".join(pieces(direct, token_ids)) == "".join(pieces(window, token_ids))


def test_an_emoji_of_four_byte_tokens_comes_out_whole() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    emoji = [256 - 253 + byte for byte in "😀".encode()]
    assert [tokenizer.token(i) for i in emoji] == [BYTES[byte] for byte in "😀".encode()]
    (the,) = tokenizer.encode("the")
    assert pieces(detokenizer_for(tokenizer), [*emoji, the]) == ["", "", "", "", "😀 the", ""]


def test_a_character_that_never_completes_ends_as_a_replacement() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    broken = list(tokenizer.encode("\u0fff"))[:-1]
    assert pieces(detokenizer_for(tokenizer), broken)[-1] == "\ufffd"


def test_the_blank_between_prompt_and_output_is_kept() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    prompt, (the,) = tokenizer.encode("dog"), tokenizer.encode("the")
    assert pieces(detokenizer_for(tokenizer), [the])[0] == "the"
    assert pieces(detokenizer_for(tokenizer, prompt), [the])[0] == " the"


@given(prompt=st.text(max_size=12), output=st.text(max_size=12))
def test_prompt_and_output_join_to_the_text_of_both(prompt: str, output: str) -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    prompt_ids = tokenizer.encode("x" + prompt + "x")
    output_ids = tokenizer.encode("x" + output)
    said = "".join(pieces(detokenizer_for(tokenizer, prompt_ids), list(output_ids)))
    assert tokenizer.decode(prompt_ids) + said == tokenizer.decode([*prompt_ids, *output_ids])


class CountingTokenizer:
    """The real tokenizer, counting the ids it is asked to decode."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.decoded = tokenizer, 0
        self.special_ids, self.decoder, self.token = tokenizer.special_ids, tokenizer.decoder, tokenizer.token

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        self.decoded += len(token_ids)
        return self.tokenizer.decode(token_ids, skip_special_tokens)


@pytest.mark.parametrize("kind", ["byte_fallback", "metaspace", "word_piece"])
@pytest.mark.parametrize("text", [TEXT, "a", " ", "😀"])
def test_the_work_for_a_token_does_not_grow_with_the_stream(kind: str, text: str) -> None:
    counting = CountingTokenizer(TOKENIZERS[kind])
    token_ids = list(counting.tokenizer.encode(text * 200, add_special_tokens=False))
    detokenizer = ContextDetokenizer(counting, frozenset())  # type: ignore[arg-type]
    for token_id in token_ids:
        detokenizer.push(token_id)
    assert counting.decoded <= 20 * len(token_ids) + 20
