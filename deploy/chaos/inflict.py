"""How a process is broken."""

import ctypes
import signal
import sys
from types import FrameType
from typing import Any

import ray
from ray.serve._private.constants import SERVE_NAMESPACE

from rayline.deploy.chaos.agent import Agents
from rayline.deploy.chaos.network import Network
from rayline.deploy.chaos.pairs import Fault, Pair, Target
from rayline.deploy.chaos.targets import Victim
from rayline.protos.errors import Unavailable
from rayline.workers.ray_launch import NAMESPACE

FREEZE_S = 120.0  # whoever is to be ended for it has long been ended by then
LULL_S = 8.0  # nobody ends a stopped raylet or controller: they go on, and wires are put back in
NAMESPACES = {Target.RANK: NAMESPACE, Target.LEADER: SERVE_NAMESPACE}
LOOPS = {  # the function in whose thread an exception is raised
    Target.RANK: ("rayline.workers.rank", "serve_rank"),
    Target.LEADER: ("rayline.workers.engine_thread", "_run"),
}


class Injected(Exception):
    """Raised inside a rank's or a leader's thread by `Fault.EXCEPTION`."""


def inflict(fault: Fault, victim: Victim, agents: Agents, network: Network | None) -> None:
    """Break one process. Raises RayError when its node cannot be reached, Unavailable when it has ended already."""
    match fault:
        case Fault.KILL:
            agents.ask(victim.node_id, lambda agent: agent.signal.remote(victim.pid, signal.SIGKILL))
        case Fault.STOP:
            lasting_s = FREEZE_S if Pair(victim.target, fault).is_lasting else LULL_S
            agents.ask(victim.node_id, lambda agent: agent.freeze.remote(victim.pid, lasting_s))
        case Fault.EXCEPTION:
            try:
                actor: Any = ray.get_actor(victim.name, namespace=NAMESPACES[victim.target])
            except ValueError:
                raise Unavailable(f"{victim.target} {victim.name} has ended already") from None
            actor.__ray_call__.remote(raise_inside, *LOOPS[victim.target])
        case Fault.CUT:
            assert network is not None, "the run refuses cuts where there is no network of its own"
            network.cut(victim.address)


def raise_inside(_: object, module: str, function: str) -> None:
    """Have the thread of this process that runs `function` of `module` raise `Injected` as soon as it computes."""
    for thread, frame in sys._current_frames().items():
        at: FrameType | None = frame
        while at is not None:
            if at.f_code.co_name == function and at.f_globals.get("__name__") == module:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Injected))
                return
            at = at.f_back
