"""`GET /metrics`: what the router knows of its groups, in Prometheus' text format, read at the moment of the scrape."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from rayline.protos.group import PreemptionReason
from rayline.router.service import ServedModel, Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABELS = ("model", "group")
GAUGES = {
    "rayline_running_requests": "Requests that a group computes.",
    "rayline_waiting_requests": "Requests that wait in a group's queue.",
    "rayline_waiting_tokens": "Prompt tokens of the requests that wait in a group's queue.",
    "rayline_drained_tokens_per_second": "Tokens of waiting requests that start, a second, while any wait.",
    "rayline_outstanding_tokens": "Prompt and output tokens that a group has yet to compute.",
    "rayline_free_kv_blocks": "KV blocks of a group that nothing holds.",
    "rayline_kv_blocks": "KV blocks of a group.",
}


class GroupCollector(Collector):
    """The groups that are alive, one sample each; `rayline_group_info` tells their numerics class."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        models = list(self._service.models())
        yield _info(models)
        yield from _preemptions(models)
        gauges = {name: GaugeMetricFamily(name, text, labels=LABELS) for name, text in GAUGES.items()}
        for model in models:
            for group in model.groups.values():
                if not group.alive:
                    continue
                load = group.load
                values = (
                    load.running,
                    load.waiting,
                    load.waiting_tokens,
                    load.tokens_per_s,
                    load.outstanding_tokens,
                    load.free_blocks,
                    load.total_blocks,
                )
                for gauge, value in zip(gauges.values(), values, strict=True):
                    gauge.add_metric((model.name, group.info.group_id), value)
        yield from gauges.values()


def _preemptions(models: Iterable[ServedModel]) -> Iterator[Metric]:
    """Counts of a group since its start: one that replaces it has another id."""
    text = "Requests that lost their KV blocks to others."
    times = CounterMetricFamily("rayline_preemptions", text, labels=(*LABELS, "reason"))
    text = "Tokens computed once more because of preemptions."
    tokens = CounterMetricFamily("rayline_recomputed_tokens", text, labels=LABELS)
    for model in models:
        for group in model.groups.values():
            if not group.alive:
                continue
            labels = (model.name, group.info.group_id)
            for reason, count in zip(PreemptionReason, group.load.preemptions, strict=False):
                times.add_metric((*labels, reason), count)
            tokens.add_metric(labels, group.load.recomputed_tokens)
    yield from (times, tokens)


def _info(models: Iterable[ServedModel]) -> InfoMetricFamily:
    family = InfoMetricFamily("rayline_group", "What decides a stream's bits besides model and request.", labels=LABELS)
    for model in models:
        for group in model.groups.values():
            if group.alive:
                numbers = {"numerics": group.info.numerics, "exact": str(group.info.exact).lower()}
                family.add_metric((model.name, group.info.group_id), numbers)
    return family


def page(service: Service) -> bytes:
    """The whole page; metrics of groups that are gone are not on it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GroupCollector(service))
    return generate_latest(registry)
