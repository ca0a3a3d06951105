"""Records of suspects <-> protobuf: total both ways, checked by round-trip property tests."""

from collections.abc import Iterable

from rayline.protos import internal_pb2 as pb
from rayline.protos.blame import Record, Suspect


def suspects_to_pb(suspects: Iterable[Suspect]) -> list[pb.Suspect]:
    return [
        pb.Suspect(
            fingerprint=suspect.fingerprint,
            losses=suspect.record.losses,
            position=suspect.record.position,
            is_guilty=suspect.record.is_guilty,
            left_s=suspect.left_s,
        )
        for suspect in suspects
    ]


def suspects_of(messages: Iterable[pb.Suspect]) -> list[Suspect]:
    return [
        Suspect(message.fingerprint, Record(message.losses, message.position, message.is_guilty), message.left_s)
        for message in messages
    ]
