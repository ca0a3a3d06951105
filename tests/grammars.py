"""Grammars without an engine: whether a text fits one, and which texts it produces."""

import random
from functools import cache
from pathlib import Path

import numpy as np

from rayline.deploy.model_path import resolve_model
from rayline.router.tokenizer import Tokenizer
from rayline.workers.mask import Mask
from rayline.workers.matcher import Ends, GrammarFailed, Matcher, Vocabulary

EMBEDDED = resolve_model("embedded")


@cache
def tokenizer(path: Path = EMBEDDED) -> Tokenizer:
    return Tokenizer.load(path)


@cache
def vocabulary(path: Path = EMBEDDED, vocab_size: int = 4096, eos_ids: tuple[int, ...] = (2,)) -> Vocabulary:
    return Vocabulary(path, vocab_size, eos_ids)


def matcher(grammar: str, ends: Ends | None = None) -> Matcher:
    """A grammar for the embedded model, at its beginning."""
    words = vocabulary()
    return Matcher(words, words.compiled(grammar), ends or Ends(words.eos_ids))


def allowed(mask: Mask, vocab_size: int = 4096) -> list[int]:
    """Ids of a mask's bits."""
    assert mask.words is not None
    return np.flatnonzero(np.unpackbits(mask.words.view(np.uint8), bitorder="little")[:vocab_size]).tolist()


def accepts(grammar: str, text: str) -> bool:
    """Whether the whole of `text` fits, byte by byte: a mask allows but the usual token of what is forced."""
    place = matcher(grammar)
    try:
        for byte in text.encode():
            place.consume(byte_ids()[byte])
        return place.mask().allows(vocabulary().eos_ids[0])
    except GrammarFailed:
        return False


@cache
def byte_ids() -> dict[int, int]:
    """The embedded model's token of each byte."""
    words = tokenizer()
    tokens = ((i, words.token_bytes(i)) for i in range(words.vocab_size) if i not in words.special_ids)
    return {data[0]: i for i, data in tokens if len(data) == 1}


def written(grammar: str, seed: int, most: int = 400) -> str | None:
    """A text that fits, of random allowed tokens, which end where they may; None when `most` tokens do not end it."""
    place, draw, words = matcher(grammar), random.Random(seed), vocabulary()
    ids: list[int] = []
    for _ in range(most):
        choices = allowed(place.mask())
        token = words.eos_ids[0] if words.eos_ids[0] in choices else draw.choice(choices)
        if token in words.eos_ids:
            return tokenizer().decode(ids)
        ids.append(token)
        place.consume(token)
    return None
