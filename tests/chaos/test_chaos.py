"""Short runs of `rayline chaos`: faults one by one and by chance, none at all on a busy machine; a node lost."""

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest
from chaos_runs import Running, chaos
from server import command, environment

from rayline.deploy.chaos.network import refusal

SMALL = ("--tokens", "100", "--copies", "1", "--traffic", "1")
SUSPENDED_S = 3.0
SOAK_S = 30.0

pytestmark = pytest.mark.timeout(900)
On = Callable[..., Any]


@pytest.mark.parametrize(
    "faults", [("kill",), pytest.param(("stop", "exception"), marks=pytest.mark.long)], ids=["killed", "stuck"]
)
def test_every_stream_is_the_undisturbed_one_whatever_is_broken(on: On, faults: tuple[str, ...]) -> None:
    """Each kind of process that has a group's streams in hand, by each fault that it can suffer on one node."""
    pairs = ("--target", "rank", "--target", "leader", *(word for fault in faults for word in ("--fault", fault)))
    workloads = [word for name in ("sampled", "grammar", "n4", "beam") for word in ("--workload", name)]
    count = 2 * len(faults)
    run = on("matrix", *pairs, *SMALL, "--every", "50", "--cases", str(count), *workloads)
    assert run.status == 0, run.said
    assert len(run.report["rows"]) == count and not run.report["skipped"]
    for row in run.report["rows"]:
        assert row["lost"] == 0 and row["streams"] >= 4
        assert row["back"]["count"] == row["cases"] == 1
    assert sum(row["moved"] for row in run.report["rows"]) > 0, "some were hit"


@pytest.mark.long
def test_nothing_is_left_behind_by_faults_one_after_another(on: On) -> None:
    run = on(
        "soak",
        "--target",
        "rank",
        "--target",
        "leader",
        "--fault",
        "kill",
        "--fault",
        "stop",
        *SMALL,
        "--seconds",
        str(SOAK_S),
        "--fault-every-s",
        "10",
    )
    assert run.status == 0, run.said
    assert run.report["leaked"] == [] and run.report["trouble"] == ""
    assert len(run.report["faults"]) >= 2 and len(run.report["streams"]) >= 5
    assert {"rank", "leader", "router", "controller", "gcs_server"} <= set(run.report["after"]["holdings"])


@pytest.mark.long
def test_a_busy_and_even_a_suspended_machine_is_no_reason_to_give_anything_up(running: Running) -> None:
    """Two busy loops for each core; and for a while everything sleeps, as with its machine."""
    words = ("calm", "--address", ",".join(running.addresses), "--seconds", "12", *SMALL, "--json")
    with subprocess.Popen([*command("chaos"), *words], env=environment(), stdout=subprocess.PIPE, text=True) as process:
        wait_for_loops(process)
        whole = [psutil.Process(process.pid), *running.processes()]
        suspended = [each for each in whole if suspend(each)]
        time.sleep(SUSPENDED_S)
        for each in reversed(suspended):
            each.resume()
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(300) == 0, said


@pytest.mark.long
def test_a_node_is_lost_and_another_one_takes_its_place() -> None:
    """Two groups on two nodes: one node ends, then another one is cut off where the machine lets us."""
    targets = ("--target", "raylet", "--fault", "kill", "--fault", "cut")
    run = chaos(
        "matrix", *targets, *SMALL, "--every", "50", "--cases", "2", "--workload", "sampled", "--tp", "1", "--pp", "1"
    )
    assert run.status == 0, run.said
    assert all(row["lost"] == 0 for row in run.report["rows"])
    skipped = [pair["pair"]["fault"] for pair in run.report["skipped"]]
    assert skipped == ([] if refusal() is None else ["cut"])


def wait_for_loops(process: "subprocess.Popen[str]") -> None:
    """Until the run has learnt its answers and keeps the cores busy."""
    end = time.monotonic() + 300.0
    while not [p for p in psutil.process_iter(["cmdline"]) if "while time.monotonic() < end" in str(p.info["cmdline"])]:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)


def suspend(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        process.suspend()
        return True
    return False
