"""How a stream of the HTTP door is written, as its record notes it for whoever resumes it by its id alone."""

import json
from dataclasses import asdict, dataclass
from typing import Self

from rayline.router.http.openai_answer import Shown
from rayline.router.stream_record import StreamRecord


@dataclass(frozen=True, slots=True)
class View:
    """prompts: of the request, each of which is a stream of its own. is_streamed: server-sent events."""

    shown: Shown
    prompts: int = 1
    is_streamed: bool = True

    def to_note(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, record: StreamRecord) -> Self:
        """The view that was noted; of a stream that came through another door, the plain one."""
        if not record.note:
            return cls(Shown(record.spec.params.n))
        noted = json.loads(record.note)
        return cls(Shown(**noted["shown"]), noted["prompts"], noted["is_streamed"])
