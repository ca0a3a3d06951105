"""Runs as the command line asks for them: a deployment, its scene, the run, what came of it."""

import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from rayline.deploy.chaos.calm import CalmReport, run_calm
from rayline.deploy.chaos.case import CaseResult, Scene
from rayline.deploy.chaos.deployment import Deployment, attached, started
from rayline.deploy.chaos.door import Door
from rayline.deploy.chaos.matrix import Plan, impossible_in, plan, run_matrix
from rayline.deploy.chaos.options import Options
from rayline.deploy.chaos.pairs import Pair
from rayline.deploy.chaos.soak import SoakReport, run_soak
from rayline.deploy.chaos.workload import Workload, workloads
from rayline.protos.errors import ConfigError, out_of_range

Show = Callable[[str], None]


@contextmanager
def deployment_of(options: Options, pairs: Sequence[Pair]) -> Iterator[Deployment]:
    """The one at `options.addresses`, or one that lives as long as this is open, on as many nodes as `pairs` need."""
    if options.addresses:
        with attached(options.addresses) as deployment:
            yield deployment
        return
    is_apart = any(pair.takes_node for pair in pairs if not pair.pointless)
    with started(options.model, options.parallel, is_apart) as deployment:
        yield deployment


@asynccontextmanager
async def scene_of(deployment: Deployment, options: Options) -> AsyncIterator[Scene]:
    """The streams of a run, with their undisturbed answers known."""
    async with Door(deployment.addresses, options.api_key) as door:
        chosen = _chosen(workloads(options.tokens), options.workloads)
        scene = Scene(deployment, door, chosen, options.copies, options.traffic, random.Random(options.seed))
        await scene.learn()
        yield scene


async def matrix(
    deployment: Deployment, options: Options, pairs: Sequence[Pair], every: int, most: int | None, show: Show
) -> tuple[Plan, list[CaseResult]]:
    """Break at every `every`-th token; `most` cases at most."""
    positions = range(every, options.tokens, every) or [options.tokens // 2]
    async with scene_of(deployment, options) as scene:
        names = [workload.name for workload in scene.workloads]
        planned = plan(pairs, names, positions, impossible_in(deployment))
        cases = planned.cases[:most]

        def line(number: int, result: CaseResult) -> None:
            show(f"{number + 1}/{len(cases)} {_line(result)}")

        return planned, await run_matrix(scene, cases, options.tokens, line)


async def soak(
    deployment: Deployment, options: Options, pairs: Sequence[Pair], seconds: float, every_s: float, show: Show
) -> SoakReport:
    """Break one of `pairs`, by chance, every `every_s` seconds. Raises ConfigError when none of them can be run."""
    impossible = impossible_in(deployment)
    possible = [pair for pair in pairs if impossible(pair) is None]
    if not possible:
        raise ConfigError(f"nothing can be broken here: {impossible(pairs[0])}", field="target")
    async with scene_of(deployment, options) as scene:
        return await run_soak(scene, possible, seconds, every_s, show)


async def calm(deployment: Deployment, options: Options, seconds: float, show: Show) -> CalmReport:
    """Break nothing, and keep every core busy."""
    async with scene_of(deployment, options) as scene:
        return await run_calm(scene, seconds, show)


def _line(result: CaseResult) -> str:
    """A case that has ended, in one line, and what is wrong with its streams in one each."""
    case, streams = result.case, result.streams
    pauses = [stream.pause_s for stream in streams if stream.pause_s is not None]
    moved = sum(bool(stream.losses) for stream in streams)
    back = f"whole again after {result.back_s:.1f} s" if result.back_s is not None else result.trouble
    head = (
        f"{case.pair.target} {case.pair.fault}, {case.workload} at {case.position}: {len(streams)} streams, {moved} "
        f"moved, longest pause {max(pauses, default=0.0):.2f} s, {back}"
    )
    bad = [f"  LOST {stream.workload}: {'; '.join(stream.complaints)}" for stream in streams if stream.complaints]
    bad += [f"  GIVEN UP for nothing: {process}" for process in result.bystanders]
    return "\n".join([head, *bad])


def _chosen(known: Sequence[Workload], names: Sequence[str]) -> tuple[Workload, ...]:
    """Raises InvalidRequest for a name that is no workload."""
    allowed = [workload.name for workload in known]
    if unknown := [name for name in names if name not in allowed]:
        raise out_of_range("workload", unknown[0], ", ".join(allowed))
    return tuple(workload for workload in known if not names or workload.name in names)
