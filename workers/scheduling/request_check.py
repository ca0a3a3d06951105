"""What a group refuses before it is queued. It trusts no router: a request that cannot be computed never gets in."""

from collections.abc import Iterator, Sequence

from rayline.protos.errors import InvalidRequest, PromptTooLong, out_of_range
from rayline.protos.types import EngineRequest, TokenRules
from rayline.workers.scheduling.reservations import most_blocks
from rayline.workers.scheduling.scheduler import SchedulerLimits

MAX_BEAM_STOPS = 64  # ids that end a beam; each is one candidate more for every beam of every step


def check_request(request: EngineRequest, limits: SchedulerLimits, total_blocks: int, vocab_size: int) -> None:
    """Raise InvalidRequest, naming the field, for what this group cannot compute."""
    request.params.check()
    known = len(request.prompt_ids) + len(request.output_ids)
    if not request.prompt_ids:
        raise InvalidRequest("prompt_ids is empty: at least one token is needed", field="prompt_ids")
    if known >= limits.max_model_len:
        raise PromptTooLong(
            f"prompt of {known} tokens leaves no room: max_model_len is {limits.max_model_len}", field="prompt"
        )
    for field, token_ids in _token_ids(request):
        _check_ids(field, token_ids, vocab_size)
    if len(request.output_ids) >= (request.params.max_tokens or limits.max_model_len):
        raise InvalidRequest(
            f"output_ids holds {len(request.output_ids)} tokens: max_tokens = {request.params.max_tokens} leaves "
            "nothing to compute",
            field="output_ids",
        )
    if request.params.seed is None:
        raise InvalidRequest("seed is missing: the router draws one for each request", field="seed")
    if request.params.beam_width:
        _check_beams(request, limits, total_blocks)


def blocks_of_search(request: EngineRequest, limits: SchedulerLimits) -> int:
    """KV blocks that a beam search holds at most."""
    asked = request.params.max_tokens or limits.max_model_len
    limit = min(len(request.prompt_ids) + asked, limits.max_model_len)
    return most_blocks(len(request.prompt_ids), limit, request.params.beam_width, limits.block_tokens)


def _check_beams(request: EngineRequest, limits: SchedulerLimits, total_blocks: int) -> None:
    width = request.params.beam_width
    if request.output_ids:
        raise InvalidRequest(
            f"output_ids holds {len(request.output_ids)} tokens: a beam search sends none before its end, so it "
            "begins again from the prompt",
            field="output_ids",
        )
    if width > limits.max_running:
        raise out_of_range("beam_width", width, f"up to {limits.max_running}, the sequences this group runs at once")
    if len(request.params.stop_token_ids) > MAX_BEAM_STOPS:
        raise out_of_range(
            "stop_token_ids", list(request.params.stop_token_ids), f"up to {MAX_BEAM_STOPS} ids with beam_width"
        )
    if (needed := blocks_of_search(request, limits)) > total_blocks:
        raise InvalidRequest(
            f"beam_width = {width} may need {needed} KV blocks of {limits.block_tokens} tokens, this group has "
            f"{total_blocks}: give a smaller beam_width or max_tokens",
            field="beam_width",
        )


def _token_ids(request: EngineRequest) -> Iterator[tuple[str, Sequence[int]]]:
    params = request.params
    yield "prompt_ids", request.prompt_ids
    yield "output_ids", request.output_ids
    yield "logit_bias", [token for token, _ in params.logit_bias]
    yield "allowed_token_ids", params.allowed_token_ids
    yield from _rule_ids(request.rules)


def _rule_ids(rules: TokenRules) -> Iterator[tuple[str, Sequence[int]]]:
    for word in rules.bad_words:
        if not word:
            raise InvalidRequest("bad_words holds a word without token ids", field="bad_words")
        yield "bad_words", word
    if rules.thinking is not None:
        yield "thinking_budget", (*rules.thinking.start_ids, *rules.thinking.end_ids)


def _check_ids(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        return
    wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
    raise InvalidRequest(f"{field} holds {wrong}: allowed are ids of 0 to {vocab_size - 1}", field=field)
