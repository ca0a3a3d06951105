"""Errors as the OpenAI API writes them: {"error": {"message", "type", "param", "code"}}."""

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rayline.protos.errors import DeadlineExceeded, InvalidRequest, RaylineError

TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES = {
    "PromptTooLong": "context_length_exceeded",
    "ModelNotFound": "model_not_found",
    "Unauthenticated": "invalid_api_key",
    "DeadlineExceeded": "deadline_exceeded",
    "Overloaded": "rate_limit_exceeded",
    "SlowReader": "slow_reader",
    "Unavailable": "unavailable",
}


def error_body(error: RaylineError) -> dict[str, dict[str, str | None]]:
    """The body of `error`; clients read `param` as the request's field."""
    return {
        "error": {
            "message": error.message,
            "type": TYPES.get(error.http_code, "server_error"),
            "param": error.field,
            "code": CODES.get(error.kind),
        }
    }


def error_response(error: RaylineError) -> JSONResponse:
    """The whole answer, with Retry-After, the same in milliseconds, and WWW-Authenticate where they belong."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(round(error.retry_after_s * 1000))  # openai's client prefers it
    if isinstance(error, DeadlineExceeded):
        headers["x-should-retry"] = "false"  # openai's client tries any other 5xx again
    if error.http_code == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error), error.http_code, headers)


def install(app: FastAPI) -> None:
    """Make every answer of `app` that is an error an OpenAI one."""
    app.add_exception_handler(RaylineError, _rayline_error)
    app.add_exception_handler(RequestValidationError, _wrong_body)
    app.add_exception_handler(HTTPException, _http_error)


async def _rayline_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RaylineError)
    return error_response(error)


async def _wrong_body(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return error_response(_first_fault(error.errors()))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """No such path, a wrong method, a body over the limit."""
    assert isinstance(error, HTTPException)
    kind = TYPES.get(error.status_code, "invalid_request_error")
    body = {"error": {"message": str(error.detail), "type": kind, "param": None, "code": None}}
    return JSONResponse(body, error.status_code, error.headers)


def _first_fault(faults: Sequence[Any]) -> InvalidRequest:
    """One sentence for the first field that is wrong."""
    fault = faults[0]
    path = [str(part) for part in fault["loc"] if part != "body"]
    field = path[0] if path else None
    if fault["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {fault['ctx']['error']} at character {path[0]}")
    if fault["type"] == "extra_forbidden":
        return InvalidRequest(f"{'.'.join(path)} is not a field of this request", field=field)
    if fault["type"] == "missing":
        return InvalidRequest(f"{'.'.join(path) or 'the body'} is missing", field=field)
    if field is None:
        return InvalidRequest("the body must be a JSON object, sent with content-type application/json")
    shown = repr(fault["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return InvalidRequest(f"{'.'.join(path)} = {shown}: {fault['msg']}", field=field)
