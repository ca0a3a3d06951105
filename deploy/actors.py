"""Serve's replicas as the Ray actors they are, for when Serve's own ways are too slow."""

import ray
from ray.serve._private.constants import SERVE_NAMESPACE


def own_name() -> str:
    """The name of the actor that this process, a replica, is."""
    return str(ray.get_runtime_context().get_actor_name())


def kill_actor(name: str) -> None:
    """End the replica named so by force, a stopped one too; Serve then starts another. An unknown one has ended."""
    try:
        actor = ray.get_actor(name, namespace=SERVE_NAMESPACE)
    except ValueError:
        return
    ray.kill(actor)
