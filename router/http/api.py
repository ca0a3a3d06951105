"""The HTTP door: the OpenAI API as a FastAPI app, with vLLM's /tokenize, /detokenize, /health and /metrics."""

import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from rayline.cluster.config import SystemConfig
from rayline.protos.errors import StreamNotFound
from rayline.protos.events import Started, StreamEvent
from rayline.protos.metadata import CAN_RESUME
from rayline.protos.openai import DetokenizeBody
from rayline.protos.openai_chat import ChatCompletionBody, TokenizeBody
from rayline.protos.openai_completion import CompletionBody
from rayline.protos.openai_sampling import SamplingBody
from rayline.protos.position import Reading
from rayline.protos.types import Spec
from rayline.router import metrics
from rayline.router.auth import TENANT_HEADER, ApiKeys
from rayline.router.fan_in import fan_in
from rayline.router.http import errors as http_errors
from rayline.router.http.body import FastRoute
from rayline.router.http.gate import HttpGate
from rayline.router.http.last_event import positions_of
from rayline.router.http.openai_answer import Head, Numbered, Shown, Style, after_first, chunks, fingerprint, whole
from rayline.router.http.openai_styles import ChatStyle, CompletionStyle
from rayline.router.http.stream import EventStream, unless_gone
from rayline.router.http.timeout import seconds_of
from rayline.router.http.view import View
from rayline.router.journal import Found
from rayline.router.service import ServedModel, Service

REQUEST_ID = "x-request-id"
LAST_EVENT = "last-event-id"


def build_http_app(service: Service, config: SystemConfig) -> FastAPI:
    """The app for `service`. Every error is an OpenAI error body; a client that goes away aborts its request."""
    app = FastAPI(title="Rayline", redoc_url=None)
    app.router.route_class = FastRoute
    keys = ApiKeys(config.security)
    app.add_middleware(HttpGate, keys=keys, max_body_bytes=config.limits.max_message_bytes)
    http_errors.install(app)
    door = HttpDoor(service, keys)
    app.get("/health")(door.health)
    app.get("/metrics")(door.metrics)
    app.get("/v1/models")(door.models)
    app.get("/v1/models/{name:path}")(door.model)
    app.post("/v1/completions", response_model=None)(door.completions)
    app.post("/v1/chat/completions", response_model=None)(door.chat_completions)
    app.get("/v1/streams/{request_id:path}", response_model=None)(door.stream)
    app.post("/tokenize")(door.tokenize)
    app.post("/detokenize")(door.detokenize)
    return app


