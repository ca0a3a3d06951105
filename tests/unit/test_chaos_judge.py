"""What `rayline chaos` says of a stream: the judge must find every way in which a client could have been cheated."""

from dataclasses import replace

import pytest

from rayline.deploy.chaos.judge import Content, complaints, content_of
from rayline.deploy.chaos.transcript import Transcript
from rayline.protos.errors import Unavailable
from rayline.protos.events import (
    ChoiceEnded,
    Delta,
    DeltaLogprob,
    Failed,
    Finished,
    FinishReason,
    Overhead,
    PromptScored,
    Started,
    StreamEvent,
    Usage,
)

STARTED = Started("r", "cpu", True, 3)
FINISHED = Finished("r", FinishReason.LENGTH, Usage(3, 4, cached_tokens=0), overhead=Overhead(total_s=1.0))


def delta(choice: int, token: int, text: str = "x") -> Delta:
    return Delta(choice, (token,), text, (DeltaLogprob(token, text, -0.5 * token),))


BODY: list[StreamEvent] = [delta(0, 5), delta(1, 6), delta(0, 7), delta(1, 8)]
ENDS: list[StreamEvent] = [ChoiceEnded(0, FinishReason.LENGTH), ChoiceEnded(1, FinishReason.LENGTH)]
WHOLE: list[StreamEvent] = [STARTED, *BODY, *ENDS, FINISHED]


def transcript(*events: StreamEvent) -> Transcript:
    return Transcript("greedy", 0.0, [float(i) for i in range(len(events))], list(events))


def reference() -> Content:
    return content_of(transcript(*WHOLE))


def test_the_same_stream_is_not_complained_of() -> None:
    assert complaints(transcript(*WHOLE), reference()) == ()


def test_names_times_moves_and_how_it_was_cut_into_events_are_of_no_matter() -> None:
    joined = Delta(0, (5, 7), "xx", (*BODY[0].logprobs, *BODY[2].logprobs))  # type: ignore[union-attr]
    later = replace(
        FINISHED, overhead=Overhead(total_s=9.0, moves=4, losses=3), usage=Usage(3, 4, cached_tokens=2), queue_s=2.0
    )
    other = transcript(replace(STARTED, request_id="q"), BODY[1], joined, BODY[3], ENDS[1], ENDS[0], later)
    assert complaints(other, reference()) == ()
    assert other.losses == 3


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([STARTED, *BODY[:2], BODY[1], *BODY[2:], *ENDS, FINISHED], "they part at 1"),
        ([STARTED, *BODY[:3], *ENDS, FINISHED], "choice 1: 1 ids, undisturbed 2; they part at 1"),
        ([STARTED, delta(0, 9), *BODY[1:], *ENDS, FINISHED], "choice 0: 2 ids, undisturbed 2; they part at 0"),
        ([STARTED, delta(0, 5, "y"), *BODY[1:], *ENDS, FINISHED], "choice 0: other text"),
        ([STARTED, Delta(0, (5,), "x"), *BODY[1:], *ENDS, FINISHED], "choice 0: other logprobs"),
        ([STARTED, *BODY, ChoiceEnded(0, FinishReason.STOP), ENDS[1], FINISHED], "choice 0: other ended"),
        ([STARTED, BODY[0], BODY[2], ENDS[0], FINISHED], "1 choices, undisturbed 2"),
        ([STARTED, *BODY, *ENDS, FINISHED, FINISHED], "2 terminal events"),
        ([STARTED, *BODY, *ENDS, FINISHED, BODY[0]], "the last event is Delta"),
        ([STARTED, *BODY, *ENDS], "without a terminal event"),
        ([STARTED, STARTED, *BODY, *ENDS, FINISHED], "started twice"),
        ([*BODY, *ENDS, FINISHED], "it begins with Delta"),
        ([STARTED, *BODY, *ENDS, ENDS[0], FINISHED], "choice 0 ended twice"),
        ([STARTED, *BODY[:2], BODY[2], ENDS[0], BODY[0], BODY[3], ENDS[1], FINISHED], "went on behind its end"),
        ([STARTED, BODY[0], PromptScored(()), *BODY[1:], *ENDS, FINISHED], "scored behind the first output"),
        ([STARTED, *BODY, *ENDS, replace(FINISHED, exact=False)], "not exact"),
        ([replace(STARTED, numerics="gpu"), *BODY, *ENDS, FINISHED], "numerics is 'gpu'"),
        ([STARTED, *BODY, *ENDS, replace(FINISHED, usage=Usage(3, 5))], "output_tokens is 5"),
        ([STARTED, *BODY[:2], Failed("r", Unavailable("gone"))], "it failed: Unavailable: gone"),
    ],
)
def test_every_other_stream_is(events: list[StreamEvent], said: str) -> None:
    assert said in "; ".join(complaints(transcript(*events), reference()))


def test_a_call_that_raised_is_a_lost_stream_whatever_it_brought_before() -> None:
    broken = transcript(STARTED, *BODY)
    broken.error = Unavailable("connection reset")
    assert "it failed: Unavailable: connection reset" in complaints(broken, reference())
    silent = transcript()
    silent.error = Unavailable("refused")
    assert complaints(silent, reference()) == ("it failed: Unavailable: refused",)


def test_a_stream_that_never_brought_anything_is_lost() -> None:
    assert complaints(transcript(), reference()) == ("it ended without a terminal event",)


def test_where_no_exact_bits_are_promised_only_the_form_counts() -> None:
    inexact = replace(reference(), exact=False)
    assert complaints(transcript(STARTED, delta(0, 99), ENDS[0], FINISHED), inexact) == ()
    assert complaints(transcript(STARTED, delta(0, 99), ENDS[0]), inexact)


def test_a_pause_counts_from_the_fault_on() -> None:
    events = transcript(*WHOLE[:4])
    events.times_s = [1.0, 2.0, 5.0, 5.5]
    assert events.pause_s(0.5) == 3.0
    assert events.pause_s(4.0) == 1.0, "what was waited for before the fault is not its doing"
    assert events.pause_s(5.4) == pytest.approx(0.1)
    assert events.pause_s(6.0) is None, "nothing came after it"
    assert events.tokens == 2, "of choice 0 alone"
