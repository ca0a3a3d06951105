"""`rayline serve` as users meet it: two groups behind one router, real clients, a drain, nothing left behind."""

import json
import subprocess
import time
from collections.abc import Callable

import grpc
import httpx
import openai
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server import Server, command, environment

from rayline.deploy.llm import LLM
from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos.types import SamplingParams

PROMPT = "def fibonacci(n):\n"


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server]) -> Server:
    return serve("--groups", "2", "--dtype", "float32")


@pytest.fixture(scope="module")
def stub(server: Server) -> pb_grpc.InferenceServiceStub:
    return pb_grpc.InferenceServiceStub(grpc.insecure_channel(server.grpc_address))


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.http_url, api_key="unused")


def generate(stub: pb_grpc.InferenceServiceStub, **params: object) -> list[pb.StreamResponse]:
    sampling = pb.SamplingParams(**{"temperature": 0.0, "max_tokens": 16, "ignore_eos": True} | params)
    return list(stub.Generate(pb.GenerateRequest(model="rayline-python", text=PROMPT, params=sampling)))


def token_ids(events: list[pb.StreamResponse]) -> list[int]:
    return [token for event in events for token in event.delta.token_ids]


def test_the_banner_shows_addresses_the_cache_formula_and_a_line_to_try(server: Server) -> None:
    assert "2 x 6 layers x 2 kv heads x 64 head dim x 4 bytes x" in server.banner
    assert "groups 2 x (tp 1 x pp 1)" in server.banner
    assert "curl http://" in server.banner


def test_grpc_streams_the_tokens_that_the_engine_gives_offline(stub: pb_grpc.InferenceServiceStub) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    with LLM(dtype="float32", threads=1, max_model_len=256) as llm:
        (expected,) = llm.generate([PROMPT], params)
    events = generate(stub)
    assert events[0].HasField("started")
    assert events[-1].finished.usage.output_tokens == 16
    assert token_ids(events) == list(expected.choices[0].token_ids)
    assert "".join(event.delta.text for event in events) == expected.choices[0].text
    assert [event.index for event in events] == list(range(len(events)))


def test_both_groups_answer_alike_and_both_are_used(stub: pb_grpc.InferenceServiceStub) -> None:
    answers = [generate(stub, temperature=1.0, seed=7) for _ in range(4)]
    assert len({tuple(token_ids(answer)) for answer in answers}) == 1
    models = stub.ListModels(pb.ListModelsRequest()).models
    assert [(model.name, model.groups) for model in models] == [("rayline-python", 2)]


def test_the_openai_client_gets_text_usage_and_finish_reasons(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="rayline-python", prompt=PROMPT, max_tokens=8, temperature=0)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None and answer.usage.completion_tokens <= 8


def test_the_openai_client_streams_chat(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="rayline-python",
            messages=[{"role": "user", "content": "Return the sum of two numbers."}],
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].usage is not None
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("length", "stop")


def test_an_unknown_model_is_a_404_that_names_those_there_are(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="rayline-python"):
        client.completions.create(model="nobody", prompt="x")


def test_ray_serves_own_proxy_mounts_the_same_app(server: Server) -> None:
    ports = {c.laddr.port for p in server.descendants() for c in p.net_connections("tcp") if c.status == "LISTEN"}
    answers = []
    for port in ports:
        try:
            answers.append(httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=2.0).text)
        except httpx.HTTPError:
            continue
    assert sum('"object":"list"' in answer for answer in answers) == 2  # our own door and the proxy


