"""`generate`, `chat`, `status` and `bench serve` against a real gRPC front door over a fake group."""

import json
import threading
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner
from doors import served
from fakes import FakeGroup, saying

from rayline.deploy import cli
from rayline.deploy.bench.grpc_target import GrpcTarget
from rayline.deploy.bench.http_target import HttpTarget
from rayline.deploy.bench.load import closed_loop
from rayline.deploy.bench.workload import Shape
from rayline.deploy.commands.server import open_server
from rayline.protos.addresses import check_address
from rayline.protos.errors import ConfigError, ModelNotFound, Overloaded, RaylineError, Unauthenticated, Unavailable
from rayline.protos.events import Delta, Failed, Finished, Started
from rayline.protos.types import SamplingParams, Spec

SHAPE = Shape(input_tokens=5, output_tokens=4, vocab_size=300, seed=1)


def spec(**changes: Any) -> Spec:
    return Spec(
        **({"request_id": "r1", "model": "tiny", "params": SamplingParams(max_tokens=9), "prompt": "a"} | changes)
    )


def run(*arguments: str, text: str | None = None) -> Any:
    """One command line; its output and exit status."""
    return CliRunner().invoke(cli.rayline, arguments, input=text, standalone_mode=False)


def test_a_client_streams_events_and_the_last_one_ends_it() -> None:
    with served(FakeGroup(saying("hello"))) as address, open_server(address, None) as stream:
        events = list(stream(spec()))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "hello"


def test_leaving_a_stream_early_cancels_it() -> None:
    group = FakeGroup(saying("x" * 500), delay_s=0.01)
    with served(group) as address, open_server(address, None) as stream:
        events = stream(spec(params=SamplingParams(max_tokens=40)))
        assert isinstance(next(events), Started)
        next(events)
        assert isinstance(events, Generator)
        events.close()
        for _ in range(200):
            if group.aborted:
                break
            threading.Event().wait(0.01)
    assert group.aborted == ["r1"]


def test_a_client_raises_the_error_the_server_meant() -> None:
    with served(FakeGroup(saying("x"))) as address, open_server(address, None) as stream:
        with pytest.raises(RaylineError) as refused:
            list(stream(spec(params=SamplingParams(temperature=1000.0))))
        assert refused.value.kind == "InvalidRequest"
        assert refused.value.field == "temperature"
        with pytest.raises(RaylineError) as missing:
            list(stream(spec(model="other")))
        assert missing.value.kind == "ModelNotFound"


def test_a_failure_in_the_middle_arrives_as_an_event() -> None:
    group = FakeGroup(saying("hello"), loss=RuntimeError("burnt"), loss_after=2)
    with served(group) as address, open_server(address, None) as stream:
        last = list(stream(spec()))[-1]
    assert isinstance(last, Failed)
    assert "burnt" in last.error.message


def test_a_refusal_keeps_its_kind_and_its_waiting_time() -> None:
    group = FakeGroup(saying("x"), refusal=Overloaded("full", retry_after_s=1.5))
    with served(group) as address, open_server(address, None) as stream, pytest.raises(Overloaded) as refused:
        list(stream(spec()))
    assert refused.value.retry_after_s == pytest.approx(1.5)


def test_a_key_is_shown_to_the_server() -> None:
    with served(FakeGroup(saying("hi")), api_keys=["secret"]) as address:
        with open_server(address, "secret") as stream:
            assert isinstance(list(stream(spec()))[-1], Finished)
        with open_server(address, None) as stream, pytest.raises(Unauthenticated):
            list(stream(spec()))


def test_no_server_is_unavailable_and_names_the_address() -> None:
    for command in (["status"], ["generate", "a"]):
        error = run(*command, "--address", "127.0.0.1:1").exception
        assert isinstance(error, Unavailable) and "127.0.0.1:1" in error.message


