"""What this machine offers a process: cores and memory, as its control group sees them."""

import os
import socket
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN_CACHE_BYTES = 32 * 2**20


def host_name() -> str:
    return socket.gethostname()


def interface_towards(host: str) -> str | None:
    """Name of the network interface whose address this machine would use to reach `host`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            return str(name)
    return None


def usable_cores() -> int:
    """Cores this process may run on: its affinity, cut by the control group's quota."""
    cores = len(os.sched_getaffinity(0))
    quota = _read(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def last_level_cache_bytes() -> int:
    """Of all last-level caches that this process's cores may use; a guess where the system does not tell.

    The size is that of the first core's cache, times as many such caches as the cores can lie in.
    """
    sizes = {file.parent.name: _kib(_read(file)) for file in sorted(_CACHES.glob("index*/size"))}
    if not any(sizes.values()):
        return _UNKNOWN_CACHE_BYTES
    largest = max(sizes, key=sizes.__getitem__)
    sharing = max(1, _count(_read(_CACHES / largest / "shared_cpu_list").strip()))
    return sizes[largest] * 1024 * -(-usable_cores() // sharing)


def available_bytes() -> int:
    """Memory that can still be taken: the machine's, cut by the control group's limit."""
    available = int(psutil.virtual_memory().available)
    limit = _read(_CGROUP / "memory.max").strip()
    if limit.isdigit():
        used = int(_read(_CGROUP / "memory.current").strip() or 0)
        reclaimable = _stat("inactive_file")
        available = min(available, max(0, int(limit) - used + reclaimable))
    return available


def _stat(name: str) -> int:
    for line in _read(_CGROUP / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _kib(size: str) -> int:
    """Of the kernel's "266240K"; 0 for anything else."""
    digits = size.strip().removesuffix("K")
    return int(digits) if digits.isdigit() else 0


def _count(cores: str) -> int:
    """Of cores in the kernel's "0-3,8"."""
    ranges = [part.split("-") for part in cores.split(",") if part]
    return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
