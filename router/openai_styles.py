"""The two ways OpenAI writes a choice: chat (delta, message) and completion (text)."""

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from rayline.protos.events import Delta, DeltaLogprob, Finished
from rayline.router.openai_answer import Answer
from rayline.router.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0  # what JSON can hold in place of minus infinity; OpenAI's own number


class ChatStyle:
    """/v1/chat/completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def opening_chunk(self, number: int) -> str:
        delta = '{"role": "assistant", "content": ""}'
        return f'{{"index": {number}, "delta": {delta}, "logprobs": null, "finish_reason": null}}'

    def delta_chunk(self, number: int, delta: Delta) -> str:
        logprobs = json.dumps(self._logprobs(delta.logprobs)) if delta.logprobs else "null"
        content = json.dumps(delta.text)
        return (
            f'{{"index": {number}, "delta": {{"content": {content}}}, "logprobs": {logprobs}, "finish_reason": null}}'
        )

    def closing_chunk(self, number: int, finished: Finished) -> str:
        return json.dumps({"index": number, "delta": {}, "logprobs": None, **_end(finished)})

    def choice(self, number: int, answer: Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(answer.text), "refusal": None}
        logprobs = self._logprobs(answer.logprobs) if answer.logprobs else None
        return {"index": number, "message": message, "logprobs": logprobs, **_end(answer.finished)}

    def _logprobs(self, entries: Sequence[DeltaLogprob]) -> dict[str, Any]:
        content = [
            self._candidate(entry.token_id, entry.text, entry.logprob)
            | {"top_logprobs": [self._candidate(*candidate) for candidate in entry.top]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _candidate(self, token_id: int, text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": _finite(logprob), "bytes": list(self._tokenizer.token_bytes(token_id))}


class CompletionStyle:
    """/v1/completions. Offsets of logprobs count characters of the tokens' texts, over all of a choice's chunks."""

    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self) -> None:
        self._offsets: dict[int, int] = {}

    def opening_chunk(self, number: int) -> None:
        return None

    def delta_chunk(self, number: int, delta: Delta) -> str:
        logprobs = json.dumps(self._logprobs(number, delta.logprobs)) if delta.logprobs else "null"
        text = json.dumps(delta.text)
        return f'{{"index": {number}, "text": {text}, "logprobs": {logprobs}, "finish_reason": null}}'

    def closing_chunk(self, number: int, finished: Finished) -> str:
        return json.dumps({"index": number, "text": "", "logprobs": None, **_end(finished)})

    def choice(self, number: int, answer: Answer) -> dict[str, Any]:
        logprobs = self._logprobs(number, answer.logprobs) if answer.logprobs else None
        return {"index": number, "text": "".join(answer.text), "logprobs": logprobs, **_end(answer.finished)}

    def _logprobs(self, number: int, entries: Sequence[DeltaLogprob]) -> dict[str, Any]:
        start = self._offsets.get(number, 0)
        *offsets, self._offsets[number] = accumulate((len(entry.text) for entry in entries), initial=start)
        return {
            "tokens": [entry.text for entry in entries],
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": [{text: _finite(logprob) for _, text, logprob in entry.top} for entry in entries],
            "text_offset": offsets,
        }


def _end(finished: Finished | None) -> dict[str, Any]:
    """`stop_reason` is vLLM's addition: the stop string or token id that matched."""
    if finished is None:
        return {"finish_reason": None, "stop_reason": None}
    return {"finish_reason": finished.reason.value, "stop_reason": finished.stop_reason}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)
