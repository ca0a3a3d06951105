"""A gRPC door in an event loop and a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from rayline.router.grpc.api import GrpcDoor

Stop = Callable[[], object]


@contextmanager
def door_of(build: Callable[[], GrpcDoor]) -> Iterator[str]:
    """The address of the door that `build` makes inside its loop. What still runs there at the end is cancelled."""
    started: Future[tuple[str, Stop]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_run(build, started)))
    thread.start()
    try:
        address, stop = started.result()
        try:
            yield address
        finally:
            stop()
    finally:
        thread.join()


async def _run(build: Callable[[], GrpcDoor], started: Future[tuple[str, Stop]]) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    try:
        door = build()
        await door.start()
    except Exception as error:
        started.set_exception(error)
        return
    started.set_result((f"127.0.0.1:{door.port}", lambda: loop.call_soon_threadsafe(stop.set)))
    await stop.wait()
    await door.stop(0)
