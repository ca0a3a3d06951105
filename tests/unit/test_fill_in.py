"""Prompts with a gap, against the layouts that the models' authors publish, and words as token sequences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import byte_fallback, byte_level, served
from tokenizers import AddedToken

from rayline.protos.errors import InvalidRequest
from rayline.router.bad_words import bad_word_ids
from rayline.router.fill_in import FORMS, Marks, fill_in_ids
from rayline.router.tokenizer import Tokenizer


def with_marks(form: Marks) -> Tokenizer:
    backend = byte_level()
    backend.add_special_tokens([AddedToken(m, special=True) for m in (form.prefix, form.suffix, form.middle) if m])
    return Tokenizer(backend, {}, {})


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.prefix)
def test_a_gap_is_marked_in_the_models_own_tokens(form: Marks) -> None:
    tokenizer = with_marks(form)
    shown = tokenizer.decode(fill_in_ids(tokenizer, "def f(", "return x"), skip_special_tokens=False)
    if form.middle:
        assert shown == f"{form.prefix}def f({form.suffix}return x{form.middle}"
    else:
        assert shown == f"{form.suffix}return x{form.prefix}def f("


def test_a_model_without_such_tokens_says_so() -> None:
    with pytest.raises(InvalidRequest, match="fill-in-the-middle") as refused:
        fill_in_ids(served("byte_level"), "a", "b")
    assert refused.value.field == "suffix"


@given(st.lists(st.sampled_from(["fox", "the dog", " quick", "Köln", "日本", "x"]), min_size=1, max_size=4))
def test_the_sequences_of_bad_words_spell_them_with_and_without_a_blank(words: list[str]) -> None:
    tokenizer = served("byte_level")
    spelled = {tokenizer.decode(ids) for ids in bad_word_ids(words, tokenizer)}
    plain = {word.lstrip(" ") for word in words}
    assert plain <= spelled <= plain | {f" {word}" for word in plain}


def test_a_sequence_that_ends_in_another_one_is_not_named_twice() -> None:
    tokenizer = Tokenizer(byte_fallback(), {}, {})
    sequences = bad_word_ids(["he", "the"], tokenizer)
    assert len(set(sequences)) == len(sequences)
    assert all(sequences)
