"""What stands around every HTTP request: an API key, a body that is not too large, an answer even to a bug."""

import logging

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayline.protos.errors import InternalError, Unauthenticated
from rayline.router.auth import ApiKeys
from rayline.router.http.errors import error_response

OPEN_PATHS = ("/health",)  # probes have no key

log = logging.getLogger("rayline.router")


class HttpGate:
    """Plain ASGI, so that the app inside still sees the client's disconnect."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, max_body_bytes: int):
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if scope["path"] not in OPEN_PATHS:
                self._keys.tenant(headers.get("authorization"), None)
        except Unauthenticated as error:
            await error_response(error)(scope, receive, send)
            return
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_body_bytes:
            await self._too_large()(scope, receive, send)
            return
        await self._answered(scope, self._bounded(receive), send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; what it raises is logged and answered as an InternalError, unless an answer has begun.

        Starlette's own handler answers too, but raises again, and then uvicorn cuts the connection.
        """
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if begun:
                raise
            log.exception("%s %s failed", scope["method"], scope["path"])
            await error_response(InternalError(f"{type(error).__name__}: {error}"))(scope, receive, send)

    def _bounded(self, receive: Receive) -> Receive:
        """`receive`, counting the bytes of a body that does not announce its length."""
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_body_bytes:
                raise HTTPException(413, self._sentence())
            return message

        return bounded

    def _too_large(self) -> JSONResponse:
        body = {"message": self._sentence(), "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": body}, 413)

    def _sentence(self) -> str:
        return f"the body is larger than max_message_bytes = {self._max_body_bytes}"
