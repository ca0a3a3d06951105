"""Tenants from the door to the cache: whose request it is, and whose prefixes it may find."""

from dataclasses import replace
from typing import Any

import grpc
import pytest
from fakes import FakeGroup, saying, service_of
from scheduler_bench import Bench
from starlette.testclient import TestClient

from rayline.cluster.config import RouterSection, SecuritySection, SystemConfig, TenantSection
from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos.types import EngineRequest
from rayline.router.grpc.api import build_grpc_server
from rayline.router.http.api import build_http_app

KEYED = SecuritySection(tenants=(TenantSection("gold", ("g",), 4.0), TenantSection("free", ("f",))))
PROMPT = "the dog the dog the dog the dog the dog"


def over_http(security: SecuritySection, headers: dict[str, str], **body: Any) -> EngineRequest:
    """What a group gets when a client asks with these headers."""
    group = FakeGroup(saying("x"))
    app = build_http_app(service_of(group), SystemConfig(security=security))
    with TestClient(app) as client:
        answer = client.post(
            "/v1/completions", json={"model": "tiny", "prompt": PROMPT, "max_tokens": 4} | body, headers=headers
        )
    assert answer.status_code == 200, answer.text
    return group.requests[0]


async def over_grpc(security: SecuritySection, headers: dict[str, str], **fields: Any) -> EngineRequest:
    group = FakeGroup(saying("x"))
    door = build_grpc_server(service_of(group), SystemConfig(security=security, router=RouterSection(grpc_port=0)))
    await door.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        request = pb.GenerateRequest(text=PROMPT, params=pb.SamplingParams(max_tokens=4), **fields)
        call = pb_grpc.InferenceServiceStub(channel).Generate(request, metadata=tuple(headers.items()))
        async for _ in call:
            pass
    await door.stop(0)
    return group.requests[0]


@pytest.mark.parametrize(
    ("security", "headers", "tenant"),
    [
        (KEYED, {"authorization": "Bearer g"}, "gold"),
        (KEYED, {"authorization": "Bearer f", "x-rayline-tenant": "gold"}, "free"),
        (SecuritySection(), {"x-rayline-tenant": "proxied"}, "proxied"),
        (SecuritySection(), {}, ""),
    ],
)
async def test_both_doors_know_whose_a_request_is(
    security: SecuritySection, headers: dict[str, str], tenant: str
) -> None:
    assert over_http(security, headers).tenant == tenant
    assert (await over_grpc(security, headers)).tenant == tenant


async def test_no_word_in_a_request_outweighs_its_key() -> None:
    assert (await over_grpc(KEYED, {"authorization": "Bearer f"}, tenant="gold")).tenant == "free"
    assert (await over_grpc(SecuritySection(), {}, tenant="mine")).tenant == "mine"


def cached_by_second(one: EngineRequest, two: EngineRequest) -> int:
    """Prompt tokens that `two` finds in the prefix cache of a group that computed `one`."""
    bench, prompt = Bench(), tuple(range(1, 14))
    for name, request in (("one", one), ("two", two)):
        bench.scheduler.add(replace(request, request_id=name, prompt_ids=prompt), bench.now_s)
        bench.run()
    return bench.finished("two").usage.cached_tokens


def test_isolated_tenants_find_their_own_prefixes_and_nobody_elses() -> None:
    isolated = replace(KEYED, isolate_tenants=True)
    gold, free = ({"authorization": f"Bearer {key}"} for key in "gf")
    asked = {
        (tenant, salt): over_http(isolated, headers, **({"cache_salt": salt} if salt else {}))
        for tenant, headers in (("gold", gold), ("free", free))
        for salt in ("", "s")
    }
    for one in asked:
        for two in asked:
            assert cached_by_second(asked[one], asked[two]) == (12 if one == two else 0)


def test_tenants_share_prefixes_unless_they_are_isolated() -> None:
    gold, free = (over_http(KEYED, {"authorization": f"Bearer {key}"}) for key in "gf")
    assert (gold.tenant, free.tenant) == ("gold", "free")
    assert cached_by_second(gold, free) == 12
    assert cached_by_second(gold, replace(free, cache_salt="own")) == 0
