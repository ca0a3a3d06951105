"""Words a model may not say, as the token sequences that would say them."""

from collections.abc import Sequence

from rayline.router.tokenizer import Tokenizer


def bad_word_ids(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The sequences of each word, at the beginning of a text and behind a blank, as most vocabularies tell them apart.

    A sequence that ends in another one is left out: it cannot be completed without the other. A word may still be
    said in other pieces than the tokenizer would cut it into: that is what transformers and vLLM do, too.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        plain = tokenizer.encode(word.lstrip(" ") or word, add_special_tokens=False)
        behind_blank = tokenizer.encode(" " + word.lstrip(" "), add_special_tokens=False)
        for ids in (plain, behind_blank):
            if ids and (ids == plain or ids[-len(plain) :] != plain):
                found[ids] = None
    return tuple(found)