@pytest.mark.parametrize("address", ["", "localhost", ":9000", "host:", "host:99999", "host:http"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        check_address(address)


def test_generate_prints_the_text_of_a_running_server() -> None:
    with served(FakeGroup(saying("hello world"))) as address:
        result = run("generate", "a prompt", "--address", address)
    assert result.exception is None
    assert result.output == "hello world\n"


def test_generate_reads_standard_input_and_prints_json() -> None:
    group = FakeGroup(saying("hello"))
    with served(group) as address:
        found = json.loads(run("generate", "--json", "--logprobs", "1", "--address", address, text="a prompt").output)
    assert found["text"] == "hello"
    assert found["finish_reason"] == "stop"
    assert found["usage"]["output_tokens"] == len(found["token_ids"]) == len(found["logprobs"])
    assert found["numerics"] == "fake"
    assert found["exact"] is True


def test_every_sampling_flag_reaches_the_engine() -> None:
    group = FakeGroup(saying("hello"))
    flags = (
        "--temperature=0.5 --top-k=7 --top-p=0.9 --min-p=0.1 --seed=11 --max-tokens=6 --min-tokens=2 --stop=zz "
        "--stop=yy --stop-token-ids=5 --ignore-eos --logprobs=3"
    )
    with served(group) as address:
        assert run("generate", "a", "--address", address, *flags.split()).exception is None
    assert group.requests[0].params == SamplingParams(
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        seed=11,
        max_tokens=6,
        min_tokens=2,
        stop=("zz", "yy"),
        stop_token_ids=(5,),
        ignore_eos=True,
        logprobs=3,
    )


def test_flags_of_an_engine_are_refused_beside_an_address() -> None:
    result = run("generate", "a", "--address", "127.0.0.1:1", "--tp", "2", "--max-running", "3")
    assert isinstance(result.exception, ConfigError)
    assert "--max-running, --tp cannot be set" in str(result.exception)


def test_a_failed_stream_is_the_commands_failure() -> None:
    with served(FakeGroup(saying("hello"), loss=RuntimeError("burnt"), loss_after=2)) as address:
        assert cli.run(["generate", "a", "--address", address]) == 1


def test_chat_keeps_the_conversation() -> None:
    group = FakeGroup(saying("yes"))
    with served(group) as address:
        result = run("chat", "--system", "be brief", "--address", address, text="one\n\ntwo\n")
    assert result.exception is None
    assert result.output == "yes\nyes\n"
    first, second = (len(request.prompt_ids) for request in group.requests)
    assert second > first


def test_chat_with_a_message_answers_it_alone() -> None:
    group = FakeGroup(saying("yes"))
    with served(group) as address:
        result = run("chat", "one", "--json", "--address", address, text="two\n")
    assert [json.loads(line)["text"] for line in result.output.splitlines()] == ["yes"]
    assert len(group.requests) == 1


def test_status_shows_health_and_models() -> None:
    with served(FakeGroup(saying("x"))) as address:
        found = json.loads(run("status", "--json", "--address", address).output)
        table = run("status", "--address", address)
    assert found["health"] == "SERVING"
    (model,) = found["models"]
    assert model.items() >= {"name": "tiny", "max_model_len": 64, "vocab_size": 400, "groups": 1}.items()
    assert model.items() >= {"numerics": "fake", "exact": True, "running": 0, "waiting": 0}.items()
    assert table.return_value == 0
    assert "is SERVING" in table.output
    assert "tiny" in table.output


def test_status_of_a_server_without_groups_is_a_failure() -> None:
    group = FakeGroup(saying("x"), alive=False)
    with served(group) as address:
        assert cli.run(["status", "--json", "--address", address]) == 1


async def test_grpc_load_counts_tokens_and_the_servers_own_times() -> None:
    group = FakeGroup(lambda request: [65] * 100)
    with served(group) as address:
        async with GrpcTarget(address, "", None, 0.0) as target:
            model = await target.describe()
            timelines = await closed_loop(target, SHAPE.jobs(6), 3)
    assert (model.name, model.vocab_size) == ("tiny", 400)
    assert all(t.ok and t.output_tokens == 4 and t.prompt_tokens == 5 for t in timelines)
    assert all(t.overhead is not None for t in timelines)
    assert all(request.params.ignore_eos for request in group.requests)
    assert {request.prompt_ids for request in group.requests} == {job.prompt_ids for job in SHAPE.jobs(6)}


async def test_grpc_load_notes_refusals() -> None:
    with served(FakeGroup(saying("x"), refusal=Overloaded("full"))) as address:
        async with GrpcTarget(address, "tiny", None, 0.0) as target:
            (timeline,) = await closed_loop(target, SHAPE.jobs(1), 1)
    assert timeline.error == "Overloaded: full"


def test_bench_serve_reports_as_json_and_as_tables() -> None:
    arguments = ["bench", "serve", "--requests", "5", "--input-tokens", "5", "--output-tokens", "4"]
    with served(FakeGroup(lambda request: [65] * 100)) as address:
        found = json.loads(run(*arguments, "--address", address, "--slo-ttft-ms", "60000", "--json").output)
        table = run(*arguments, "--address", address, "--rate", "200")
    assert found["served"]["requests"] == 5
    assert found["served"]["failed"] == 0
    assert found["served"]["output_tokens"] == 20
    assert found["served"]["goodput"]["share"] == 1.0
    assert found["served"]["server"]["queue"]["p50_ms"] == pytest.approx(250.0)
    assert found["peak_memory"] is None
    assert table.exception is None
    assert "TTFT" in table.output
    assert "output tokens/s" in table.output


def test_bench_serve_refuses_lengths_the_model_does_not_allow() -> None:
    with served(FakeGroup(saying("x"))) as address:
        assert cli.run(["bench", "serve", "--address", address, "--input-tokens", "100"]) == 2


def test_bench_serve_fails_when_every_request_does() -> None:
    with served(FakeGroup(saying("x"), refusal=Overloaded("full"))) as address:
        arguments = ["--address", address, "--input-tokens", "5", "--output-tokens", "4", "--warm-up", "0"]
        assert cli.run(["bench", "serve", *arguments]) == 1


class OpenAiServer:
    """Speaks as much of the OpenAI API as a benchmark needs; every third answer has two tokens in a chunk."""

    def __init__(self, status: int = 200):
        self._status = status
        self.bodies: list[dict[str, Any]] = []

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self._status != 200:
            return web.json_response({"error": {"message": "no room", "type": "overloaded"}}, status=self._status)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        joined = len(self.bodies) % 3 == 0
        for _ in range(body["max_tokens"] - joined):
            await self._send(response, {"choices": [{"text": "x"}]})
        await self._send(response, {"choices": [{"text": "", "finish_reason": "length"}]})
        await self._send(response, {"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _send(self, response: web.StreamResponse, chunk: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes([web.get("/v1/models", self.models), web.post("/v1/completions", self.completions)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield "{}:{}".format(*runner.addresses[0])
        await runner.cleanup()


async def test_http_load_counts_every_token_of_the_usage() -> None:
    server = OpenAiServer()
    async with server.running() as address, HttpTarget(address, "", "key", 0.5) as target:
        assert (await target.describe()).name == "tiny"
        timelines = await closed_loop(target, SHAPE.jobs(6), 2)
    assert [t.output_tokens for t in timelines] == [4] * 6
    assert all(t.ok and t.ttft_s > 0 for t in timelines)
    first = min(server.bodies, key=lambda body: int(body["seed"]))
    assert first["model"] == "tiny"
    assert first["prompt"] == list(SHAPE.jobs(1)[0].prompt_ids)
    assert first["ignore_eos"] is True
    assert first["temperature"] == 0.5


async def test_http_load_notes_refusals_with_the_servers_words() -> None:
    async with OpenAiServer(status=429).running() as address, HttpTarget(address, "tiny", None, 0.0) as target:
        (timeline,) = await closed_loop(target, SHAPE.jobs(1), 1)
    assert timeline.error == "Unavailable: HTTP 429: no room"


@pytest.mark.parametrize("make", [GrpcTarget, HttpTarget])
async def test_a_model_that_is_not_served_is_named(make: type[GrpcTarget] | type[HttpTarget]) -> None:
    with served(FakeGroup(saying("x"))) as grpc_address:
        async with OpenAiServer().running() as http_address:
            address = grpc_address if make is GrpcTarget else http_address
            async with make(address, "other", None, 0.0) as target:
                with pytest.raises(ModelNotFound, match="'other' is not served"):
                    await target.describe()


async def test_an_http_server_that_is_not_there_is_unavailable() -> None:
    async with HttpTarget("127.0.0.1:1", "", None, 0.0) as target:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await target.describe()
        (timeline,) = await closed_loop(target, SHAPE.jobs(1), 1)
    assert timeline.error is not None


def test_every_choice_is_in_the_json_with_its_score_and_the_prompts_ids() -> None:
    group = FakeGroup(saying("hello"), logprob_of=lambda request: -float(request.request_id[-1]))
    with served(group) as address:
        asked = run("generate", "--address", address, "--json", "--token-ids", "3, 4", "--n", "2", "--best-of", "3")
    found = json.loads(asked.output)
    assert [choice["text"] for choice in found["choices"]] == ["hello", "hello"]
    assert [choice["score"] for choice in found["choices"]] == [0.0, -1.0]
    assert found["prompt_ids"] == [3, 4] and found["text"] == "hello" and found["usage"]["prompt_tokens"] == 2


def test_several_answers_are_printed_under_their_numbers() -> None:
    with served(FakeGroup(saying("hello"))) as address:
        assert run("generate", "a", "--address", address, "--n", "2").output == "[0]\nhello\n[1]\nhello\n"
        assert run("generate", "a", "--address", address, "--echo").output == "ahello\n"


# A flag for each field, with a value that is not its default.
FLAGS: dict[str, tuple[list[str], Any]] = {
    "temperature": (["0.5"], 0.5),
    "top_k": (["5"], 5),
    "top_p": (["0.5"], 0.5),
    "min_p": (["0.25"], 0.25),
    "typical_p": (["0.5"], 0.5),
    "top_n_sigma": (["1.5"], 1.5),
    "presence_penalty": (["0.5"], 0.5),
    "frequency_penalty": (["-0.5"], -0.5),
    "repetition_penalty": (["1.25"], 1.25),
    "no_repeat_ngram_size": (["3"], 3),
    "logit_bias": (["5=-2"], ((5, -2.0),)),
    "allowed_token_ids": (["7"], (7,)),
    "seed": (["9"], 9),
    "length_penalty": (["2", "--beam-width", "1"], 2.0),
    "early_stopping": (["never", "--beam-width", "1"], "never"),
    "max_tokens": (["4"], 4),
    "min_tokens": (["2"], 2),
    "stop": (["x"], ("x",)),
    "include_stop_str_in_output": ([], True),
    "stop_token_ids": (["7"], (7,)),
    "ignore_eos": ([], True),
    "logprobs": (["1"], 1),
    "prompt_logprobs": (["1"], 1),
}
ELSEWHERE = {"bad_words", "n", "best_of", "beam_width", "skip_special_tokens", "thinking_budget", "structured_output"}


def test_every_parameter_is_a_flag_in_these_tests() -> None:
    assert set(FLAGS) | ELSEWHERE == set(SamplingParams.__slots__)


def test_flags_reach_the_group() -> None:
    group = FakeGroup(saying("hello"))
    with served(group) as address:
        for field, (words, value) in FLAGS.items():
            flag = "--" + field.replace("_", "-")
            done = run("generate", "a", "--address", address, flag, *words)
            assert done.exception is None, (field, done.exception)
            assert getattr(group.requests[-1].params, field) == value
        run("generate", "a", "--address", address, "--no-skip-special-tokens", "--bad-words", "fox", "--tenant", "t")
        last = group.requests[-1]
        assert not last.params.skip_special_tokens and last.rules.bad_words and last.tenant == "t"


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--logit-bias", "five"], "logit_bias"),
        (["--json-object", "--regex", "a"], "structured_output"),
        (["--token-ids", "1,x"], "token_ids"),
        (["--temperature", "-1"], "temperature"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--grammar", "@/no/such/file"], None),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused_before_anything_is_asked(flags: list[str], field: str | None) -> None:
    group = FakeGroup(saying("x"))
    with served(group) as address:
        error = run("generate", "a", "--address", address, *flags).exception
    assert isinstance(error, RaylineError) and error.field == field and not group.requests


def test_tools_of_a_chat_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([{"type": "function", "function": {"name": "weather"}}]))
    with served(FakeGroup(saying("x"))) as address:
        error = run("chat", "hi", "--address", address, "--tools", f"@{file}").exception
        assert isinstance(error, RaylineError) and "not known how this model calls them" in error.message
        assert run("chat", "hi", "--address", address, "--tools", f"@{file}", "--tool-choice", "none").output == "x\n"
        error = run("chat", "hi", "--address", address, "--tools", "[{}]").exception
    assert isinstance(error, RaylineError) and error.field == "tools"
