"""One sequence and its grammar: which tokens may come, where it ends, what thinking changes."""

from pathlib import Path

import numpy as np
import pytest
from grammars import allowed, byte_ids, matcher, tokenizer, vocabulary
from small_tokenizers import write

from rayline.workers.mask import Mask
from rayline.workers.matcher import Ends, GrammarFailed, Matcher, Vocabulary

EOS = 2


AB = '{"grammars":[{"lark_grammar":"start: /(ab)*/"}]}'
FIXED = '{"grammars":[{"lark_grammar":"start: /abc/"}]}'


def texts(mask: Mask) -> set[str]:
    words = tokenizer()
    return {"END" if i == EOS else words.token_text(i) for i in allowed(mask)}


def fed(place: Matcher, text: str) -> Matcher:
    for byte in text.encode():
        place.consume(byte_ids()[byte])
    return place


def test_end_of_sequence_is_allowed_exactly_where_the_grammar_may_end() -> None:
    assert "END" in texts(matcher(AB).mask())
    assert "END" not in texts(fed(matcher(AB), "a").mask())
    assert "END" in texts(fed(matcher(AB), "ab").mask())


def test_a_complete_grammar_leaves_nothing_but_the_end() -> None:
    mask = fed(matcher(FIXED), "abc").mask()
    assert texts(mask) == {"END"} and mask.must_end
    assert not fed(matcher(AB), "ab").mask().must_end


def test_a_stop_token_is_allowed_where_the_grammar_may_end() -> None:
    stop = byte_ids()[ord("!")]
    ends = Ends.of((EOS,), (stop,), ignore_eos=False)
    assert {stop, EOS} <= set(allowed(matcher(AB, ends).mask()))
    assert not {stop, EOS} & set(allowed(fed(matcher(AB, ends), "a").mask()))


def test_a_stop_token_that_the_grammar_could_use_does_not_cut_it() -> None:
    stop = byte_ids()[ord("a")]
    place = matcher('{"grammars":[{"lark_grammar":"start: /x[a-c]y/"}]}', Ends.of((EOS,), (stop,), False))
    assert not fed(place, "x").mask().allows(stop)
    assert place.mask().allows(byte_ids()[ord("b")])


def test_a_stop_token_that_alone_goes_on_is_taken_as_the_end() -> None:
    stop = byte_ids()[ord("q")]
    place = matcher('{"grammars":[{"lark_grammar":"start: /xqy/"}]}', Ends.of((EOS,), (stop,), False))
    mask = fed(place, "x").mask()
    assert stop in allowed(mask)


def test_under_ignore_eos_the_end_comes_only_when_nothing_else_can() -> None:
    ends = Ends.of((EOS,), (), ignore_eos=True)
    assert "END" not in texts(fed(matcher(AB, ends), "ab").mask())
    assert texts(fed(matcher(FIXED, ends), "abc").mask()) == {"END"}


def test_a_model_without_an_end_ends_by_stop_tokens_or_not_at_all() -> None:
    words = vocabulary(eos_ids=())
    stop = byte_ids()[ord("!")]
    place = Matcher(words, words.compiled(FIXED), Ends.of((), (stop,), False))
    assert allowed(fed(place, "abc").mask()) == [stop]
    with pytest.raises(GrammarFailed, match="give stop_token_ids"):
        fed(Matcher(words, words.compiled(FIXED), Ends.of((), (), False)), "abc").mask()


def test_several_ends_of_a_model_are_all_allowed() -> None:
    words = vocabulary(eos_ids=(2, 4))
    place = Matcher(words, words.compiled(FIXED), Ends.of((2, 4), (), False))
    assert allowed(fed(place, "abc").mask()) == [2, 4]


def test_a_token_that_does_not_fit_is_a_failure_that_stays() -> None:
    place = matcher(FIXED)
    with pytest.raises(GrammarFailed):
        fed(place, "x")
    with pytest.raises(GrammarFailed):
        place.mask()
    with pytest.raises(GrammarFailed, match="after its end"):
        fed(matcher(FIXED), "abcd")


def test_a_copy_goes_its_own_way() -> None:
    place = fed(matcher('{"grammars":[{"lark_grammar":"start: /a(b|c)d/"}]}'), "a")
    twin = place.copy(Ends((EOS,)))
    fed(place, "bd")
    assert byte_ids()[ord("c")] in allowed(twin.mask())
    assert texts(fed(twin, "cd").mask()) == {"END"}


@pytest.mark.parametrize("vocab_size", [4096, 4100, 4128, 5000, 4000, 70])
def test_masks_are_as_wide_as_the_models_vocabulary(vocab_size: int) -> None:
    words = Vocabulary(tokenizer_folder(), vocab_size, (EOS,))
    mask = Matcher(words, words.compiled('{"grammars":[{"lark_grammar":"start: /(?s:.*)/"}]}'), Ends((EOS,))).mask()
    assert mask.words is not None and mask.words.shape == (-(-vocab_size // 32),) and mask.words.dtype == np.int32
    bits = np.unpackbits(mask.words.view(np.uint8), bitorder="little")
    assert not bits[min(vocab_size, 4096) :].any()
    assert bits.sum() > 30


def tokenizer_folder() -> Path:
    from grammars import EMBEDDED

    return EMBEDDED


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_every_usual_tokenizer_gives_bytes(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind)
    words = Vocabulary(tmp_path, 1000, (2,))
    place = Matcher(words, words.compiled('{"grammars":[{"lark_grammar":"start: /[a-z é]+/"}]}'), Ends((2,)))
    mask = place.mask()
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = allowed(mask, 1000)
    assert any("the" in (backend.id_to_token(i) or "") for i in ids)
    assert 2 not in ids and backend.token_to_id("(") not in ids


def test_a_model_without_tokenizer_json_fails_the_request(tmp_path: Path) -> None:
    with pytest.raises(GrammarFailed, match=r"tokenizer\.json"):
        Vocabulary(tmp_path, 1000, (2,))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(GrammarFailed, match=r"tokenizer\.json"):
        Vocabulary(tmp_path, 1000, (2,))
