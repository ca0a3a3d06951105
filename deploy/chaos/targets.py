"""The processes of a running deployment, found through Ray's own tables, on every node."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import ray
from ray._private import state
from ray.exceptions import RayError

from rayline.deploy.chaos.agent import Agents
from rayline.deploy.chaos.pairs import Target


@dataclass(frozen=True, slots=True)
class Victim:
    """One process. name: of its actor, "" where it has none. group: the same for a leader and its ranks."""

    target: Target
    pid: int
    node_id: str
    address: str
    name: str = ""
    group: str = ""
    is_head: bool = False


@dataclass(frozen=True, slots=True)
class Census:
    """All processes of a deployment at one time, the actors of the whole cluster by class, and its living nodes."""

    victims: tuple[Victim, ...]
    actors: Counter[str]
    nodes: int

    def of(self, target: Target) -> tuple[Victim, ...]:
        return tuple(victim for victim in self.victims if victim.target == target)

    def counts(self) -> dict[Target, int]:
        return dict(Counter(victim.target for victim in self.victims))


def census(agents: Agents, application: str) -> Census:
    """Look at the cluster this process is connected to. Nodes that do not answer have no raylet in it."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    head = next((n["NodeID"] for n in nodes if "node:__internal_head__" in n["Resources"]), "")
    actors = [actor for actor in state.actors(actor_state_name="ALIVE").values() if actor["Pid"]]
    victims = [victim for actor in actors if (victim := part_of(actor, application, head)) is not None]
    for node in nodes:
        try:
            pid = agents.ask(node["NodeID"], lambda agent: agent.raylet.remote())
        except RayError:
            continue
        is_head = node["NodeID"] == head
        victims.append(Victim(Target.RAYLET, pid, node["NodeID"], node["NodeManagerAddress"], is_head=is_head))
    return Census(tuple(victims), Counter(actor["ActorClassName"] for actor in actors), len(nodes))


def part_of(actor: dict[str, object], application: str, head: str) -> Victim | None:
    """The part that an actor, as Ray's table has it, plays in the deployment; None for none."""
    kind, name = str(actor["ActorClassName"]), str(actor["Name"])
    place, owner = actor["Address"], actor["OwnerAddress"]
    assert isinstance(place, dict) and isinstance(owner, dict) and isinstance(actor["Pid"], int)
    own, owners = (f"{where['NodeID']}:{where['Port']}" for where in (place, owner))
    replica = f"ServeReplica:{application}:"
    if kind == "RankActor":
        target, group = Target.RANK, owners
    elif kind == f"{replica}router":
        target, group = Target.ROUTER, ""
    elif kind.startswith(f"{replica}group-"):
        target, group = Target.LEADER, own
    elif kind == "ServeController":
        target, group = Target.CONTROLLER, ""
    else:
        return None
    node = str(place["NodeID"])
    return Victim(target, actor["Pid"], node, str(place["IPAddress"]), name, group, node == head)


def bystanders(broken: Victim, takes_node: bool, before: Iterable[Victim], after: Iterable[Victim]) -> list[Victim]:
    """Processes that are gone although they had nothing to do with it. takes_node: all that is on `broken`'s node was
    broken. A group ends with any of its processes."""
    before = list(before)
    hit = {v for v in before if v == broken or (takes_node and v.node_id == broken.node_id)}
    groups = {victim.group for victim in hit if victim.group}
    return [victim for victim in changed(before, after) if victim not in hit and victim.group not in groups]


def changed(before: Iterable[Victim], after: Iterable[Victim]) -> list[Victim]:
    """Processes that were there before and are gone now."""
    still = {(victim.node_id, victim.pid) for victim in after}
    return [victim for victim in before if (victim.node_id, victim.pid) not in still]
