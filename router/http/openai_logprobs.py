"""Logprobs as OpenAI's two APIs and vLLM write them."""

from collections.abc import Sequence
from typing import Any

from rayline.protos.events import DeltaLogprob
from rayline.router.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0  # what JSON can hold in place of minus infinity; OpenAI's own number


def chat_logprobs(entries: Sequence[DeltaLogprob], tokenizer: Tokenizer, as_ids: bool) -> dict[str, Any]:
    """A chat choice's `logprobs`. Each candidate comes with its bytes, which tell parts of characters apart."""

    def candidate(token_id: int, text: str, logprob: float | None) -> dict[str, Any]:
        spelled = list(tokenizer.token_bytes(token_id))
        return {"token": _name(token_id, text, as_ids), "logprob": _finite(logprob), "bytes": spelled}

    content = [
        candidate(entry.token_id, entry.text, entry.logprob)
        | {"top_logprobs": [candidate(*best) for best in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(entries: Sequence[DeltaLogprob], offsets: Sequence[int], as_ids: bool) -> dict[str, Any]:
    """A completion choice's `logprobs`. Candidates of one text are one entry, the likeliest."""
    return {
        "tokens": [_name(entry.token_id, entry.text, as_ids) for entry in entries],
        "token_logprobs": [_finite(entry.logprob) for entry in entries],
        "top_logprobs": [_best(entry, as_ids) for entry in entries],
        "text_offset": list(offsets),
    }


def prompt_logprobs(entries: Sequence[DeltaLogprob]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: by place, the token's own and the best by id. The first token has none.

    rank: 1 is the likeliest; null for a token that is not among the best.
    """
    return [None if entry.logprob is None else _places(entry) for entry in entries]


def _places(entry: DeltaLogprob) -> dict[str, Any]:
    places: dict[str, Any] = {
        str(entry.token_id): {"logprob": _finite(entry.logprob), "rank": None, "decoded_token": entry.text}
    }
    for rank, (token_id, text, logprob) in enumerate(entry.top, 1):
        places[str(token_id)] = {"logprob": _finite(logprob), "rank": rank, "decoded_token": text}
    return places


def _best(entry: DeltaLogprob, as_ids: bool) -> dict[str, float | None] | None:
    if entry.logprob is None:
        return None
    named = [(_name(token_id, text, as_ids), _finite(logprob)) for token_id, text, logprob in entry.top]
    return dict(reversed(named))


def _name(token_id: int, text: str, as_ids: bool) -> str:
    return f"token_id:{token_id}" if as_ids else text


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)
