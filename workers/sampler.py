"""Between sequences and `kernels.sampling`: parameters to rows, rows to `Sampled` records."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rayline.kernels.edits import Edit
from rayline.kernels.sampling import NO_TOKEN, RowLogprobs, SamplingRows
from rayline.protos.events import TokenLogprob
from rayline.protos.plan import Refused, Sampled
from rayline.protos.types import PLAIN_RULES, SamplingParams, TokenRules
from rayline.workers.history import History

NOTHING_LEFT = (
    "no token is left to choose: what allowed_token_ids and the grammar allow, bad_words, no_repeat_ngram_size or "
    "min_tokens forbid"
)


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One sequence that samples in this step.

    position: the absolute position the new token takes in its sequence, prompt included
    outputs:  tokens it has sampled before, on any group
    history:  what `needs_history` asks for; None where it asks for nothing
    mask:     what its grammar allows, int32 [ceil(vocab_size / 32)]: bit i % 32 of word i // 32 is id i; None: all
    must_end: the grammar is complete: nothing but an end may come, `min_tokens` or not
    """

    sequence: int
    params: SamplingParams
    position: int
    outputs: int
    rules: TokenRules = PLAIN_RULES
    history: History | None = None
    mask: Tensor | None = None
    must_end: bool = False


def sampling_rows(requests: Sequence[SampleRequest], eos_ids: Sequence[int], vocab_size: int) -> SamplingRows:
    """The rows of a step. `params.seed` None counts as 0; the router sets it for every client."""
    params = [request.params for request in requests]
    return SamplingRows(
        temperature=tuple(p.temperature for p in params),
        top_k=tuple(p.top_k for p in params),
        top_p=tuple(p.top_p for p in params),
        min_p=tuple(p.min_p for p in params),
        typical_p=tuple(p.typical_p for p in params),
        top_n_sigma=tuple(p.top_n_sigma for p in params),
        seed=tuple(p.seed or 0 for p in params),
        position=tuple(request.position for request in requests),
        edits=tuple(edit_of(request, eos_ids, vocab_size) for request in requests),
        logprobs=tuple(p.logprobs for p in params),
    )


def edit_of(request: SampleRequest, eos_ids: Sequence[int], vocab_size: int) -> Edit | None:
    """What the request wants done to its logits; None, and that soon, where it wants nothing."""
    params, history, mask = request.params, request.history, request.mask
    ends = suppressed_ids(request, eos_ids, vocab_size) if request.outputs < params.min_tokens else ()
    if history is None:
        return Edit(banned=ends, mask=mask) if ends or mask is not None else None
    seen, counts = history.counts or (None, None)
    bias, allowed = history.fixed.of(vocab_size)
    return Edit(
        seen=seen,
        counts=counts,
        repetition_penalty=params.repetition_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        bias=bias,
        banned=(*ends, *(token for token in history.banned if token < vocab_size)),
        mask=allowed if mask is None else mask if allowed is None else mask & allowed,
        forced=history.forced,
    )


def suppressed_ids(request: SampleRequest, eos_ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """Ids that would end the sequence before its `min_tokens`; EOS stays allowed under `ignore_eos`."""
    params = request.params
    if request.outputs >= params.min_tokens or request.must_end:
        return ()
    ends = params.stop_token_ids if params.ignore_eos else (*eos_ids, *params.stop_token_ids)
    return tuple(sorted({token for token in ends if token < vocab_size}))


def sampled(
    requests: Sequence[SampleRequest], token_ids: Sequence[int], logprobs: Sequence[RowLogprobs | None]
) -> tuple[tuple[Sampled, ...], tuple[Refused, ...]]:
    """What the leader is told, in the order of `requests`: tokens, and which sequences can have none."""
    gained: list[Sampled] = []
    refused: list[Refused] = []
    for request, token_id, found in zip(requests, token_ids, logprobs, strict=True):
        if token_id == NO_TOKEN:
            refused.append(Refused(request.sequence, NOTHING_LEFT))
        else:
            gained.append(_record(request, token_id, found))
    return tuple(gained), tuple(refused)


def _record(request: SampleRequest, token_id: int, logprobs: RowLogprobs | None) -> Sampled:
    if logprobs is None:
        return Sampled(request.sequence, token_id)
    top = tuple(TokenLogprob(other, logprob) for other, logprob in logprobs.top)
    return Sampled(request.sequence, token_id, logprobs.logprob, top)
