"""Fields that a newer client sends and this version does not know: protobuf would ignore them."""

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from rayline.protos.errors import InvalidRequest


def refuse_unknown(message: Message) -> None:
    """Raise InvalidRequest naming the number of the first unknown field of `message`, or of a message in it."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        name = message.DESCRIPTOR.name
        raise InvalidRequest(
            f"{name} has a field of number {unknown[0].field_number}, which is unknown here", field=name
        )
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in (value,) if isinstance(value, Message) else value:
            refuse_unknown(part)
