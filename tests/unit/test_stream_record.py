"""A stream's record crosses to another router whole, and says whether a request is the same."""

import math
from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st
from records import real, specs, text, uint64

from rayline.protos.types import Spec
from rayline.router.stream_record import StreamRecord

records = st.builds(StreamRecord, specs, uint64, real, text, st.booleans(), text, text, st.booleans())


@given(records)
def test_a_record_comes_back_as_it_was(record: StreamRecord) -> None:
    back = StreamRecord.from_bytes(record.to_bytes())
    assert replace(back, spec=record.spec) == record
    assert back.to_bytes() == record.to_bytes()


@given(records)
def test_a_request_asks_for_its_own_record_whatever_its_patience(record: StreamRecord) -> None:
    back = StreamRecord.from_bytes(record.to_bytes())
    assert back.asks_for(record.spec) and back.asks_for(replace(record.spec, timeout_s=5.0))


@given(records, specs)
def test_another_request_does_not(record: StreamRecord, other: Spec) -> None:
    assume(replace(other, timeout_s=None) != replace(record.spec, timeout_s=None))
    assume(other.params != record.spec.params)
    assert not record.asks_for(other)


@given(records, st.integers(-2, -1))
def test_a_request_with_ids_that_there_cannot_be_is_another_one(record: StreamRecord, wrong: int) -> None:
    other = replace(record.spec, prompt=None, suffix=None, conversation=None, prompt_ids=(wrong,))
    assert not record.asks_for(other)


def test_patience_counts_over_all_calls() -> None:
    record = StreamRecord(Spec("r", "m", params=None, timeout_s=10.0), 0, 1000.0)  # type: ignore[arg-type]
    assert record.left_s(1000.0) == 10.0 and record.left_s(1004.0) == 6.0
    assert record.left_s(2000.0) < 0.0
    assert record.left_s(990.0) == 10.0, "clocks of two machines may differ"
    assert replace(record, spec=replace(record.spec, timeout_s=None)).left_s(2000.0) == math.inf
