"""Asking every replica of a deployment, as far as Ray lets them answer."""

import asyncio
from typing import Any, cast

import pytest
from poison import in_no_time
from ray.serve.exceptions import RayServeException

from rayline.deploy.actors import ask_each


class Call:
    """One replica's answer to a broadcast, as Serve hands it out."""

    def __init__(self, answer: object):
        self._answer = answer

    async def get_async(self) -> object:
        if self._answer is None:
            await asyncio.Event().wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class Handle:
    """Replicas that answer, fail or, with None, hang."""

    def __init__(self, *answers: object):
        self._calls = [Call(answer) for answer in answers]

    def broadcast(self, method: str) -> "Handle":
        assert method == "describe"
        return self

    async def _fetch_replica_results_async(self) -> list[Call]:
        if not self._calls:
            raise RayServeException("no replicas")
        return self._calls


async def asked(*answers: object) -> list[Any]:
    return await ask_each(cast(Any, Handle(*answers)), "describe", 0.05)


def test_a_replica_that_hangs_or_dies_hides_no_other() -> None:
    died = ConnectionError("the actor died")
    first, silent, dead, last = in_no_time(asked("a", None, died, "b"))
    assert (first, dead, last) == ("a", died, "b")
    assert isinstance(silent, TimeoutError)


async def test_where_nobody_is_serve_says_so() -> None:
    with pytest.raises(RayServeException):
        await asked()
