"""What Ray reads from the environment, set before its first import: a cluster of our own is closed to others."""

import os
import secrets


def prepare_ray() -> None:
    """Give a cluster that this process starts a token of its own. Call before anything imports ray.

    A cluster named by RAY_ADDRESS keeps its own settings. Without this, Ray would write a token file into
    the user's home, and later clusters of that user would demand it.
    """
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a late call after shutdown must not start a second cluster
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default a rank would yield to every other process
    os.environ.setdefault("RAY_kill_worker_timeout_milliseconds", "500")  # by default a stopped one is left 5 s
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "86400")  # by default all ends 60 s after the GCS
    os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")  # what hangs gets no time to finish
    if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
