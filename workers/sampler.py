"""Between sequences and `kernels.sampling`: parameters to rows, rows to `Sampled` records."""

from collections.abc import Sequence
from dataclasses import dataclass

from rayline.kernels.sampling import SampledRows, SamplingRows
from rayline.protos.events import TokenLogprob
from rayline.protos.plan import Sampled
from rayline.protos.types import SamplingParams


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One sequence that samples in this step.

    position: the absolute position the new token takes in its sequence, prompt included
    outputs:  tokens it has sampled before, on any group
    """

    sequence: int
    params: SamplingParams
    position: int
    outputs: int


def sampling_rows(requests: Sequence[SampleRequest], eos_ids: Sequence[int], vocab_size: int) -> SamplingRows:
    """The rows of a step. `params.seed` None counts as 0; the router sets it for every client."""
    params = [request.params for request in requests]
    return SamplingRows(
        temperature=tuple(p.temperature for p in params),
        top_k=tuple(p.top_k for p in params),
        top_p=tuple(p.top_p for p in params),
        min_p=tuple(p.min_p for p in params),
        seed=tuple(p.seed or 0 for p in params),
        position=tuple(request.position for request in requests),
        suppressed=tuple(suppressed_ids(request, eos_ids, vocab_size) for request in requests),
        logprobs=tuple(p.logprobs for p in params),
    )


def suppressed_ids(request: SampleRequest, eos_ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """Ids that would end the sequence before its `min_tokens`; EOS stays allowed under `ignore_eos`."""
    params = request.params
    if request.outputs >= params.min_tokens:
        return ()
    ends = params.stop_token_ids if params.ignore_eos else (*eos_ids, *params.stop_token_ids)
    return tuple(sorted({token for token in ends if token < vocab_size}))


def sampled(requests: Sequence[SampleRequest], result: SampledRows) -> tuple[Sampled, ...]:
    """What the leader is told, in the order of `requests`."""
    records = []
    for request, token_id, logprobs in zip(requests, result.token_ids.tolist(), result.logprobs, strict=True):
        if logprobs is None:
            records.append(Sampled(request.sequence, token_id))
            continue
        top = tuple(TokenLogprob(other, logprob) for other, logprob in logprobs.top)
        records.append(Sampled(request.sequence, token_id, logprobs.logprob, top))
    return tuple(records)
