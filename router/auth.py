"""API keys: who may call, and in whose name."""

import hashlib
import hmac
from dataclasses import replace

from rayline.cluster.config import SecuritySection
from rayline.protos.errors import Unauthenticated
from rayline.protos.types import Spec

TENANT_HEADER = "x-rayline-tenant"


class ApiKeys:
    """The bearer tokens that are let in, each for one tenant; with none configured, everybody is."""

    def __init__(self, security: SecuritySection):
        named = [(key, tenant.name) for tenant in security.tenants for key in tenant.api_keys]
        every = [*((key, "") for key in security.api_keys), *named]
        self._keys = tuple((key.encode(), tenant) for key, tenant in every)
        self._isolate = security.isolate_tenants

    def tenant(self, authorization: str | None, named: str | None) -> str:
        """Who calls: the owner of the key in "Bearer <key>". What the caller says of itself is believed only when no
        keys are configured, as behind a proxy that checked it. Raises Unauthenticated for any other key.

        All keys are compared in constant time, so that answers tell nothing about them.
        """
        if not self._keys:
            return named or ""
        if authorization is None:
            raise Unauthenticated("authorization is missing: expected 'Bearer <api key>'", field="authorization")
        scheme, _, token = authorization.partition(" ")
        shown = token.strip().encode(errors="replace")
        owners = [tenant for key, tenant in self._keys if hmac.compare_digest(shown, key)]
        if scheme.lower() != "bearer" or not owners:
            raise Unauthenticated("authorization does not hold a known api key", field="authorization")
        return owners[0]

    def sign(self, spec: Spec, authorization: str | None, named: str | None) -> Spec:
        """`spec` in its caller's name, with the salt of its tenant. The request's own word comes before `named`."""
        tenant = self.tenant(authorization, spec.tenant or named)
        return replace(spec, tenant=tenant, cache_salt=cache_salt(tenant, spec.cache_salt, self._isolate))


def cache_salt(tenant: str, asked: str, isolate: bool) -> str:
    """The salt of a request's cached prefixes. Isolated tenants share none, whatever salts they ask for."""
    if not isolate:
        return asked
    return hashlib.sha256(repr((tenant, asked)).encode()).hexdigest()[:32]
