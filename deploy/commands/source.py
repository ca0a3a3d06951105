"""Where `generate` and `chat` get their answers: a model loaded here, or a running server."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rayline.deploy.commands.flags import given
from rayline.protos.errors import ConfigError
from rayline.protos.events import StreamEvent
from rayline.protos.types import Spec

OFFLINE_SECTIONS = ("models", "engine", "parallel")
NOT_OFFLINE = ("path", "name", "groups")  # keys of those sections that mean nothing offline

# The events of one request; the last one is Finished or Failed.
Stream = Callable[[Spec], Iterator[StreamEvent]]


@contextmanager
def open_source(address: str | None, api_key: str | None, model: str, values: Mapping[str, Any]) -> Iterator[Stream]:
    """Answers from the server at `address` or from `model`, loaded in this process for as long as this is open.

    address: of a router or several, with commas between them.

    Raises ConfigError for flags of an engine (in `values`) beside an address: the server has its own.
    """
    flags = given(values)
    if address is None:
        with _offline(model, flags) as stream:
            yield stream
        return
    if flags:
        names = ", ".join("--" + name.replace("_", "-") for name in sorted(flags))
        raise ConfigError(f"{names} cannot be set for a running server", field=min(flags))
    try:
        from rayline.deploy.commands.server import open_server  # needs gRPC, which an offline install lacks
    except ModuleNotFoundError as error:
        if error.name != "grpc":
            raise
        raise ConfigError("--address needs gRPC: pip install 'rayline[serve]'", field="address") from None
    with open_server(address, api_key) as stream:
        yield stream


@contextmanager
def _offline(model: str, flags: dict[str, Any]) -> Iterator[Stream]:
    from rayline.deploy.commands.offline import load_model  # torch takes a second to import: not for `--help`

    with load_model(model or "embedded", flags) as llm:
        yield llm.stream
