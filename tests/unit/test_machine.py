"""What the machine offers: interface, cores and memory, also inside a control group; and where processes go on it."""

import os
from pathlib import Path

import psutil
import pytest

from rayline.cluster import machine
from rayline.cluster.placement import bundle_of_stage, group_bundles, total_cpus


def cgroup(monkeypatch: pytest.MonkeyPatch, folder: Path, **files: str) -> None:
    """Put the process into a control group with these files; underscores stand for dots."""
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(content)
    monkeypatch.setattr(machine, "_CGROUP", folder)


def test_the_loopback_interface_leads_to_this_machine() -> None:
    interface = machine.interface_towards("127.0.0.1")
    assert interface is not None
    assert any(address.address == "127.0.0.1" for address in psutil.net_if_addrs()[interface])


def test_the_host_has_a_name() -> None:
    assert machine.host_name()


def test_cores_are_those_the_process_may_run_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cgroup(monkeypatch, tmp_path)
    assert machine.usable_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("sharing", "instances"), [("0-3", 2), ("0,2", 3), ("0-7", 1), ("0-3,16-17", 1)])
def test_the_last_level_cache_is_the_largest_times_its_instances(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sharing: str, instances: int
) -> None:
    for index, size in (("index0", "48K"), ("index2", "2048K"), ("index3", "32768K")):
        (tmp_path / index).mkdir()
        (tmp_path / index / "size").write_text(f"{size}\n")
        (tmp_path / index / "shared_cpu_list").write_text(f"{sharing}\n" if index == "index3" else "0\n")
    monkeypatch.setattr(machine, "_CACHES", tmp_path)
    monkeypatch.setattr(machine, "usable_cores", lambda: 6)
    assert machine.last_level_cache_bytes() == 32 * 2**20 * instances


def test_where_the_system_tells_no_cache_there_is_a_guess(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CACHES", tmp_path)
    assert machine.last_level_cache_bytes() == 32 * 2**20


def test_an_affinity_of_one_core_is_one_core() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert machine.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 8), ("", 8)]
)
def test_a_quota_of_the_control_group_cuts_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    cgroup(monkeypatch, tmp_path, cpu_max=quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.usable_cores() == cores


def test_available_memory_is_positive_and_at_most_the_machines() -> None:
    assert 0 < machine.available_bytes() <= psutil.virtual_memory().total


def test_a_limit_of_the_control_group_cuts_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = "anon 400\ninactive_file 200\nactive_file 100\n"
    cgroup(monkeypatch, tmp_path, memory_max="1000\n", memory_current="700\n", memory_stat=stat)
    assert machine.available_bytes() == 1000 - 700 + 200


def test_memory_never_is_negative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cgroup(monkeypatch, tmp_path, memory_max="1000", memory_current="1500")
    assert machine.available_bytes() == 0


def test_no_limit_leaves_the_machines_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cgroup(monkeypatch, tmp_path, memory_max="max", memory_current="1500")
    assert machine.available_bytes() > 2**20


def test_a_group_of_one_rank_is_its_own_leader() -> None:
    assert group_bundles(1, 1, gpus=False) == [{"CPU": 1.0}]
    assert group_bundles(1, 1, gpus=True) == [{"CPU": 1.0, "GPU": 1.0}]


def test_a_stage_is_one_bundle_behind_the_leaders() -> None:
    bundles = group_bundles(2, 3, gpus=True)
    assert bundles == [{"CPU": 1.0}, *[{"CPU": 2.0, "GPU": 2.0}] * 3]
    assert [bundle_of_stage(stage) for stage in range(3)] == [1, 2, 3]


def test_without_gpus_none_are_asked_for() -> None:
    assert all("GPU" not in bundle for bundle in group_bundles(4, 2, gpus=False))


def test_bundles_are_separate_so_that_one_can_be_changed() -> None:
    bundles = group_bundles(2, 2, gpus=False)
    bundles[1]["CPU"] = 9.0
    assert bundles[2]["CPU"] == 2.0


def test_the_cpus_of_a_deployment_are_those_of_its_groups_and_routers() -> None:
    assert total_cpus(group_bundles(2, 2, gpus=False), groups=3, routers=2, router_cpus=0.5) == 3 * 5 + 1.0
