"""The two ways OpenAI writes a choice: chat (delta, message) and completion (text)."""

import json
from itertools import accumulate
from typing import Any

from rayline.protos.conversation import ToolCall
from rayline.protos.events import ChoiceEnded, Delta, PromptScored, Started, ToolCallDelta
from rayline.router.collected import Collected, CollectedChoice
from rayline.router.http.openai_answer import Shown
from rayline.router.http.openai_logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from rayline.router.tokenizer import Tokenizer


class ChatStyle:
    """/v1/chat/completions. Reasoning goes by both of its names: reasoning_content (DeepSeek) and reasoning (vLLM)."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, shown: Shown):
        self._tokenizer = tokenizer
        self._shown = shown

    def opening_chunks(self, numbers: range, started: Started) -> list[str]:
        said = {"role": "assistant", "content": self._shown.echoed}
        chunk: dict[str, Any] = {"delta": said, "logprobs": None, "finish_reason": None}
        if self._shown.token_ids:
            chunk["prompt_token_ids"] = started.prompt_ids
        return [json.dumps({"index": number, **chunk}) for number in numbers]

    def scored_chunks(self, numbers: range, scored: PromptScored) -> list[str]:
        """All choices have one prompt: it is told once."""
        told = prompt_logprobs(scored.tokens)
        return [_open(numbers[0], {"delta": {}, "prompt_logprobs": told})]

    def delta_chunk(self, number: int, delta: Delta) -> str | None:
        if not (delta.text or delta.logprobs or delta.reasoning or delta.tool_calls or self._shown.token_ids):
            return None
        logprobs = "null"
        if delta.logprobs:
            logprobs = json.dumps(chat_logprobs(delta.logprobs, self._tokenizer, self._shown.tokens_as_ids))
        ids = f', "token_ids": {json.dumps(delta.token_ids)}' if self._shown.token_ids else ""
        said = json.dumps(self._said(delta))
        return f'{{"index": {number}, "delta": {said}, "logprobs": {logprobs}, "finish_reason": null{ids}}}'

    def closing_chunk(self, number: int, ended: ChoiceEnded) -> str:
        return json.dumps({"index": number, "delta": {}, "logprobs": None, **_end(ended)})

    def choice(self, number: int, choice: CollectedChoice, of: Collected) -> dict[str, Any]:
        text = self._shown.echoed + choice.text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if choice.reasoning:
            message |= {"reasoning_content": choice.reasoning, "reasoning": choice.reasoning}
        if choice.tool_calls:
            message |= {"content": text or None, "tool_calls": [_call(call) for call in choice.tool_calls]}
        logprobs = None
        if choice.logprobs:
            logprobs = chat_logprobs(choice.logprobs, self._tokenizer, self._shown.tokens_as_ids)
        ids = {"token_ids": choice.token_ids} if self._shown.token_ids else {}
        return {"index": number, "message": message, "logprobs": logprobs, **_end(choice.ended), **ids}

    def extra(self, answers: list[Collected]) -> dict[str, Any]:
        """vLLM has what belongs to the prompt at the top of a chat's answer."""
        found: dict[str, Any] = {}
        for answer in answers:
            if answer.prompt:
                found["prompt_logprobs"] = prompt_logprobs(answer.prompt)
            if self._shown.token_ids and answer.started is not None:
                found["prompt_token_ids"] = answer.started.prompt_ids
        return found

    def _said(self, delta: Delta) -> dict[str, Any]:
        said: dict[str, Any] = {}
        if delta.text or not (delta.reasoning or delta.tool_calls):
            said["content"] = delta.text
        if delta.reasoning:
            said |= {"reasoning_content": delta.reasoning, "reasoning": delta.reasoning}
        if delta.tool_calls:
            said["tool_calls"] = [_call_piece(piece) for piece in delta.tool_calls]
        return said


class CompletionStyle:
    """/v1/completions. Offsets of logprobs count characters of the tokens' texts, over all of a choice's chunks."""

    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._offsets: dict[int, int] = {}

    def opening_chunks(self, numbers: range, started: Started) -> list[str]:
        if not self._shown.token_ids:
            return []
        return [_open(number, {"text": "", "prompt_token_ids": started.prompt_ids}) for number in numbers]

    def scored_chunks(self, numbers: range, scored: PromptScored) -> list[str]:
        """All choices have one prompt: it is told once."""
        return [_open(numbers[0], {"text": "", "prompt_logprobs": prompt_logprobs(scored.tokens)})]

    def delta_chunk(self, number: int, delta: Delta) -> str | None:
        if not (delta.text or delta.logprobs or self._shown.token_ids):
            return None
        logprobs = json.dumps(self._logprobs(number, delta)) if delta.logprobs else "null"
        ids = f', "token_ids": {json.dumps(delta.token_ids)}' if self._shown.token_ids else ""
        text = json.dumps(delta.text)
        return f'{{"index": {number}, "text": {text}, "logprobs": {logprobs}, "finish_reason": null{ids}}}'

    def closing_chunk(self, number: int, ended: ChoiceEnded) -> str:
        return json.dumps({"index": number, "text": "", "logprobs": None, **_end(ended)})

    def choice(self, number: int, choice: CollectedChoice, of: Collected) -> dict[str, Any]:
        logprobs = self._logprobs(number, choice) if choice.logprobs else None
        found = {"index": number, "text": choice.text, "logprobs": logprobs, **_end(choice.ended)}
        if of.prompt:
            found["prompt_logprobs"] = prompt_logprobs(of.prompt)
        if self._shown.token_ids:
            prompt_ids = of.started.prompt_ids if of.started is not None else ()
            found |= {"token_ids": choice.token_ids, "prompt_token_ids": prompt_ids}
        return found

    def extra(self, answers: list[Collected]) -> dict[str, Any]:
        return {}

    def _logprobs(self, number: int, part: Delta | CollectedChoice) -> dict[str, Any]:
        lengths = (len(entry.text) for entry in part.logprobs)
        *offsets, self._offsets[number] = accumulate(lengths, initial=self._offsets.get(number, 0))
        return completion_logprobs(part.logprobs, offsets, self._shown.tokens_as_ids)


def _open(number: int, fields: dict[str, Any]) -> str:
    """A choice that has not ended."""
    return json.dumps({"index": number, **fields, "logprobs": None, "finish_reason": None})


def _end(ended: ChoiceEnded | None) -> dict[str, Any]:
    """`stop_reason` is vLLM's addition: the stop string or token id that matched; `score` is our own."""
    if ended is None:
        return {"finish_reason": None, "stop_reason": None}
    score = {} if ended.score is None else {"score": ended.score}
    return {"finish_reason": ended.reason.value, "stop_reason": ended.stop_reason, **score}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _call_piece(piece: ToolCallDelta) -> dict[str, Any]:
    """Id, type and name come with the first piece of a call alone."""
    if not piece.name:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}