class HttpDoor:
    """The handlers of the paths above."""

    def __init__(self, service: Service, keys: ApiKeys):
        self._service = service
        self._keys = keys

    async def health(self) -> Response:
        """200 while every model can be served, 503 while draining or where one has no live group."""
        models = {model.name: "ok" if model.alive else "unavailable" for model in self._service.models()}
        if self._service.ready:
            return JSONResponse({"status": "ok", "models": models})
        status = "draining" if self._service.draining else "unavailable"
        return JSONResponse({"status": status, "models": models}, 503)

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(metrics.page(self._service), media_type=metrics.CONTENT_TYPE)

    async def models(self) -> dict[str, Any]:
        """All served models."""
        return {"object": "list", "data": [_model_json(model) for model in self._service.models()]}

    async def model(self, name: str) -> dict[str, Any]:
        """One served model."""
        return _model_json(self._service.model(name))

    async def completions(self, body: CompletionBody, request: Request) -> Response:
        """Continues one prompt or several."""
        specs = body.specs(_request_id(request, "cmpl"))
        return await self._generated(request, body, specs, CompletionStyle(_shown(body)))

    async def chat_completions(self, body: ChatCompletionBody, request: Request) -> Response:
        """Answers a conversation."""
        spec = body.spec(_request_id(request, "chatcmpl"))
        style = ChatStyle(self._service.model(body.model).tokenizer, _shown(body))
        return await self._generated(request, body, [spec], style)

    async def stream(self, request_id: str, request: Request) -> Response:
        """A stream again, from behind the event that Last-Event-ID names; whoever has its id need not have its body."""
        found = await self._found(self._tenant(request), request_id)
        view = View.of(found[0].record)
        model = self._service.model(found[0].record.spec.model)
        is_chat = found[0].record.spec.conversation is not None
        style = ChatStyle(model.tokenizer, view.shown) if is_chat else CompletionStyle(view.shown)
        can_resume = CAN_RESUME in request.headers
        within_s = seconds_of(request.headers, is_streamed=view.is_streamed)
        streams = [self._service.resume(each, within_s=within_s, can_resume=can_resume) for each in found]
        return await self._answer(request, request_id, model.name, streams, style, view)

    async def tokenize(self, body: TokenizeBody) -> dict[str, Any]:
        """Ids of a prompt or of a conversation."""
        if (conversation := body.conversation()) is not None:
            token_ids = await self._service.tokenize_chat(body.model, conversation)
        else:
            token_ids = await self._service.tokenize(body.model, body.prompt or "", body.add_special_tokens)
        model = self._service.model(body.model)
        answer = {"count": len(token_ids), "max_model_len": model.info.max_model_len, "tokens": token_ids}
        if body.return_token_strs:
            answer["token_strs"] = [model.tokenizer.token(token_id) for token_id in token_ids]
        return answer

    async def detokenize(self, body: DetokenizeBody) -> dict[str, str]:
        """Text of ids."""
        return {"prompt": self._service.detokenize(body.model, body.tokens)}

    async def _generated(self, request: Request, body: SamplingBody, specs: list[Spec], style: Style) -> Response:
        """A request that names itself may be one that came before: then its stream goes on."""
        view = View(_shown(body), len(specs), bool(body.stream))
        starts = positions_of(request.headers.get(LAST_EVENT), len(specs))
        caller = (request.headers.get("authorization"), request.headers.get(TENANT_HEADER))
        is_new = REQUEST_ID not in request.headers
        within_s = seconds_of(request.headers, is_streamed=bool(body.stream))
        streams = [
            self._service.generate(
                self._keys.sign(spec, *caller),
                within_s=within_s,
                is_known=True if start.next_index else False if is_new else None,
                can_resume=CAN_RESUME in request.headers,
                note=view.to_note(),
            )
            for spec, start in zip(specs, starts, strict=True)
        ]
        request_id = specs[0].request_id if len(specs) == 1 else specs[0].request_id.rpartition("-")[0]
        model = self._service.model(body.model).name
        return await self._answer(request, request_id, model, streams, style, view)

    async def _answer(
        self,
        request: Request,
        request_id: str,
        model: str,
        streams: list[AsyncGenerator[StreamEvent, None]],
        style: Style,
        view: View,
    ) -> Response:
        """A stream answers 200 only when its first event has come: what is wrong before has its own status."""
        starts = positions_of(request.headers.get(LAST_EVENT), len(streams))
        readings = [Reading(start, view.shown.choices) for start in starts]
        headers = {REQUEST_ID: request_id}
        events = fan_in(streams)
        first = await unless_gone(request, _first(events))
        created_s = first[1].created_s if isinstance(first[1], Started) else 0
        head = Head(request_id, created_s, model, fingerprint(first[1]))
        events = after_first(events, first)
        if not view.is_streamed:
            answer = await unless_gone(request, whole(events, style, head, view.shown))
            return JSONResponse(answer, headers=headers)
        return EventStream(chunks(events, style, head, view.shown, readings), headers)

    async def _found(self, tenant: str, request_id: str) -> list[Found]:
        """The streams of a request: one for each prompt. Raises StreamNotFound unless all are known."""
        try:
            return [await self._service.find(tenant, request_id)]
        except StreamNotFound as error:
            try:
                first = await self._service.find(tenant, f"{request_id}-0")
            except StreamNotFound:
                raise error from None
        numbers = range(1, View.of(first.record).prompts)
        return [first, *[await self._service.find(tenant, f"{request_id}-{number}") for number in numbers]]

    def _tenant(self, request: Request) -> str:
        return self._keys.tenant(request.headers.get("authorization"), request.headers.get(TENANT_HEADER))


def _request_id(request: Request, kind: str) -> str:
    """The client's own name for its request, or a new one."""
    return request.headers.get(REQUEST_ID) or f"{kind}-{uuid.uuid4().hex}"


async def _first(events: Numbered) -> tuple[int, StreamEvent]:
    return await anext(events)


def _shown(body: SamplingBody) -> Shown:
    return Shown(
        choices=body.shown_choices,
        token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
        usage=body.include_usage,
        continuous_usage=body.continuous_usage,
        echoed=body.echoed,
    )


def _model_json(model: ServedModel) -> dict[str, Any]:
    alive = [group.info.max_model_len for group in model.groups.values() if group.alive]
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "rayline",
        "max_model_len": alive[0] if alive else None,
    }
