"""Serve's replicas as the Ray actors they are, for when Serve's own ways are too slow."""

import ray


def own_name() -> str:
    """The name of the actor this process is, as "namespace/name"."""
    context = ray.get_runtime_context()
    return f"{context.namespace}/{context.get_actor_name()}"


def kill_actor(name: str) -> None:
    """End an actor named by `own_name` by force, a stopped one too. One that is not known has ended."""
    namespace, _, actor_name = name.partition("/")
    try:
        actor = ray.get_actor(actor_name, namespace=namespace)
    except ValueError:
        return
    ray.kill(actor)
