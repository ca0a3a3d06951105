"""Token ids to text, piece by piece: no piece ends inside a character, and all pieces joined are `decode` of all ids.

Two ways. Byte-level vocabularies spell bytes, so an incremental UTF-8 decoder is all it takes. Any other
decoder may look at neighbours (a blank before a word, runs of <0xNN>), so the last pieces are decoded again
as context and the text they grow by is the new piece.
"""

import codecs
from collections import deque
from collections.abc import Collection, Sequence
from typing import Protocol

from rayline.router.tokenizer import BYTE_TOKEN, Tokenizer, spelled_bytes

REPLACEMENT = "\ufffd"
CONTEXT_TOKENS = 8  # prompt tokens decoded along, so that a blank between prompt and output is kept


class Detokenizer(Protocol):
    """One stream's text. Hidden tokens and ids outside the vocabulary add none."""

    def push(self, token_id: int) -> str:
        """The text that is certain now; "" while a character is incomplete."""
        ...

    def finish(self) -> str:
        """What was held back: an incomplete character as U+FFFD."""
        ...


def detokenizer_for(
    tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), shown_ids: Collection[int] = ()
) -> Detokenizer:
    """The detokenizer for output that follows `prompt_ids`. Special tokens are hidden, save `shown_ids`."""
    hidden = tokenizer.special_ids.difference(shown_ids) if shown_ids else tokenizer.special_ids
    if tokenizer.decoder.byte_level and tokenizer.decoder.single:
        return ByteLevelDetokenizer(tokenizer, hidden)
    return ContextDetokenizer(tokenizer, hidden, prompt_ids)


class ByteLevelDetokenizer:
    """Each token is its bytes; broken UTF-8 becomes U+FFFD for each maximal bad part (Unicode 15, table 3-8)."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]):
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        token = None if token_id in self._hidden else self._tokenizer.token(token_id)
        return "" if token is None else self._utf8.decode(spelled_bytes(token))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class ContextDetokenizer:
    """Decodes a window of the stream:

        | piece | piece | held |
        |<- context --->|         text of the context is known and already sent

    A piece is pushed to the context when it is sent. The oldest pieces leave while the rest still decodes
    to some text: a decoder that strips a blank from the front then strips it from the context, not from the piece.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], prompt_ids: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._pieces: deque[list[int]] = deque()
        self._context_text = ""
        self._held: list[int] = []
        tail = [i for i in prompt_ids[-4 * CONTEXT_TOKENS :] if self._counts(i)][-CONTEXT_TOKENS:]
        if tail and not self._is_byte(tail[-1]):
            self._pieces.append(tail)
            self._context_text = self._text()

    def push(self, token_id: int) -> str:
        if not self._counts(token_id):
            return ""
        self._held.append(token_id)
        if self._is_byte(token_id):
            return ""  # the whole run of byte tokens is one decision of the decoder: characters, or all of it bad
        text = self._text()
        if not text.startswith(self._context_text) or text.endswith(REPLACEMENT):
            return ""
        return self._send(text)

    def finish(self) -> str:
        return self._send(self._text())

    def _text(self) -> str:
        ids = [i for piece in self._pieces for i in piece] + self._held
        return self._tokenizer.decode(ids, skip_special_tokens=False)  # the hidden ones are not among them

    def _send(self, text: str) -> str:
        piece = text[len(self._context_text) :]
        if self._held:
            self._pieces.append(self._held)
            self._held = []
            self._context_text = self._shortened(text)
        return piece

    def _shortened(self, text: str) -> str:
        """Drop the oldest pieces that are no longer needed; the text of those that stay."""
        while len(self._pieces) > 1:
            oldest = self._pieces.popleft()
            rest = self._text()
            if not rest:
                self._pieces.appendleft(oldest)
                break
            text = rest
        return text

    def _counts(self, token_id: int) -> bool:
        return token_id not in self._hidden and self._tokenizer.token(token_id) is not None

    def _is_byte(self, token_id: int) -> bool:
        token = self._tokenizer.token(token_id)
        return self._tokenizer.decoder.byte_fallback and token is not None and BYTE_TOKEN.fullmatch(token) is not None
