"""Plans and results <-> protobuf: total both ways, checked by round-trip property tests."""

from collections.abc import Iterable

from rayline.protos import internal_pb2 as pb
from rayline.protos.events import TokenLogprob
from rayline.protos.inference_pb2 import TokenIds
from rayline.protos.params_wire import params_of, params_to_pb
from rayline.protos.plan import (
    Admission,
    Candidates,
    Copy,
    Fork,
    Gain,
    Plan,
    Refused,
    Sampled,
    Scored,
    Slice,
    StepResult,
)
from rayline.protos.types import PLAIN_RULES, Thinking, TokenRules

Score = tuple[TokenLogprob, tuple[TokenLogprob, ...]]


def plan_to_pb(plan: Plan) -> pb.Plan:
    return pb.Plan(
        epoch=plan.epoch,
        step=plan.step,
        admitted=[_admission_to_pb(new) for new in plan.admitted],
        slices=[_slice_to_pb(item) for item in plan.slices],
        released=plan.released,
        forked=[pb.Fork(sequence=f.sequence, parent=f.parent, params=params_to_pb(f.params)) for f in plan.forked],
        gained=[pb.Gain(sequence=g.sequence, token_id=g.token_id) for g in plan.gained],
        copies=[pb.Copy(source=c.source, target=c.target) for c in plan.copies],
    )


def plan_of(message: pb.Plan) -> Plan:
    return Plan(
        epoch=message.epoch,
        step=message.step,
        admitted=tuple(_admission_of(new) for new in message.admitted),
        slices=tuple(_slice_of(item) for item in message.slices),
        released=tuple(message.released),
        forked=tuple(Fork(f.sequence, f.parent, params_of(f.params)) for f in message.forked),
        gained=tuple(Gain(g.sequence, g.token_id) for g in message.gained),
        copies=tuple(Copy(c.source, c.target) for c in message.copies),
    )


def result_to_pb(result: StepResult) -> pb.StepResult:
    return pb.StepResult(
        epoch=result.epoch,
        step=result.step,
        sampled=[_sampled_to_pb(item) for item in result.sampled],
        busy_s=result.busy_s,
        sample_s=result.sample_s,
        candidates=[pb.Candidates(sequence=c.sequence, tokens=top_to_pb(c.tokens)) for c in result.candidates],
        scored=[pb.Scored(sequence=s.sequence, start=s.start, tokens=scores_to_pb(s.tokens)) for s in result.scored],
        refused=[pb.Refused(sequence=r.sequence, message=r.message) for r in result.refused],
    )


def result_of(message: pb.StepResult) -> StepResult:
    return StepResult(
        message.epoch,
        message.step,
        tuple(_sampled_of(item) for item in message.sampled),
        message.busy_s,
        message.sample_s,
        tuple(Candidates(c.sequence, top_of(c.tokens)) for c in message.candidates),
        tuple(Scored(s.sequence, s.start, scores_of(s.tokens)) for s in message.scored),
        tuple(Refused(r.sequence, r.message) for r in message.refused),
    )


def rules_to_pb(rules: TokenRules) -> pb.TokenRules | None:
    if rules == PLAIN_RULES:
        return None
    message = pb.TokenRules(bad_words=[TokenIds(ids=word) for word in rules.bad_words], grammar=rules.grammar)
    if (thinking := rules.thinking) is not None:
        message.thinking.CopyFrom(
            pb.Thinking(
                start_ids=thinking.start_ids,
                end_ids=thinking.end_ids,
                budget_tokens=thinking.budget_tokens,
                is_open=thinking.is_open,
            )
        )
    return message


def rules_of(message: pb.TokenRules) -> TokenRules:
    thinking = None
    if message.HasField("thinking"):
        m = message.thinking
        budget_tokens = m.budget_tokens if m.HasField("budget_tokens") else None
        thinking = Thinking(tuple(m.start_ids), tuple(m.end_ids), budget_tokens, m.is_open)
    return TokenRules(tuple(tuple(word.ids) for word in message.bad_words), message.grammar, thinking)


def top_to_pb(top: Iterable[TokenLogprob]) -> list[pb.TokenLogprob]:
    return [pb.TokenLogprob(token_id=t.token_id, logprob=t.logprob) for t in top]


def top_of(top: Iterable[pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(t.token_id, t.logprob) for t in top)


def scores_to_pb(scores: Iterable[Score]) -> list[pb.PromptScore]:
    return [
        pb.PromptScore(own=pb.TokenLogprob(token_id=own.token_id, logprob=own.logprob), top=top_to_pb(top))
        for own, top in scores
    ]


def scores_of(scores: Iterable[pb.PromptScore]) -> tuple[Score, ...]:
    return tuple((TokenLogprob(s.own.token_id, s.own.logprob), top_of(s.top)) for s in scores)


def _admission_to_pb(new: Admission) -> pb.Admission:
    return pb.Admission(
        sequence=new.sequence,
        prompt_ids=new.prompt_ids,
        output_ids=new.output_ids,
        params=params_to_pb(new.params),
        rules=rules_to_pb(new.rules),
    )


def _admission_of(new: pb.Admission) -> Admission:
    return Admission(
        new.sequence, tuple(new.prompt_ids), tuple(new.output_ids), params_of(new.params), rules_of(new.rules)
    )


def _slice_to_pb(item: Slice) -> pb.Slice:
    return pb.Slice(
        sequence=item.sequence,
        start=item.start,
        count=item.count,
        first_block=item.first_block,
        block_ids=item.block_ids,
        samples=item.samples,
        forks=item.forks,
        scores=item.scores,
    )


def _slice_of(item: pb.Slice) -> Slice:
    return Slice(
        item.sequence,
        item.start,
        item.count,
        item.first_block,
        tuple(item.block_ids),
        item.samples,
        tuple(item.forks),
        item.scores,
    )


def _sampled_to_pb(item: Sampled) -> pb.Sampled:
    top = top_to_pb(item.top_logprobs)
    return pb.Sampled(sequence=item.sequence, token_id=item.token_id, logprob=item.logprob, top_logprobs=top)


def _sampled_of(item: pb.Sampled) -> Sampled:
    logprob = item.logprob if item.HasField("logprob") else None
    return Sampled(item.sequence, item.token_id, logprob, top_of(item.top_logprobs))
