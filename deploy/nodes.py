"""Ray's nodes that are to end, and how to have one end: after everybody on it has moved."""

import time
from collections.abc import Set

import ray
from ray._private.state import state  # what Ray's own autoscaler and Serve ask; there is no public way
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated import autoscaler_pb2

from rayline.protos.errors import Unavailable


def draining_nodes() -> Set[str]:
    """Ids of the nodes that Ray was told to drain: `ray drain-node`, an autoscaler, a machine that is reclaimed."""
    return state.get_draining_nodes().keys()


def node_called(name: str) -> str | None:
    """The id of the living node with this id, the beginning of it, address or host name; None if there is not one."""
    found = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"]
        and (name in (node["NodeManagerAddress"], node["NodeManagerHostname"]) or node["NodeID"].startswith(name))
    ]
    return found[0] if name and len(found) == 1 else None


def drain_node(node_id: str, deadline_s: float) -> None:
    """Have Ray place nothing more on a node and Serve replace what it has there; the node may end after `deadline_s`.

    Raises Unavailable when Ray refuses.
    """
    gcs = GcsClient(address=ray.get_runtime_context().gcs_address)
    deadline_ms = time.time_ns() // 1_000_000 + int(deadline_s * 1000)
    why = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]  # generated
    accepted, reason = gcs.drain_node(node_id, why, "rayline drain", deadline_ms)
    if not accepted:
        raise Unavailable(f"Ray does not drain node {node_id}: {reason}")
