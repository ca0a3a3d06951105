"""The one error tree: what can go wrong, with the gRPC and HTTP code each leaf answers with.

RaylineError
├── InvalidRequest        INVALID_ARGUMENT    400   a field of the request is out of range
│   └── PromptTooLong     INVALID_ARGUMENT    400   prompt + max_tokens do not fit the context
├── ModelNotFound         NOT_FOUND           404
├── StreamNotFound        NOT_FOUND           404   no stream of this id is remembered
├── RequestIdTaken        ALREADY_EXISTS      409   the id names another request
├── TakenOver             ABORTED             409   the stream is read by a later call
├── DeadlineExceeded      DEADLINE_EXCEEDED   504   it cannot be, or was not, done in the time given
├── Quarantined           FAILED_PRECONDITION 422   the request killed every group that ran it
├── Unauthenticated       UNAUTHENTICATED     401
├── Cancelled             CANCELLED           499   the client went away
├── Overloaded            RESOURCE_EXHAUSTED  429   the bounded queue is full
├── SlowReader            RESOURCE_EXHAUSTED  408   the client does not take what it asked for
├── Unavailable           UNAVAILABLE         503   no group can serve, or its group was lost
├── InternalError         INTERNAL            500   a bug of ours
└── ConfigError           FAILED_PRECONDITION 500   start-up: an option or the machine does not fit
    ├── ModelError        FAILED_PRECONDITION 500   start-up: model files missing, broken, unsupported
    ├── PortInUse         FAILED_PRECONDITION 500
    └── NotEnoughMemory   FAILED_PRECONDITION 500
"""

from typing import ClassVar


class RaylineError(Exception):
    """Root of the tree. `message` names the field, the value and the allowed range."""

    grpc_code: ClassVar[str] = "INTERNAL"
    http_code: ClassVar[int] = 500

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> str:
        """The leaf's name: what crosses process boundaries in place of the class."""
        return type(self).__name__


class InvalidRequest(RaylineError):
    """A field of the request is malformed, unknown or out of range."""

    grpc_code = "INVALID_ARGUMENT"
    http_code = 400


class PromptTooLong(InvalidRequest):
    """The prompt and the tokens asked for do not fit the model's context."""


class ModelNotFound(RaylineError):
    """No served model has this name."""

    grpc_code = "NOT_FOUND"
    http_code = 404


class StreamNotFound(RaylineError):
    """No stream of this request id is remembered: it never began, or ended too long ago."""

    grpc_code = "NOT_FOUND"
    http_code = 404


class RequestIdTaken(RaylineError):
    """The request id already names another request of this tenant."""

    grpc_code = "ALREADY_EXISTS"
    http_code = 409


class TakenOver(RaylineError):
    """The client reads this stream through a later call; this one ends."""

    grpc_code = "ABORTED"
    http_code = 409


class DeadlineExceeded(RaylineError):
    """The request cannot be done in the time that is left for it, or was not."""

    grpc_code = "DEADLINE_EXCEEDED"
    http_code = 504


class Quarantined(RaylineError):
    """The request killed the groups that ran it, the last one while nothing else ran there."""

    grpc_code = "FAILED_PRECONDITION"
    http_code = 422


class Unauthenticated(RaylineError):
    """The caller showed no credential, or a wrong one."""

    grpc_code = "UNAUTHENTICATED"
    http_code = 401


class Cancelled(RaylineError):
    """The client cancelled or went away."""

    grpc_code = "CANCELLED"
    http_code = 499


class Overloaded(RaylineError):
    """The bounded waiting queue is full; `retry_after_s` says when to try again."""

    grpc_code = "RESOURCE_EXHAUSTED"
    http_code = 429


class SlowReader(RaylineError):
    """The client is too far behind, or has taken nothing for too long: its stream was ended."""

    grpc_code = "RESOURCE_EXHAUSTED"
    http_code = 408


class Unavailable(RaylineError):
    """No group can take the request, or the group that ran it was lost."""

    grpc_code = "UNAVAILABLE"
    http_code = 503


class InternalError(RaylineError):
    """A bug: the request is ended, the server goes on."""


class ConfigError(RaylineError):
    """Start-up cannot go on: an option is unknown or out of range."""

    grpc_code = "FAILED_PRECONDITION"


class ModelError(ConfigError):
    """The model's files are missing, truncated, inconsistent or of an unsupported kind."""


class PortInUse(ConfigError):
    """A port that must be ours is taken."""


class NotEnoughMemory(ConfigError):
    """The model and the smallest useful KV cache do not fit."""


LEAVES: dict[str, type[RaylineError]] = {
    leaf.__name__: leaf
    for leaf in (
        InvalidRequest,
        PromptTooLong,
        ModelNotFound,
        StreamNotFound,
        RequestIdTaken,
        TakenOver,
        DeadlineExceeded,
        Quarantined,
        Unauthenticated,
        Cancelled,
        Overloaded,
        SlowReader,
        Unavailable,
        InternalError,
        ConfigError,
        ModelError,
        PortInUse,
        NotEnoughMemory,
    )
}


def error_of(kind: str, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> RaylineError:
    """Rebuild an error from its `kind`; an unknown kind (a newer peer) is an InternalError."""
    return LEAVES.get(kind, InternalError)(message, field=field, retry_after_s=retry_after_s)


def out_of_range(field: str, value: object, allowed: str) -> InvalidRequest:
    """The one wording for a parameter outside its range."""
    return InvalidRequest(f"{field} = {value!r} is out of range: allowed is {allowed}", field=field)
