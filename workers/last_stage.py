"""The last stage of a pipeline: logits to sampled tokens, candidates of beams, and scores of prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from rayline.kernels.sampling import Candidate, RowLogprobs, SampledRows
from rayline.protos.events import TokenLogprob
from rayline.protos.plan import Candidates, Plan, Refused, Sampled, Scored, StepResult
from rayline.workers.batch import ScoredRun, Wanted
from rayline.workers.mask import Mask
from rayline.workers.resident import Residents
from rayline.workers.sampler import SampleRequest, sampled, sampling_rows
from rayline.workers.scheduling.beams import candidates_needed
from rayline.workers.stages import StageLinks
from rayline.workers.token_feed import FreshTokens, TokenFeed
from rayline.workers.token_sampler import TokenSampler


class Grammars(Protocol):
    """What the rules that follow sequences' texts say of their next tokens: workers/grammar.py."""

    def follow(self, plan: Plan) -> None: ...

    def mask(self, number: int) -> Mask: ...

    def accept(self, sampled: tuple[Sampled, ...]) -> tuple[tuple[Sampled, ...], tuple[Refused, ...]]: ...

    def refused(self, numbers: Iterable[int]) -> tuple[Refused, ...]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a step's logits. All but the requests and `scored_ids` is on its way to the host.

    candidates: a row for each beam. scores: a row for each prompt token that is scored, whose ids are `scored_ids`.
    """

    requests: tuple[SampleRequest, ...]
    fresh: FreshTokens
    logprobs: Sequence[RowLogprobs | None]
    candidates: Sequence[tuple[Candidate, ...]]
    scored_ids: Sequence[int]
    scores: Sequence[RowLogprobs]


class LastStage:
    """Every rank of the stage does the same, so that all know the same tokens. `stages`: None in a group of one."""

    def __init__(
        self,
        sampler: TokenSampler,
        grammars: Grammars,
        residents: Residents,
        feed: TokenFeed,
        eos_ids: Sequence[int],
        vocab_size: int,
        stages: StageLinks | None,
    ) -> None:
        self._sampler = sampler
        self._grammars = grammars
        self._residents = residents
        self._feed = feed
        self._eos_ids = eos_ids
        self._vocab_size = vocab_size
        self._stages = stages

    def follow(self, plan: Plan) -> None:
        """Take in what `plan` says of grammars, before it is computed."""
        self._grammars.follow(plan)

    def sample(self, asked: Wanted, logits: Tensor) -> Answer:
        """Launch what becomes of the logits [N, this rank's share of the vocabulary], in the order of `asked`. All that
        was sampled before must be known on the host."""
        samples, beams = len(asked.sampling), len(asked.sampling) + len(asked.beams)
        scored_ids, scores = self._score(asked.scored, logits[beams:])
        candidates = self._search(asked.beams, logits[samples:beams])
        requests, rows = self._draw(asked.sampling, logits[:samples])
        fresh = FreshTokens(asked.sampling, rows.token_ids)
        self._feed.push(fresh)
        return Answer(requests, fresh, rows.logprobs, candidates, scored_ids, scores)

    def result(self, plan: Plan, asked: Wanted, answer: Answer, busy_s: float, sample_s: float) -> StepResult:
        """What the leader is told, once all of the answer is on the host."""
        chosen, stuck = sampled(answer.requests, answer.fresh.on_host, answer.logprobs)
        gained, refused = self._grammars.accept(chosen)
        refused += stuck + self._grammars.refused(asked.beams)
        candidates = tuple(
            Candidates(number, tuple(TokenLogprob(*pair) for pair in row))
            for number, row in zip(asked.beams, answer.candidates, strict=True)
        )
        scores = zip(answer.scored_ids, answer.scores, strict=True)
        scored = tuple(
            Scored(run.sequence, run.start, tuple(_score_of(*each) for each in islice(scores, run.end - run.start)))
            for run in asked.scored
        )
        return StepResult(plan.epoch, plan.step, gained, busy_s, sample_s, candidates, scored, refused)

    def _draw(self, numbers: Sequence[int], logits: Tensor) -> tuple[tuple[SampleRequest, ...], SampledRows]:
        """A token for each sequence. The first stage of a pipeline gets them from here."""
        if not numbers:
            return (), SampledRows(torch.empty(0, dtype=torch.int64), ())
        requests = tuple(self._sample_request(number) for number in numbers)
        rows = self._sampler.sample(logits, sampling_rows(requests, self._eos_ids, self._vocab_size))
        if self._stages is not None:
            self._stages.send_tokens(rows.token_ids)
        return requests, rows

    def _search(self, numbers: Sequence[int], logits: Tensor) -> Sequence[tuple[Candidate, ...]]:
        """The best next tokens of beams, from which the leader chooses."""
        if not numbers:
            return ()
        requests = [self._sample_request(number) for number in numbers]
        most = [
            min(candidates_needed(request.params, request.rules, self._eos_ids), self._vocab_size)
            for request in requests
        ]
        return self._sampler.candidates(logits, sampling_rows(requests, self._eos_ids, self._vocab_size), most)

    def _score(self, runs: Sequence[ScoredRun], logits: Tensor) -> tuple[Sequence[int], Sequence[RowLogprobs]]:
        """Prompt tokens and their logprobs, of the raw logits of the tokens before them."""
        if not runs:
            return (), ()
        residents = [self._residents[run.sequence] for run in runs]
        tokens = [t for run, known in zip(runs, residents, strict=True) for t in known.token_ids[run.start : run.end]]
        tops = [
            known.params.prompt_logprobs or 0
            for run, known in zip(runs, residents, strict=True)
            for _ in range(run.start, run.end)
        ]
        return tokens, self._sampler.score(logits, tokens, tops)

    def _sample_request(self, number: int) -> SampleRequest:
        resident, mask = self._residents[number], self._grammars.mask(number)
        return SampleRequest(
            number,
            resident.params,
            len(resident.token_ids),
            resident.output_tokens,
            resident.rules,
            resident.kept_history(),
            None if mask.words is None else torch.from_numpy(mask.words),
            mask.must_end,
        )


def _score_of(token_id: int, row: RowLogprobs) -> tuple[TokenLogprob, tuple[TokenLogprob, ...]]:
    return TokenLogprob(token_id, row.logprob), tuple(TokenLogprob(*pair) for pair in row.top)
