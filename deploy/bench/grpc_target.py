"""A running server as a benchmark's target, over gRPC."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Self

from rayline.deploy.bench.load import Piece, TargetModel
from rayline.deploy.bench.workload import Job
from rayline.protos.addresses import addresses_of
from rayline.protos.client import AsyncClient
from rayline.protos.errors import ModelNotFound
from rayline.protos.event_wire import event_of
from rayline.protos.events import Delta, Failed, Finished
from rayline.protos.request_wire import spec_to_pb
from rayline.protos.resuming import Patience
from rayline.protos.types import SamplingParams, Spec


class GrpcTarget:
    """One client for all requests. Streams whose router is lost go on at another one of `address`, as users' do."""

    def __init__(self, address: str, model: str, api_key: str | None, temperature: float):
        self._addresses = addresses_of(address)
        self._api_key = api_key
        self._model = model
        self._temperature = temperature

    async def __aenter__(self) -> Self:
        self._client = AsyncClient(self._addresses, api_key=self._api_key, patience=Patience(connect_s=0.0))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def describe(self) -> TargetModel:
        """The model that will answer. Raises ModelNotFound when it is not served."""
        answer = await self._client.models()
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
        async with aclosing(self._client.stream(request)) as messages:
            async for message in messages:
                event = event_of(message)
                if isinstance(event, Delta):
                    yield Piece(len(event.token_ids))
                elif isinstance(event, Finished):
                    yield Piece(0, event.overhead)
                elif isinstance(event, Failed):
                    raise event.error
