"""A request that kills every rank that computes it, beside streams that have nothing to do with it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from server import Server
from waiting import until

from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.router.docket import BlameLimits

DEADLY = Path(__file__).parents[1] / "deadly"
MODEL = "rayline-python"
AT_ONCE = (7, 7, 7, 7, 20, 21)
LATE = (8, 8, 8, 8, 20, 21)
INNOCENT = (20, 21, 22, 23, 24)
STREAMS = 6
TOKENS = 700
BOUND = BlameLimits().poison_losses + 1
BACK_S = 90.0  # for groups that are rebuilt on a busy machine


class Stream:
    """A stream read by a thread: its tokens, and how it ended."""

    def __init__(self, stub: pb_grpc.InferenceServiceStub, prompt: tuple[int, ...], tokens: int = TOKENS):
        params = pb.SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=1.0, seed=11)
        ids = pb.TokenIds(ids=prompt)
        self._call = stub.Generate(pb.GenerateRequest(model=MODEL, token_ids=ids, params=params))
        self.token_ids: list[int] = []
        self.text = ""
        self.kinds: list[str | None] = []
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._call:
                self.kinds.append(event.WhichOneof("event"))
                self.token_ids += event.delta.token_ids
                self.text += event.delta.text
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            self.failure = error.code(), error.details() or ""

    def join(self) -> "Stream":
        self._thread.join(240.0)
        assert not self._thread.is_alive(), "the stream hangs"
        return self


@pytest.mark.parametrize(
    ("tp", "poison"),
    [
        pytest.param("2", AT_ONCE, id="a rank dies"),
        pytest.param("1", LATE, id="a leader dies"),
    ],
)
@pytest.mark.long
def test_poison_is_quarantined_and_streams_beside_it_end_as_if_nothing_had_been(
    tp: str,
    poison: tuple[int, ...],
    serve: Callable[..., Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deaths = tmp_path / "deaths"
    deaths.touch()
    monkeypatch.setenv("PYTHONPATH", str(DEADLY))
    monkeypatch.setenv("DEADLY_LOG", str(deaths))
    server = serve("--groups", "2", "--tp", tp)
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        whole = Stream(stub, INNOCENT).join()
        innocents = [Stream(stub, INNOCENT) for _ in range(STREAMS)]
        until(lambda: all(len(stream.token_ids) > 5 for stream in innocents), 60.0)

        began = time.monotonic()
        bad = Stream(stub, poison).join()
        found_s = time.monotonic() - began
        assert bad.failure is not None and bad.failure[0] is grpc.StatusCode.FAILED_PRECONDITION
        assert "fingerprint" in bad.failure[1]
        assert len(deaths.read_text().split()) == BOUND

        until(lambda: stub.ListModels(pb.ListModelsRequest()).models[0].groups > 0, BACK_S)
        began = time.monotonic()
        again = Stream(stub, poison).join()
        refused_s = time.monotonic() - began
        assert again.failure is not None and again.failure[0] is grpc.StatusCode.FAILED_PRECONDITION
        assert again.kinds == [] and refused_s < 2.0, "refused before anybody computes anything"

        for stream in innocents:
            stream.join()
            assert stream.failure is None and stream.kinds[-1] == "finished" and stream.kinds.count("started") == 1
            assert (stream.token_ids, stream.text) == (whole.token_ids, whole.text)
        until(lambda: stub.ListModels(pb.ListModelsRequest()).models[0].groups == 2, BACK_S)
        assert Stream(stub, INNOCENT, 50).join().token_ids == whole.token_ids[:50]
        assert len(deaths.read_text().split()) == BOUND
    server.stop()
    print(f"found after {found_s:.1f} s and {BOUND} deaths, a retry refused after {refused_s:.2f} s")
