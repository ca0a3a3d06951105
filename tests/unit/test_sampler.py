"""From sequences to rows and back."""

import torch

from rayline.kernels.sampling import NO_TOKEN, RowLogprobs, sample
from rayline.protos.events import TokenLogprob
from rayline.protos.plan import Sampled
from rayline.protos.types import SamplingParams
from rayline.workers.sampler import SampleRequest, edit_of, sampled, sampling_rows

EOS = (2, 3)


def request(outputs: int = 0, **params: object) -> SampleRequest:
    return SampleRequest(sequence=9, params=SamplingParams(**params), position=10 + outputs, outputs=outputs)  # type: ignore[arg-type]


def banned(one: SampleRequest) -> tuple[int, ...]:
    edit = edit_of(one, EOS, vocab_size=100)
    return () if edit is None else edit.banned


def test_every_parameter_reaches_its_row() -> None:
    first = request(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, seed=77, logprobs=2)
    rows = sampling_rows([first, request(outputs=4, seed=1, temperature=0.0)], EOS, vocab_size=100)
    assert rows.temperature == (0.5, 0.0)
    assert rows.top_k == (3, 0)
    assert rows.top_p == (0.9, 1.0)
    assert rows.min_p == (0.1, 0.0)
    assert rows.seed == (77, 1)
    assert rows.position == (10, 14)
    assert rows.edits == (None, None)
    assert rows.logprobs == (2, None)


def test_ends_are_suppressed_until_min_tokens_are_out() -> None:
    def suppressed(outputs: int) -> tuple[int, ...]:
        one = request(outputs, min_tokens=3, stop_token_ids=(8, 2))
        return banned(one)

    assert [suppressed(outputs) for outputs in range(4)] == [(2, 3, 8), (2, 3, 8), (2, 3, 8), ()]


def test_a_resumed_sequence_counts_the_tokens_of_its_former_group() -> None:
    assert banned(request(outputs=5, min_tokens=5)) == ()


def test_eos_stays_possible_where_it_ends_nothing() -> None:
    one = request(min_tokens=3, ignore_eos=True, stop_token_ids=(8,))
    assert banned(one) == (8,)


def test_stop_ids_outside_the_vocabulary_suppress_nothing() -> None:
    one = request(min_tokens=1, stop_token_ids=(5000,))
    assert banned(one) == (2, 3)


def test_no_sequence_ends_before_its_min_tokens() -> None:
    logits = torch.zeros(1, 8)
    logits[0, 2] = 30.0
    early = sampling_rows([request(outputs=1, min_tokens=2, temperature=0.0)], EOS, vocab_size=8)
    late = sampling_rows([request(outputs=2, min_tokens=2, temperature=0.0)], EOS, vocab_size=8)
    assert sample(logits, early).token_ids.tolist() == [0]
    assert sample(logits, late).token_ids.tolist() == [2]


def test_results_come_back_as_records_in_the_order_of_the_requests() -> None:
    logprobs = (None, RowLogprobs(-0.5, ((6, -0.5), (1, -2.0))))
    requests = [SampleRequest(1, SamplingParams(), 0, 0), SampleRequest(4, SamplingParams(logprobs=2), 0, 0)]
    tokens = (Sampled(1, 5), Sampled(4, 6, -0.5, (TokenLogprob(6, -0.5), TokenLogprob(1, -2.0))))
    assert sampled(requests, [5, 6], logprobs) == (tokens, ())


def test_a_sequence_with_no_token_left_is_refused() -> None:
    requests = [SampleRequest(number, SamplingParams(), 0, 0) for number in (3, 8)]
    gained, refused = sampled(requests, [5, NO_TOKEN], (None, None))
    assert gained == (Sampled(3, 5),)
    assert [item.sequence for item in refused] == [8]
    assert "allowed_token_ids" in refused[0].message
