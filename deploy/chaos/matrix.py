"""Every target x every fault x every workload x every k-th token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rayline.deploy.chaos.case import Case, CaseResult, Scene, run_case
from rayline.deploy.chaos.deployment import Deployment
from rayline.deploy.chaos.network import refusal
from rayline.deploy.chaos.pairs import Fault, Pair, Target

Impossible = Callable[[Pair], str | None]
"""Why a pair cannot be run, None where it can."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A pair that is not run, and why."""

    pair: Pair
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a matrix runs, in order."""

    cases: tuple[Case, ...]
    skipped: tuple[Skipped, ...]


def plan(pairs: Sequence[Pair], workloads: Sequence[str], positions: Sequence[int], impossible: Impossible) -> Plan:
    """All cases of the pairs that can be run, in rounds: each shows every pair once, and all workloads in turn.

    Positions change from round to round. So a run that is ended early has seen each pair, and every workload if there
    are no more of them than pairs; and after as many rounds as there are positions each pair at each of them.
    """
    reasons = {pair: impossible(pair) for pair in pairs}
    possible = [pair for pair in pairs if reasons[pair] is None]
    cases = [
        Case(pair, workloads[(turn + place + number) % len(workloads)], position)
        for turn in range(len(workloads))
        for place, position in enumerate(positions)
        for number, pair in enumerate(possible)
    ]
    return Plan(tuple(cases), tuple(Skipped(pair, reason) for pair, reason in reasons.items() if reason is not None))


def impossible_in(deployment: Deployment) -> Impossible:
    """What cannot be run against this deployment."""

    def reason(pair: Pair) -> str | None:
        if pair.pointless is not None:
            return pair.pointless
        kills_node = pair.target is Target.RAYLET and pair.fault is Fault.KILL
        if deployment.nodes is None:
            return "only on a cluster that this command starts" if kills_node or pair.fault is Fault.CUT else None
        if pair.target is Target.RAYLET and not deployment.nodes.others:
            return "a cluster of one node ends with its raylet"
        if pair.fault is Fault.CUT and deployment.network is None:
            return refusal() or "all processes are on one node"
        if pair == Pair(Target.CONTROLLER, Fault.CUT):
            return "the controller is on the head, whose loss is the cluster's"
        return None

    return reason


async def run_matrix(
    scene: Scene, cases: Sequence[Case], tokens: int, show: Callable[[int, CaseResult], None]
) -> list[CaseResult]:
    """One case after another, each on a whole deployment. `show` is told of each as it ends.

    Ends early where the deployment does not become whole again: nothing after that could be believed.
    """
    results: list[CaseResult] = []
    for number, case in enumerate(cases):
        results.append(await run_case(scene, case, tokens))
        show(number, results[-1])
        if results[-1].back_s is None:
            break
    return results
