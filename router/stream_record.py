"""A client's stream as the journal keeps it: enough to run the request again, to the same bits."""

import math
from dataclasses import dataclass, replace
from typing import Self

from rayline.protos import internal_pb2 as pb
from rayline.protos.group import GroupInfo
from rayline.protos.request_wire import spec_of, spec_to_pb
from rayline.protos.token_ids import packed, unpacked
from rayline.protos.types import Spec


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """spec: in its caller's name. seed: what counts where the spec has none. created_s: seconds since 1970.

    numerics, weights and exact: what the client was promised, "" and True before it was. is_ahead: nobody can compute
    its tokens again, so they are written down before they are shown. note: of the door it came through, which says how
    to write the stream.
    """

    spec: Spec
    seed: int
    created_s: float
    numerics: str = ""
    exact: bool = True
    note: str = ""
    weights: str = ""
    is_ahead: bool = False

    @property
    def bits(self) -> tuple[str, str]:
        """Of the groups that would compute the same."""
        return self.numerics, self.weights

    def promised(self, info: GroupInfo) -> Self:
        """As it is once a group has taken it."""
        return replace(self, numerics=info.numerics, weights=info.weights, exact=info.exact, is_ahead=not info.exact)

    def left_s(self, now_s: float) -> float:
        """How long its client still waits, in seconds since 1970: it said so at first for all calls."""
        if self.spec.timeout_s is None:
            return math.inf
        return self.spec.timeout_s - max(0.0, now_s - self.created_s)

    def asks_for(self, spec: Spec) -> bool:
        """Whether `spec` is the same request, for which another caller, or the same one, may wait less long."""
        return self.spec.prompt_ids == spec.prompt_ids and _plain(self.spec) == _plain(spec)

    def to_bytes(self) -> bytes:
        ids = self.spec.prompt_ids
        request = spec_to_pb(replace(self.spec, prompt_ids=None))
        is_chat = self.spec.conversation is not None
        record = pb.StreamRecord(
            seed=self.seed,
            created_s=self.created_s,
            numerics=self.numerics,
            exact=self.exact,
            note=self.note,
            weights=self.weights,
            is_ahead=self.is_ahead,
            prompt_ids=None if ids is None else packed(ids),
        )
        (record.chat if is_chat else record.generate).MergeFrom(request)  # type: ignore[arg-type]
        return record.SerializeToString()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        record = pb.StreamRecord.FromString(data)
        request = record.chat if record.HasField("chat") else record.generate
        ids = unpacked(record.prompt_ids) if record.HasField("prompt_ids") else None
        return cls(
            replace(spec_of(request, lambda: ""), prompt_ids=ids),
            record.seed,
            record.created_s,
            record.numerics,
            record.exact,
            record.note,
            record.weights,
            record.is_ahead,
        )


def _plain(spec: Spec) -> Spec:
    """As it is behind a wire, without its ids: equal requests are equal there."""
    return spec_of(spec_to_pb(replace(spec, timeout_s=None, prompt_ids=None)), lambda: "")
