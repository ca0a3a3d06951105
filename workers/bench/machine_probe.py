"""Probes of this machine's limits, sized for its caches and its free memory."""

import os

import torch

from rayline.cluster.machine import available_bytes, last_level_cache_bytes
from rayline.kernels.cores import Cores
from rayline.kernels.library import LibraryMissing, load
from rayline.kernels.probe import Probe
from rayline.kernels.program import Operations, Team
from rayline.workers.bench.limit_sampler import LimitSampler

CACHES_READ = 2  # a buffer of twice the cache: what a pass over it leaves behind is of no use to the next one
LARGEST_SHARE = 4  # of the memory that is free


def open_probe(operations: Operations) -> Probe:
    """A probe on this team that reads memory and not the caches, if there is memory enough."""
    return Probe(operations, min(CACHES_READ * last_level_cache_bytes(), available_bytes() // LARGEST_SHARE))


def first_cores(threads: int) -> Cores | None:
    """A core for each thread, whoever computes there too; None when there are not so many."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(tuple(allowed[:threads])) if len(allowed) >= threads else None


def open_sampler(threads: int) -> LimitSampler:
    """On threads of its own, which sleep between samples."""
    if torch.cuda.is_available():
        return LimitSampler(None, "the ranks compute on GPUs, whose limits are not measured")
    try:
        library = load()
    except LibraryMissing as missing:
        return LimitSampler(None, str(missing))
    return LimitSampler(open_probe(Operations(Team(library, threads, first_cores(threads)))))
