"""Which group a call of Serve's goes to."""

from types import SimpleNamespace
from typing import Any

from ray.serve._private.request_router.common import PendingRequest

from rayline.router.serve_router import ChosenGroupRouter


def replica(group_id: str) -> Any:
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=group_id))


async def chosen(*group_ids: str, **kwargs: str) -> list[list[str]]:
    router = object.__new__(ChosenGroupRouter)  # Serve makes it inside a deployment
    request = PendingRequest(args=[], kwargs=kwargs, metadata=None)  # type: ignore[arg-type]
    ranks = await router.choose_replicas([replica(group_id) for group_id in group_ids], request)
    return [[each.replica_id.unique_id for each in rank] for rank in ranks]


async def test_a_call_goes_to_the_group_that_it_names() -> None:
    assert await chosen("a", "b", "c", group_id="b") == [["b"]]


async def test_a_call_for_a_group_that_is_gone_goes_to_any_other() -> None:
    """Serve would ask for replicas for ever, and let nothing else run meanwhile."""
    assert await chosen("a", "c", group_id="b") == [["a", "c"]]


async def test_a_call_that_names_none_goes_to_any() -> None:
    assert await chosen("a", "c") == [["a", "c"]]
