"""Serve's replicas as the Ray actors they are, for when Serve's own ways are too slow."""

import asyncio
from typing import Any

import ray
from ray._private.worker import global_worker
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.handle import DeploymentHandle


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


def by_grpc(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """`handle` whose calls go from replica to replica over gRPC instead of through Ray's actors.

    Serve makes a call by way of an actor as a streaming one. When that ends, Ray lets none of the replica's other calls
    begin until the caller's process has confirmed what it got (`TaskGeneratorBackpressureWaiter` waits for it on the
    thread that begins them): a frozen caller would stop a healthy replica's health checks, and Serve end it.
    """
    return handle.options(_by_reference=False)


def controller_answers(timeout_s: float) -> bool:
    """Whether this process reaches Serve's controller."""
    try:
        # Without a GCS all else would wait for it without end.
        global_worker.gcs_client.check_alive([], timeout=timeout_s)  # type: ignore[attr-defined]  # set by ray.init
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        ray.get(controller.__ray_ready__.remote(), timeout=timeout_s)
    except (ValueError, RayError):
        return False
    return True


async def ask_each(handle: DeploymentHandle[Any], method: str, timeout_s: float) -> list[Any]:
    """What the replicas of `handle` answer, and the exceptions of those that do not within `timeout_s`.

    A broadcast's own results are all or nothing: one replica that hangs would hide the others, and one whose machine is
    gone hangs until Ray gives the machine up. Raises DeploymentUnavailableError when there is no replica.
    """
    calls = await asyncio.wait_for(handle.broadcast(method)._fetch_replica_results_async(), timeout_s)
    answers = (asyncio.wait_for(call.get_async(), timeout_s) for call in calls)
    return await asyncio.gather(*answers, return_exceptions=True)