def test_health_is_serving(server: Server) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_status_prints_json(server: Server) -> None:
    done = subprocess.run(
        command("status", "--address", server.grpc_address, "--json"),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "rayline-python" in json.dumps(json.loads(done.stdout))


def test_a_cancelled_stream_frees_its_blocks(stub: pb_grpc.InferenceServiceStub) -> None:
    sampling = pb.SamplingParams(max_tokens=1500, ignore_eos=True)
    streams = [
        stub.Generate(pb.GenerateRequest(model="rayline-python", text=PROMPT, params=sampling)) for _ in range(4)
    ]
    for stream in streams:
        for _ in range(3):
            next(stream)
        stream.cancel()
    began = time.monotonic()
    while (running := _running(stub)) and time.monotonic() - began < 5:
        time.sleep(0.05)
    assert running == 0


def test_bad_input_disturbs_nobody(stub: pb_grpc.InferenceServiceStub, client: openai.OpenAI) -> None:
    sampling = pb.SamplingParams(max_tokens=64, ignore_eos=True, temperature=0.0)
    stream = stub.Generate(pb.GenerateRequest(model="rayline-python", text=PROMPT, params=sampling))
    next(stream)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="rayline-python", prompt="x", temperature=-1)
    with pytest.raises(openai.BadRequestError, match="2048"):
        client.completions.create(model="rayline-python", prompt="x = 1\n" * 2000)
    with pytest.raises(grpc.RpcError) as refused:
        generate(stub, top_p=0.0)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "top_p" in refused.value.details()
    assert len(token_ids(list(stream))) == 64


def test_ctrl_c_lets_a_running_stream_finish_and_leaves_no_process(serve: Callable[..., Server]) -> None:
    server = serve()
    stub = pb_grpc.InferenceServiceStub(grpc.insecure_channel(server.grpc_address))
    sampling = pb.SamplingParams(max_tokens=600, ignore_eos=True, temperature=0.0)
    stream = stub.Generate(pb.GenerateRequest(model="rayline-python", text=PROMPT, params=sampling))
    next(stream)
    children = server.descendants()
    server.interrupt()
    events = list(stream)
    assert events[-1].finished.usage.output_tokens == 600
    assert server.process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_port_in_use_is_named_before_anything_starts(server: Server) -> None:
    port = server.grpc_address.rpartition(":")[2]
    done = subprocess.run(
        command("serve", "--grpc-port", port), capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.returncode == 2
    assert f"grpc_port = {port} is in use" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--tp", "3"], "tp = 3"),
        (["--pp", "7"], "pp = 7"),
        (["--kv-bytes", "1000"], "kv_bytes"),
        (["--max-model-len", "4096"], "max_model_len = 4096"),
        (["nowhere/at/all"], "not a directory"),
    ],
)
def test_what_cannot_start_is_refused_in_one_clear_line(args: list[str], said: str) -> None:
    ports = ["--grpc-port", "0", "--http-port", "0", "--serve-port", "0"]
    done = subprocess.run(
        command("serve", *ports, *args), capture_output=True, text=True, env=environment(), timeout=120
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def _running(stub: pb_grpc.InferenceServiceStub) -> int:
    return sum(model.running for model in stub.ListModels(pb.ListModelsRequest()).models)


@pytest.mark.long
def test_a_killed_group_costs_no_stream_and_comes_back(server: Server, stub: pb_grpc.InferenceServiceStub) -> None:
    """Runs last: it kills one of the server's two groups."""
    sampling = pb.SamplingParams(max_tokens=1500, ignore_eos=True, temperature=1.0, seed=5)
    request = pb.GenerateRequest(model="rayline-python", text=PROMPT, params=sampling)
    streams = [stub.Generate(request) for _ in range(4)]
    for stream in streams:
        next(stream)
    leaders = [p for p in server.descendants() if "group-rayline-python" in " ".join(p.cmdline())]
    assert len(leaders) == 2
    leaders[0].kill()
    answers = [list(stream) for stream in streams]
    assert all([event.WhichOneof("event") for event in events].count("finished") == 1 for events in answers)
    assert sum(events[-1].finished.overhead.moves for events in answers) == 2
    texts = {"".join(event.delta.text for event in events) for events in answers}
    assert len(texts) == 1, "those that moved say what the others say"
    assert len(token_ids(generate(stub))) == 16
    began = time.monotonic()
    while (groups := stub.ListModels(pb.ListModelsRequest()).models[0].groups) < 2:
        assert time.monotonic() - began < 60, f"{groups} of 2 groups are back"
        time.sleep(0.2)
