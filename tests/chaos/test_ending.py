"""A run that is ended early leaves no process behind."""

import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest
from server import command, environment
from waiting import until

START_S = 120.0
END_S = 60.0


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", ["raylet", "while time.monotonic() < end"], ids=["while it starts", "while it runs"])
def test_a_run_that_is_told_to_end_takes_its_cluster_with_it(number: signal.Signals, after: str) -> None:
    calm = command("chaos", "calm", "--seconds", "600", "--tp", "1", "--pp", "1")
    with subprocess.Popen(calm, env=environment(), stderr=subprocess.DEVNULL) as run:
        root = psutil.Process(run.pid)
        until(lambda: any(after in _words(child) for child in root.children(recursive=True)), START_S)
        time.sleep(3.0)  # into the start of what comes next
        processes = root.children(recursive=True)
        run.send_signal(number)
        assert run.wait(END_S) != 0
    _, left = psutil.wait_procs(processes, timeout=END_S)
    assert not left


def _words(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
