"""Who calls: keys, tenants, and the salts that keep their caches apart."""

import pytest

from rayline.cluster.config import SecuritySection, TenantSection, parse
from rayline.protos.errors import ConfigError, Unauthenticated
from rayline.protos.types import SamplingParams, Spec
from rayline.router.auth import ApiKeys, cache_salt

SECURITY = SecuritySection(
    api_keys=("one", "two"),
    tenants=(TenantSection("gold", ("g1", "g2"), 4.0), TenantSection("free", ("f",))),
)
SPEC = Spec("r", "m", SamplingParams(), prompt="x")


@pytest.mark.parametrize("header", ["Bearer one", "bearer two", "BEARER  one "])
def test_a_known_key_is_let_in(header: str) -> None:
    assert ApiKeys(SECURITY).tenant(header, None) == ""


@pytest.mark.parametrize(
    "header", [None, "", "one", "Basic one", "Bearer", "Bearer onetwo", "Bearer on", "Bearer \ud800"]
)
def test_anything_else_is_not(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        ApiKeys(SECURITY).tenant(header, "gold")
    assert caught.value.field == "authorization"


def test_without_keys_everybody_is_let_in_under_the_name_a_proxy_gave() -> None:
    keys = ApiKeys(SecuritySection())
    assert keys.tenant(None, None) == ""
    assert keys.tenant("Bearer anything", "gold") == "gold"


def test_the_weights_of_tenants_without_keys_count_for_names_that_a_proxy_gave() -> None:
    security = SecuritySection(tenants=(TenantSection("gold", weight=4.0),))
    assert ApiKeys(security).tenant(None, "gold") == "gold"
    assert security.tenant_weights == {"gold": 4.0}


@pytest.mark.parametrize(("key", "tenant"), [("g1", "gold"), ("g2", "gold"), ("f", "free"), ("one", "")])
def test_a_key_names_its_tenant_whatever_its_caller_says(key: str, tenant: str) -> None:
    assert ApiKeys(SECURITY).tenant(f"Bearer {key}", "other") == tenant


def test_a_request_is_signed_with_its_callers_name() -> None:
    assert ApiKeys(SECURITY).sign(SPEC, "Bearer g1", None).tenant == "gold"
    assert ApiKeys(SecuritySection()).sign(SPEC, None, "proxied").tenant == "proxied"


def test_salts_are_the_clients_own_unless_tenants_are_isolated() -> None:
    assert cache_salt("a", "s", isolate=False) == "s"
    salts = [cache_salt(tenant, asked, isolate=True) for tenant in ("", "a", "b") for asked in ("", "s", "t")]
    assert len(set(salts)) == 9, "no tenant can name a salt that gives it another one's prefixes"
    assert all(0 < len(salt) <= 128 for salt in salts)
    isolated = ApiKeys(SecuritySection(isolate_tenants=True))
    assert isolated.sign(SPEC, None, "a").cache_salt == cache_salt("a", "", isolate=True)


@pytest.mark.parametrize(
    "tenants",
    [
        [{"name": "a"}, {"name": "a"}],
        [{"name": ""}],
        [{"name": "a", "api_keys": ["k"]}, {"name": "b", "api_keys": ["k"]}],
        [{"name": "a", "api_keys": ["shared"]}],
    ],
)
def test_names_and_keys_must_tell_tenants_apart(tenants: list[dict[str, object]]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"security": {"api_keys": ["shared"], "tenants": tenants}})
    assert caught.value.field == "tenants"
    assert "shared" not in str(caught.value)
