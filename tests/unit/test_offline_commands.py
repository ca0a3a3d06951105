"""`generate`, `chat` and `bench engine` on the embedded model, in a process that can import neither Ray nor gRPC."""

import json
import subprocess
import sys

import pytest

WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('ray', 'grpc', 'fastapi', 'transformers')))"
SMALL = ("--kv-bytes", "20000000", "--threads", "1")


def rayline(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{WITHOUT}; from rayline.deploy.cli import run; sys.exit(run({list(arguments)!r}))"
    return subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, timeout=250)


def test_generate_prints_text_on_its_output_and_progress_beside_it() -> None:
    done = rayline("generate", "def add(a, b):", "--max-tokens", "5", "--temperature", "0", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "read weights" in done.stderr
    assert "read weights" not in done.stdout


def test_a_chat_answers_every_turn_and_a_seed_repeats_it() -> None:
    arguments = ("chat", "--json", "--max-tokens", "4", "--seed", "5", *SMALL)
    first, again = (rayline(*arguments, text="hello\nagain\n") for _ in range(2))
    answers = [json.loads(line) for line in first.stdout.splitlines()]
    assert len(answers) == 2
    assert all(answer["usage"]["output_tokens"] <= 4 for answer in answers)
    assert [answer["token_ids"] for answer in answers] == [
        json.loads(line)["token_ids"] for line in again.stdout.splitlines()
    ]


def test_bench_engine_reports_every_batch() -> None:
    lengths = ("--input-tokens", "8", "--output-tokens", "3", "--repeats", "2")
    done = rayline("bench", "engine", "--batch", "1", "--batch", "3", *lengths, "--json", *SMALL)
    found = json.loads(done.stdout)
    assert [batch["batch"] for batch in found["batches"]] == [1, 3]
    assert all(batch["decode_tokens_per_s"] > 0 and batch["prefill_tokens_per_s"] > 0 for batch in found["batches"])
    assert found["peak_memory"]["rss_bytes"] > 50_000_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "x", "--model", "./no-such-folder"], "is not a directory"),
        (["generate", "x", "--temperature", "-1"], "temperature = -1.0 is out of range: allowed is 0 to 100"),
        (["generate", "x", "--tp", "0"], "parallel.tp = 0"),
        (["generate", "x", "--address", "127.0.0.1:9000"], "pip install 'rayline[serve]'"),
        (["serve"], "pip install 'rayline[serve]'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(arguments: list[str], words: str) -> None:
    done = rayline(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("rayline: error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
