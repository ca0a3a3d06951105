"""What a deployment holds while nobody asks it for anything: what a leak would add to."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from rayline.deploy.chaos.agent import Agents, Vitals
from rayline.deploy.chaos.targets import Census
from rayline.protos import inference_pb2 as pb

GROWTH_SHARE = 0.10  # of memory that a process may gain besides
GROWTH_BYTES = 48 * 2**20  # allocators and caches that fill
MORE_FDS = 16  # connections that come and go


@dataclass(frozen=True, slots=True)
class Holding:
    """The most that one process of a kind holds, and how many there are."""

    processes: int
    rss_bytes: int
    fds: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """requests: that run or wait. held_blocks: KV blocks that somebody holds. leftovers: names of shared memory."""

    requests: int
    held_blocks: int
    actors: dict[str, int]
    holdings: dict[str, Holding]
    leftovers: tuple[str, ...]


def footprint(census: Census, models: Iterable[pb.Model], agents: Agents) -> Footprint:
    """Look at every process of a deployment, and at Ray's own beside it."""
    models = list(models)
    by_kind: dict[str, list[Vitals]] = defaultdict(list)
    leftovers: list[str] = []
    for node in (node["NodeID"] for node in ray.nodes() if node["Alive"]):
        kinds = {victim.pid: str(victim.target) for victim in census.victims if victim.node_id == node}
        try:
            kinds |= {pid: name for name, pid in agents.ask(node, lambda agent: agent.beside.remote()).items()}
            found: dict[int, Vitals] = agents.ask(node, lambda agent: agent.vitals.remote(list(kinds)))  # noqa: B023
            leftovers += agents.ask(node, lambda agent: agent.leftovers.remote())
        except RayError:
            continue
        for pid, vitals in found.items():
            by_kind[kinds[pid]].append(vitals)
    return Footprint(
        requests=sum(model.running + model.waiting for model in models),
        held_blocks=sum(model.total_blocks - model.free_blocks for model in models),
        actors=dict(Counter(census.actors)),
        holdings={kind: _holding(each) for kind, each in by_kind.items()},
        leftovers=tuple(sorted(set(leftovers))),
    )


def leaks(before: Footprint, after: Footprint) -> tuple[str, ...]:
    """What is there now and was not before, in words. Processes are compared by kind: many have been replaced."""
    found = [f"{after.requests} requests are still there"] * bool(after.requests)
    found += [f"{after.held_blocks} KV blocks are held by nobody's request"] * bool(after.held_blocks)
    for kind, count in sorted(after.actors.items()):
        if count > before.actors.get(kind, 0):
            found.append(f"{count} actors {kind}, {before.actors.get(kind, 0)} before")
    for kind, holding in sorted(after.holdings.items()):
        if (was := before.holdings.get(kind)) is not None:
            found += _growth(kind, was, holding)
    found += [f"shared memory {name}" for name in after.leftovers if name not in before.leftovers]
    return tuple(found)


def _growth(kind: str, was: Holding, now: Holding) -> list[str]:
    found = []
    if now.rss_bytes > was.rss_bytes * (1 + GROWTH_SHARE) + GROWTH_BYTES:
        found.append(f"{kind}: {now.rss_bytes / 2**20:.0f} MiB, {was.rss_bytes / 2**20:.0f} before")
    if now.fds > was.fds + MORE_FDS:
        found.append(f"{kind}: {now.fds} file descriptors, {was.fds} before")
    return found


def _holding(vitals: list[Vitals]) -> Holding:
    return Holding(len(vitals), max(v.rss_bytes for v in vitals), max(v.fds for v in vitals))
