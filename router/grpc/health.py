"""grpc.health.v1, answered from the service's own state at the time of the question."""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rayline.router.service import Service

WATCH_PERIOD_S = 0.25  # how often a watched state is looked at

Context = grpc.aio.ServicerContext[Any, Any]


class LiveHealth(health_pb2_grpc.HealthServicer):
    """SERVING while there is a live group and nothing is being drained.

    "" and the service's name ask for all models, a model's name for that one.
    """

    def __init__(self, service: Service, service_name: str):
        self._service = service
        self._names = {"", service_name}

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        if self._status(request.service) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"service = {request.service!r} is not served here")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        last: int | None = None
        while True:
            status = self._status(request.service)
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            await asyncio.sleep(WATCH_PERIOD_S)

    def _status(self, name: str) -> int:
        models = {model.name: model for model in self._service.models()}
        if name not in self._names | models.keys():
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._service.ready if name in self._names else models[name].alive and not self._service.draining:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING
