"""The Ray Serve graph, drawn in one place: one Router deployment in front of one Group deployment a model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import RequestRouterConfig

from rayline.cluster.config import SystemConfig
from rayline.cluster.placement import group_bundles
from rayline.deploy.group_replica import GroupReplica
from rayline.deploy.reload import ResolvedModel, router_share
from rayline.deploy.router_replica import RoutedModel, RouterReplica
from rayline.router.serve_router import ChosenGroupRouter
from rayline.workers.fingerprint import fingerprint
from rayline.workers.group import GroupSpec

ROUTER_CPUS = 1.0
ROUTER_SPARE_CORES = 1  # left to the router, the transport and the clients on a machine without GPUs
HEALTH_PERIOD_S = 1.0
GROUP_GRACE_S = 10.0  # at least, to end in good order
HEALTH_TIMEOUT_S = 3.0  # Serve acts on the third failure in a row
ROUTER_HEALTH_TIMEOUT_S = 1.5  # nobody else ends a router that froze, and its port takes connections until then
MANY = 1_000_000  # our own limits refuse first: Serve's must never queue a call


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a deployment shares: its secret, where start-up progress goes, how many nodes there are, GPUs or not."""

    secret: str
    progress_address: str
    nodes: int
    gpus: bool


def build(config: SystemConfig, models: Sequence[ResolvedModel], wiring: Wiring) -> Application:
    """The application that `rayline serve` runs. Built again from another config, Serve replaces what differs alone.

    router (router.replicas) --handles--> group-NAME (parallel.groups replicas, each with its placement group)
    """
    routed = [RoutedModel(model.name, model.section, model.path, _groups(config, model, wiring)) for model in models]
    router = serve.deployment(
        name="router",
        num_replicas=config.router.replicas or wiring.nodes,
        max_replicas_per_node=len(config.router.ports),
        max_ongoing_requests=MANY,
        ray_actor_options={"num_cpus": ROUTER_CPUS},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=ROUTER_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=config.router.drain_timeout_s + 5.0,
        graceful_shutdown_wait_loop_s=0.1,
    )(serve.ingress()(RouterReplica))
    return _versioned(router, router_version(config, models)).bind(config, routed, wiring.secret)


def _versioned(deployment: Deployment, version: str) -> Deployment:
    """Serve would take every build for another version and replace all replicas.

    The option is kept for Serve's own use; there is no public way to the same.
    """
    return deployment.options(version=version, _internal=True)


def router_version(config: SystemConfig, models: Sequence[ResolvedModel]) -> str:
    """Routers of one version need not be replaced by each other."""
    return _digest(router_share(config), [model.name for model in models])


def group_version(config: SystemConfig, model: ResolvedModel) -> str:
    """Groups of one version need not be replaced by each other: how many there are is not part of it."""
    spec = group_spec(config, model)
    alike = replace(spec, sharing=1, parallel=replace(spec.parallel, groups=1))
    return _digest(alike, fingerprint(model.path), config.router.drain_timeout_s, config.limits)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def group_name(model: str) -> str:
    """Name of the deployment of a model's groups."""
    return f"group-{model}"


def group_spec(config: SystemConfig, model: ResolvedModel) -> GroupSpec:
    """What each group of `model` is started with; its id is given by the replica."""
    return GroupSpec(
        group_id="",
        model=model.name,
        path=model.path,
        dtype=model.section.dtype,
        max_model_len=model.section.max_model_len,
        engine=config.engine,
        parallel=config.parallel,
        max_waiting=config.limits.max_waiting,
        max_waiting_tokens=config.limits.max_waiting_tokens,
        tenant_weights=config.security.tenant_weights,
        sharing=config.parallel.groups * len(config.models),
        spare_cores=ROUTER_SPARE_CORES,
    )


def _groups(config: SystemConfig, model: ResolvedModel, wiring: Wiring) -> Application:
    bundles = group_bundles(config.parallel.tp, config.parallel.pp, wiring.gpus)
    leader = bundles[0]
    group = serve.deployment(
        name=group_name(model.name),
        num_replicas=config.parallel.groups,
        max_surge_percent=max(1, 100 // config.parallel.groups),  # an update starts a new one first
        max_ongoing_requests=MANY,
        ray_actor_options={"num_cpus": leader["CPU"], "num_gpus": leader.get("GPU", 0.0)},
        placement_group_bundles=bundles,
        placement_group_strategy="PACK",
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=max(GROUP_GRACE_S, config.router.drain_timeout_s),
        graceful_shutdown_wait_loop_s=0.1,
        request_router_config=RequestRouterConfig(request_router_class=ChosenGroupRouter),  # type: ignore[arg-type]  # Ray types ** as dict
    )(GroupReplica)
    return _versioned(group, group_version(config, model)).bind(
        group_spec(config, model),
        wiring.secret,
        wiring.progress_address,
        config.observability.log_level,
        config.limits,
        config.router.drain_timeout_s,
    )
