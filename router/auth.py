"""API keys: who may call."""

import hmac
from collections.abc import Sequence

from rayline.protos.errors import Unauthenticated


class ApiKeys:
    """The bearer tokens that are let in; with none configured, everybody is."""

    def __init__(self, keys: Sequence[str]):
        self._keys = tuple(key.encode() for key in keys)

    def check(self, authorization: str | None) -> None:
        """Raise Unauthenticated unless `authorization` is "Bearer <one of the keys>".

        All keys are compared in constant time, so that answers tell nothing about them.
        """
        if not self._keys:
            return
        if authorization is None:
            raise Unauthenticated("authorization is missing: expected 'Bearer <api key>'", field="authorization")
        scheme, _, token = authorization.partition(" ")
        shown = token.strip().encode(errors="replace")
        known = [hmac.compare_digest(shown, key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(known):
            raise Unauthenticated("authorization does not hold a known api key", field="authorization")
