"""A running server as a benchmark's target, over gRPC."""

from collections.abc import AsyncIterator
from typing import Self

import grpc

from rayline.deploy.bench.load import Piece, TargetModel
from rayline.deploy.bench.workload import Job
from rayline.deploy.client import CHANNEL_OPTIONS, call_metadata, check_address, error_of_call
from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos.errors import ModelNotFound
from rayline.protos.event_wire import event_of
from rayline.protos.events import Delta, Failed, Finished
from rayline.protos.request_wire import spec_to_pb
from rayline.protos.types import SamplingParams, Spec


class GrpcTarget:
    """One channel for all requests, as one client has it. Enter it inside the event loop."""

    def __init__(self, address: str, model: str, api_key: str | None, temperature: float):
        self._address = check_address(address)
        self._model = model
        self._metadata = call_metadata(api_key)
        self._temperature = temperature

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS)
        self._service = pb_grpc.InferenceServiceStub(self._channel)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()

    async def describe(self) -> TargetModel:
        """The model that will answer. Raises ModelNotFound when it is not served."""
        try:
            answer = await self._service.ListModels(pb.ListModelsRequest(), metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of_call(error, self._address) from None
        for model in answer.models:
            if model.name == (self._model or model.name):
                return TargetModel(model.name, model.max_model_len, model.vocab_size)
        names = [model.name for model in answer.models]
        raise ModelNotFound(f"model = {self._model!r} is not served: allowed are {names}", field="model")

    async def run(self, job: Job) -> AsyncIterator[Piece]:
        params = SamplingParams(
            temperature=self._temperature, seed=job.number, max_tokens=job.output_tokens, ignore_eos=True
        )
        request = spec_to_pb(Spec("", self._model, params, prompt_ids=job.prompt_ids))
        try:
            async for message in self._service.Generate(request, metadata=self._metadata):
                event = event_of(message)
                if isinstance(event, Delta):
                    yield Piece(len(event.token_ids))
                elif isinstance(event, Finished):
                    yield Piece(0, event.overhead)
                elif isinstance(event, Failed):
                    raise event.error
        except grpc.RpcError as error:
            raise error_of_call(error, self._address) from None
