"""Where the processes of a group go: one placement-group bundle for the leader and one for each stage.

    [{CPU: 1}]  [{CPU: tp, GPU: tp}]  [{CPU: tp, GPU: tp}]  ...        pp stages
     leader      stage 0               stage 1

A bundle never spans nodes, so the tensor-parallel ranks of a stage share a node by construction, while
stages may lie on different ones. A group of one rank is its own leader and needs a single bundle.
"""

from collections.abc import Sequence

Bundle = dict[str, float]

LEADER_CPUS = 1.0


def group_bundles(tp_size: int, pp_size: int, gpus: bool) -> list[Bundle]:
    """Resources of one group, leader first."""
    rank: Bundle = {"CPU": 1.0, "GPU": 1.0} if gpus else {"CPU": 1.0}
    if tp_size * pp_size == 1:
        return [rank]
    stage = {name: amount * tp_size for name, amount in rank.items()}
    return [{"CPU": LEADER_CPUS}, *(dict(stage) for _ in range(pp_size))]


def bundle_of_stage(stage: int) -> int:
    """Index of a stage's bundle, behind the leader's."""
    return 1 + stage


def total_cpus(bundles: Sequence[Bundle], groups: int, routers: int, router_cpus: float) -> float:
    """CPUs that Ray must count for a deployment: what a local cluster is started with."""
    return groups * sum(bundle["CPU"] for bundle in bundles) + routers * router_cpus
