"""What a leader keeps of streams: bounded in bytes and time, owned by one router at a time."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rayline.protos.errors import Unavailable
from rayline.protos.events import (
    Begun,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    PromptScores,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from rayline.protos.journal import Act, Ballot, JournalAnswer, JournalCall, KeptAs, Trace, stream_key
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.router.past import past_of
from rayline.workers.journal import STREAM_BYTES, Journal

A, B = Ballot(1, "a"), Ballot(2, "b")
END = Finished("", FinishReason.STOP, Usage(3, 2))
ROOM = 100 * STREAM_BYTES


def call(
    act: Act, ballot: Ballot = A, key: str = "k", record: bytes = b"record", trace: Trace | None = None
) -> JournalCall:
    return JournalCall(act, key, ballot, record if act == "write" else b"", trace)


def look(journal: Journal, now_s: float = 0.0, key: str = "k") -> JournalAnswer:
    return journal.take(call("look", Ballot(0, ""), key), 9, now_s)


def request(
    key: str = "k", choice: int = 0, ballot: Ballot = A, output_ids: tuple[int, ...] = (), run: int = 7, **params: int
) -> EngineRequest:
    kept = KeptAs(key, choice, ballot, run)
    return EngineRequest("r", (1, 2, 3), SamplingParams(seed=0, **params), output_ids, kept=kept)  # type: ignore[arg-type]


def kept(asked: EngineRequest) -> KeptAs:
    assert asked.kept is not None
    return asked.kept


def token(index: int, logprob: float | None = None) -> TokenEvent:
    return TokenEvent("", index, 100 + index, logprob)


def said(journal: Journal, *events: EngineEvent, asked: EngineRequest | None = None, now_s: float = 0.0) -> None:
    for event in events:
        journal.say(kept(asked or request()), event, now_s)


def ids(answer: JournalAnswer, choice: int = 0) -> list[int]:
    past = past_of(answer.traces, choice, is_ahead=False)
    return [event.token_id for event in past if isinstance(event, TokenEvent)]


def test_what_is_written_is_found() -> None:
    journal = Journal(ROOM, 60.0)
    assert not look(journal).accepted
    assert journal.take(call("write"), 1, 0.0).accepted
    assert look(journal) == JournalAnswer(True, A, b"record", ())


def test_a_lower_claim_is_refused_and_told_the_higher_one() -> None:
    journal = Journal(ROOM, 60.0)
    journal.take(call("write", B), 2, 0.0)
    for act in ("write", "claim"):
        assert journal.take(call(act, A), 1, 0.0) == JournalAnswer(False, B)  # type: ignore[arg-type]
    assert journal.take(call("ahead", A, trace=Trace(0)), 1, 0.0) == JournalAnswer(False, B)
    assert look(journal).ballot == B


@given(st.permutations([Ballot(1, "a"), Ballot(2, "a"), Ballot(2, "b"), Ballot(2, "c")]))
def test_whatever_order_claims_come_in_the_same_one_wins(ballots: list[Ballot]) -> None:
    journal = Journal(ROOM, 60.0)
    for owner, ballot in enumerate(ballots):
        journal.take(call("write", ballot, record=ballot.router.encode()), owner, 0.0)
    assert look(journal).ballot == Ballot(2, "c") and look(journal).record == b"c"


def test_a_stream_is_kept_for_a_while_after_its_end_and_not_before() -> None:
    journal = Journal(ROOM, 60.0)
    journal.take(call("write"), 1, 0.0)
    assert look(journal, 1e6).accepted
    journal.take(call("end"), 1, 1e6)
    assert look(journal, 1e6 + 59).accepted and not look(journal, 1e6 + 60).accepted
    assert journal.used_bytes == 0 and len(journal) == 0


def test_the_end_that_an_older_reader_tells_means_nothing() -> None:
    journal = Journal(ROOM, 60.0)
    journal.take(call("write", A), 1, 0.0)
    journal.take(call("write", B), 2, 0.0)
    journal.take(call("end", A), 1, 0.0)
    assert look(journal, 1e6).accepted


def test_streams_of_a_lost_router_are_kept_for_a_while() -> None:
    journal = Journal(ROOM, 60.0)
    journal.take(call("write", key="mine"), 1, 0.0)
    journal.take(call("write", key="other"), 2, 0.0)
    journal.lose(1, 100.0)
    assert look(journal, 159.0, "mine").accepted and not look(journal, 161.0, "mine").accepted
    assert look(journal, 161.0, "other").accepted


def test_a_claim_brings_an_ended_stream_back_to_life() -> None:
    journal = Journal(ROOM, 60.0)
    journal.take(call("write", A), 1, 0.0)
    journal.lose(1, 0.0)
    assert journal.take(call("claim", B), 2, 30.0).accepted
    assert look(journal, 1e6) == JournalAnswer(True, B, b"record", ())


def test_what_an_engine_says_is_kept_choice_by_choice() -> None:
    journal = Journal(ROOM, 60.0)
    for choice in (0, 1):
        assert journal.begin(request(choice=choice), 0.0) is None
    scores = PromptScores("", 1, ((TokenLogprob(2, -1.0), ()),))
    said(journal, scores, replace(token(0), begun=Begun(2, 0.5)), token(1), END)
    said(journal, token(0), asked=request(choice=1))
    traces = {trace.choice: trace for trace in look(journal).traces}
    assert traces[0] == Trace(0, (replace(token(0), begun=Begun(2, 0.5)), token(1)), (scores,), END, False, 7)
    assert traces[1].tokens == (token(0),) and traces[1].finished is None


def test_an_abort_or_a_failure_is_no_end_of_a_text() -> None:
    for event in (replace(END, reason=FinishReason.ABORT), Failed("", Unavailable("lost"))):
        journal = Journal(ROOM, 60.0)
        journal.begin(request(), 0.0)
        said(journal, token(0), event)
        assert look(journal).traces[0].finished is None and ids(look(journal)) == [100]


def test_an_older_call_may_not_run_here_any_more() -> None:
    journal = Journal(ROOM, 60.0)
    journal.take(call("claim", B), 2, 0.0)
    assert journal.begin(request(ballot=A), 0.0) == B
    assert journal.begin(request(ballot=B), 0.0) is None


@pytest.mark.parametrize("logprobs", [None, 0])
def test_a_stream_that_came_from_elsewhere_is_known_from_its_start_unless_logprobs_are_missing(
    logprobs: int | None,
) -> None:
    journal = Journal(ROOM, 60.0)
    asked = request(output_ids=(100, 101), **({} if logprobs is None else {"logprobs": logprobs}))
    journal.begin(asked, 0.0)
    said(journal, token(2, logprobs), asked=asked)
    assert ids(look(journal)) == ([100, 101, 102] if logprobs is None else [])
    assert [event.index for event in look(journal).traces[0].tokens][-1] == 2


def test_tokens_that_are_computed_again_are_kept_once() -> None:
    journal = Journal(ROOM, 60.0)
    journal.begin(request(), 0.0)
    said(journal, *(token(index) for index in range(5)))
    again = request(ballot=B, output_ids=(100, 101))
    journal.begin(again, 0.0)
    said(journal, *(token(index) for index in range(2, 8)), asked=again)
    assert ids(look(journal)) == list(range(100, 108))


def test_another_run_under_an_old_name_begins_anew() -> None:
    journal = Journal(ROOM, 60.0)
    journal.begin(request(run=7), 0.0)
    said(journal, *(token(index) for index in range(5)), END)
    later = request(run=8, ballot=B)
    journal.begin(later, 0.0)
    said(journal, replace(token(0), token_id=5), asked=later)
    assert ids(look(journal)) == [5] and look(journal).traces[0].run == 8


def test_without_room_a_new_stream_is_refused_with_its_own_ballot() -> None:
    journal = Journal(2 * STREAM_BYTES + 20, 60.0)
    assert journal.take(call("write", key="one"), 1, 0.0).accepted
    assert journal.take(call("write", key="two"), 1, 0.0).accepted
    assert journal.take(call("write", key="three"), 1, 0.0) == JournalAnswer(False, A)
    journal.take(call("end", key="one"), 1, 0.0)
    assert journal.take(call("write", key="three"), 1, 0.0).accepted
    assert not look(journal, key="one").accepted and look(journal, key="two").accepted


def test_what_ended_streams_said_goes_before_their_records() -> None:
    journal = Journal(4 * STREAM_BYTES, 60.0)
    journal.take(call("write", key="k"), 1, 0.0)
    journal.begin(request(), 0.0)
    said(journal, *(token(index) for index in range(200)), END)
    journal.take(call("end"), 1, 0.0)
    for key in ("l", "m"):
        assert journal.take(call("write", key=key), 1, 0.0).accepted
    assert look(journal).record == b"record" and look(journal).traces == ()


def test_a_stream_that_says_more_than_there_is_room_for_keeps_its_record() -> None:
    journal = Journal(2 * STREAM_BYTES, 60.0)
    journal.take(call("write"), 1, 0.0)
    journal.begin(request(), 0.0)
    said(journal, *(token(index) for index in range(500)), END)
    assert journal.used_bytes <= journal.most_bytes
    assert look(journal).record == b"record" and ids(look(journal)) == []


def test_a_journal_of_no_bytes_keeps_nothing() -> None:
    journal = Journal(0, 60.0)
    assert not journal.take(call("write"), 1, 0.0).accepted
    journal.begin(request(), 0.0)
    said(journal, token(0), END)
    assert not look(journal, 61.0).accepted and journal.used_bytes == 0


def test_two_tenants_names_never_meet() -> None:
    assert stream_key("a", "b") != stream_key("", "ab") != stream_key("ab", "")
    assert stream_key('a", "b', "c") != stream_key("a", 'b", "c')


class AnyUse(RuleBasedStateMachine):
    """Whatever is asked of it in whatever order, its books balance and its bounds hold."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = Journal(12 * STREAM_BYTES, 10.0)
        self.now_s = 0.0
        self.running: list[tuple[EngineRequest, int]] = []

    keys = st.sampled_from("abcdefgh")
    ballots = st.builds(Ballot, st.integers(1, 3), st.sampled_from("xy"))

    @rule(act=st.sampled_from(["look", "write", "claim", "end"]), key=keys, ballot=ballots, owner=st.integers(1, 3))
    def ask(self, act: Act, key: str, ballot: Ballot, owner: int) -> None:
        self.journal.take(call(act, ballot, key, record=b"x" * 700), owner, self.now_s)

    @rule(key=keys, ballot=ballots, tokens=st.integers(0, 300), run=st.integers(0, 1))
    def ahead(self, key: str, ballot: Ballot, tokens: int, run: int) -> None:
        trace = Trace(0, tuple(token(index) for index in range(tokens)), run=run)
        self.journal.take(call("ahead", ballot, key, trace=trace), 1, self.now_s)

    @rule(key=keys, ballot=ballots, choice=st.integers(0, 1), run=st.integers(0, 1))
    def begin(self, key: str, ballot: Ballot, choice: int, run: int) -> None:
        asked = request(key, choice, ballot, run=run)
        if len(self.running) < 4 and self.journal.begin(asked, self.now_s) is None:
            self.running.append((asked, 0))

    @rule(at=st.integers(0, 3), tokens=st.integers(1, 400), ends=st.booleans())
    def say(self, at: int, tokens: int, ends: bool) -> None:
        if at >= len(self.running):
            return
        asked, index = self.running.pop(at)
        said(self.journal, *(token(index + n, -0.5) for n in range(tokens)), asked=asked, now_s=self.now_s)
        if ends:
            said(self.journal, END, asked=asked, now_s=self.now_s)
        else:
            self.running.append((asked, index + tokens))

    @rule(owner=st.integers(1, 3))
    def lose(self, owner: int) -> None:
        self.journal.lose(owner, self.now_s)

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def the_books_balance(self) -> None:
        journal = self.journal
        assert journal.used_bytes == sum(stream.size_bytes for stream in journal._streams.values())
        assert journal._ended.keys() == {key for key, stream in journal._streams.items() if not stream.is_live}
        assert journal._traced.keys() <= journal._ended.keys()
        assert sorted(journal._ended.values()) == list(journal._ended.values())
        assert journal.used_bytes <= journal.most_bytes + len(self.running) * STREAM_BYTES + 300 * 4

    def teardown(self) -> None:
        for asked, _ in self.running:
            said(self.journal, END, asked=asked, now_s=self.now_s)
        for owner in (1, 2, 3):
            self.journal.lose(owner, self.now_s)
        look(self.journal, self.now_s + 11)
        assert len(self.journal) == 0 and self.journal.used_bytes == 0


TestAnyUse = AnyUse.TestCase
