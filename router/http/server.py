"""The HTTP server: uvicorn, in a process that has other things to do as well."""

import uvicorn
from fastapi import FastAPI

from rayline.router.http.protocol import door_protocol

STOP_GRACE_S = 1


def http_server(app: FastAPI, slow_reader_s: float) -> uvicorn.Server:
    """For `serve([socket])`. Told to end by `should_exit`, it takes no more connections and cancels what still runs
    after STOP_GRACE_S; by itself uvicorn would wait for that without end.

    slow_reader_s: after which a client that takes nothing is given up.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=door_protocol(slow_reader_s),
            log_config=None,  # its own would close Serve's log: a new controller then replaces the replica
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=STOP_GRACE_S,
        )
    )
