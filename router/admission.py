"""From what a client asked to what a group computes: limits checked, seed and max_tokens filled in. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from rayline.protos.errors import InvalidRequest, PromptTooLong, out_of_range
from rayline.protos.group import GroupInfo
from rayline.protos.types import PLAIN_RULES, EngineRequest, SamplingParams, Spec, TokenRules


def engine_request(
    spec: Spec,
    prompt_ids: tuple[int, ...],
    info: GroupInfo,
    bos_id: int | None,
    seed: int,
    rules: TokenRules = PLAIN_RULES,
) -> EngineRequest:
    """The request a group gets. `seed` is used when the client gave none.

    Raises InvalidRequest naming the field, or PromptTooLong with the numbers.
    """
    if not prompt_ids:
        if bos_id is None:
            raise InvalidRequest("prompt is empty and the model has no token to begin with", field="prompt")
        prompt_ids = (bos_id,)
    check_ids("prompt", prompt_ids, info.vocab_size)  # a tokenizer may know more tokens than the model
    params = within_context(spec.params, len(prompt_ids), info.max_model_len)
    check_ids("stop_token_ids", params.stop_token_ids, info.vocab_size)
    if params.top_k >= info.vocab_size:
        params = replace(params, top_k=0)  # all tokens: the same as off
    if params.seed is None:
        params = replace(params, seed=seed)
    return EngineRequest(spec.request_id, prompt_ids, params, priority=spec.priority, rules=rules)


def within_context(params: SamplingParams, prompt_tokens: int, max_model_len: int) -> SamplingParams:
    """`params` with max_tokens set. Raises PromptTooLong with the numbers when it does not fit."""
    room = max_model_len - prompt_tokens
    wanted = params.max_tokens
    if room < (wanted or max(1, params.min_tokens)):
        asked = ""
        if wanted:
            asked = f" + max_tokens = {wanted}"
        elif params.min_tokens:
            asked = f" + min_tokens = {params.min_tokens}"
        raise PromptTooLong(
            f"prompt = {prompt_tokens} tokens{asked} does not fit: the model's context is {max_model_len} tokens, "
            "the output's included",
            field="prompt" if room < 1 else "max_tokens",
        )
    return params if wanted else replace(params, max_tokens=room)


def check_ids(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Raise InvalidRequest naming the first id outside the vocabulary."""
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise out_of_range(field, wrong, f"ids from 0 to {vocab_size - 1}")
