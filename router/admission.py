"""From what a client asked to what a group computes: limits checked, seed and max_tokens filled in, one request for
each choice. Pure, and the same for servers and offline.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rayline.protos.errors import PromptTooLong, out_of_range
from rayline.protos.group import GroupInfo
from rayline.protos.journal import Ballot, KeptAs
from rayline.protos.types import EngineRequest, SamplingParams, Spec, TokenRules, choice_seed
from rayline.router.bad_words import bad_word_ids
from rayline.router.output_form import ChatFormats, OutputForm, output_form, thinking_of
from rayline.router.prompt import prompt_ids_of, prompt_text_of
from rayline.router.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may run. requests: what a group computes, one for each choice or one for a beam search.

    form: how the output is read; prompt_text: what an echo shows, "" unless it was asked for.
    """

    spec: Spec
    prompt_ids: tuple[int, ...]
    prompt_text: str
    form: OutputForm
    requests: tuple[EngineRequest, ...]

    @property
    def tokens(self) -> int:
        """Most tokens that the request can take of a group."""
        return len(self.prompt_ids) + sum(request.params.max_tokens or 0 for request in self.requests)

    @property
    def is_ranked(self) -> bool:
        """More choices are computed than are shown."""
        return len(self.requests) > self.spec.params.n


def admit(spec: Spec, tokenizer: Tokenizer, chat: ChatFormats, grammar: str, info: GroupInfo, seed: int) -> Admitted:
    """Everything that happens before a group is asked, but for the grammar, which was checked elsewhere ("" for none).

    chat: how the model writes tool calls and thoughts; `seed` is used when the client gave none.

    Long prompts take milliseconds here: callers with an event loop do this beside it.
    Raises InvalidRequest naming the field, or PromptTooLong with the numbers.
    """
    spec.check()
    prompt_ids = prompt_ids_of(spec, tokenizer)
    check_ids("prompt", prompt_ids, info.vocab_size)  # a tokenizer may know more tokens than the model
    params = engine_params(spec, len(prompt_ids), info, seed)
    form = output_form(spec, prompt_ids, tokenizer, chat)
    rules = TokenRules(
        bad_word_ids(spec.params.bad_words, tokenizer), grammar, thinking_of(spec, prompt_ids, tokenizer, chat)
    )
    text = prompt_text_of(spec, prompt_ids, tokenizer) if spec.echo else ""
    return Admitted(spec, prompt_ids, text, form, choices_of(spec, prompt_ids, params, rules))


def named(admitted: Admitted, name: str, key: str, ballot: Ballot, run: int) -> Admitted:
    """Its requests under names that no other call's have, and as what their leaders keep them."""
    several = len(admitted.requests) > 1
    requests = tuple(
        replace(
            request,
            request_id=f"{name}/{choice}" if several else name,
            family=name if several else "",
            kept=KeptAs(key, choice, ballot, run),
        )
        for choice, request in enumerate(admitted.requests)
    )
    return replace(admitted, requests=requests)


def engine_params(spec: Spec, prompt_tokens: int, info: GroupInfo, seed: int) -> SamplingParams:
    """The parameters as a group takes them: numbers alone, all that the client left open filled in."""
    asked = replace(spec.params, max_tokens=1) if spec.is_prompt_alone else spec.params
    params = within_context(asked, prompt_tokens, info.max_model_len)
    for field, token_ids in (
        ("stop_token_ids", params.stop_token_ids),
        ("allowed_token_ids", params.allowed_token_ids),
        ("logit_bias", [token_id for token_id, _ in params.logit_bias]),
    ):
        check_ids(field, token_ids, info.vocab_size)
    return replace(
        params,
        top_k=0 if params.top_k >= info.vocab_size else params.top_k,  # all tokens: the same as off
        seed=seed if params.seed is None else params.seed,
        bad_words=(),
        structured_output=None,
    )


def choices_of(
    spec: Spec, prompt_ids: tuple[int, ...], params: SamplingParams, rules: TokenRules
) -> tuple[EngineRequest, ...]:
    """One request a choice. The first scores the prompt for all; ranking needs the logprobs of each."""
    count = 1 if params.beam_width else params.best_of or params.n
    ranked = count > params.n and not params.beam_width
    several = count > 1
    seed = params.seed or 0
    if not params.beam_width:
        params = replace(params, n=1, best_of=None, logprobs=params.logprobs or 0 if ranked else params.logprobs)
    return tuple(
        EngineRequest(
            f"{spec.request_id}/{choice}" if several else spec.request_id,
            prompt_ids,
            replace(
                params,
                seed=choice_seed(seed, choice),
                prompt_logprobs=params.prompt_logprobs if choice == 0 else None,
            ),
            priority=spec.priority,
            tenant=spec.tenant,
            cache_salt=spec.cache_salt,
            family=spec.request_id if several else "",
            rules=rules,
            timeout_s=spec.timeout_s,
        )
        for choice in range(count)
    )


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
