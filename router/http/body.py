"""Bodies of requests, parsed fast: a prompt of 100 000 token ids must not hold up the streams beside it."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json


class FastRequest(Request):
    """Reads JSON with pydantic's parser, which takes half the time of the standard library's or less."""

    async def json(self) -> Any:
        """Raises as `json.loads` does, and takes what it takes: half a surrogate pair is left to the tokenizer."""
        body = await self.body()
        try:
            return from_json(body)
        except ValueError:
            return json.loads(body)


class FastRoute(APIRoute):
    """Hands its endpoint a FastRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_fast(request: Request) -> Response:
            return await handle(FastRequest(request.scope, request.receive))

        return handle_fast
