"""A running server as a benchmark's target, over the OpenAI HTTP API."""

import json
from collections.abc import AsyncIterator
from typing import Any, Self

import aiohttp

from rayline.deploy.bench.load import Piece, TargetModel
from rayline.deploy.bench.workload import Job
from rayline.protos.addresses import check_address
from rayline.protos.errors import InternalError, ModelNotFound, RaylineError, Unavailable


class HttpTarget:
    """Streams /v1/completions. Enter it inside the event loop."""

    def __init__(self, address: str, model: str, api_key: str | None, temperature: float):
        self._url = f"http://{check_address(address)}"
        self._model = model
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._temperature = temperature

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            self._url,
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def describe(self) -> TargetModel:
        """The model that will answer. Raises ModelNotFound when it is not served."""
        try:
            async with self._session.get("/v1/models") as response:
                listed = await _body(response)
        except aiohttp.ClientError as error:
            raise Unavailable(f"server {self._url} cannot be reached: {error}") from None
        for model in listed["data"]:
            if model["id"] == (self._model or model["id"]):
                self._model = model["id"]
                return TargetModel(model["id"], int(model.get("max_model_len") or 0), 0)
        names = [model["id"] for model in listed["data"]]
        raise ModelNotFound(f"model = {self._model!r} is not served: allowed are {names}", field="model")

    async def run(self, job: Job) -> AsyncIterator[Piece]:
        """A chunk with text counts as one token; what the usage counts beyond comes with the last piece."""
        body = {
            "model": self._model,
            "prompt": list(job.prompt_ids),
            "max_tokens": job.output_tokens,
            "temperature": self._temperature,
            "seed": job.number,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        counted = 0
        try:
            async with self._session.post("/v1/completions", json=body) as response:
                if response.status != 200:
                    await _body(response)
                async for chunk in _chunks(response):
                    if any(choice.get("text") for choice in chunk.get("choices", ())):
                        counted += 1
                        yield Piece(1)
                    elif chunk.get("usage"):
                        yield Piece(max(0, chunk["usage"]["completion_tokens"] - counted))
        except aiohttp.ClientError as error:
            raise Unavailable(f"the connection to {self._url} failed: {error}") from None


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON bodies of a server-sent event stream, up to [DONE]."""
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise InternalError(str(chunk["error"].get("message", chunk["error"])))
        yield chunk


async def _body(response: aiohttp.ClientResponse) -> Any:
    """The JSON body. Raises the error that an OpenAI error body tells."""
    body = await response.json(content_type=None)
    if response.status != 200:
        told = body.get("error", {}) if isinstance(body, dict) else {}
        message = f"HTTP {response.status}: {told.get('message', body)}"
        raise (Unavailable if response.status in (429, 503) else RaylineError)(message)
    return body
