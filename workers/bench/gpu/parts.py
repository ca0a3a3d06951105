"""All parts of `rayline bench gpu`, what matters most first: what time is left for is what is measured."""

from rayline.workers.bench.gpu import checks, speed, sums
from rayline.workers.bench.gpu.bench import Part
from rayline.workers.bench.gpu.compiled import compiled_steps
from rayline.workers.bench.gpu.limits import limits

PARTS = (
    Part("limits", limits, 30.0),
    Part("operations", checks.operations, 150.0),
    Part("decoders", checks.decoders, 90.0),
    Part("exactness", checks.exactness, 60.0),
    Part("sampling", checks.sampling, 40.0),
    Part("graphs", checks.graphs, 60.0),
    Part("first model", speed.first_model, 90.0),
    Part("second model", speed.second_model, 60.0),
    Part("engine steps", speed.engine_steps, 90.0),
    Part("quantised models", speed.quantised_models, 90.0),
    Part("exact class", speed.exact_class, 90.0),
    Part("products", speed.products, 60.0),
    Part("attention", speed.attention, 60.0),
    Part("token sampling", speed.sampling, 30.0),
    Part("third model", speed.third_model, 60.0),
    Part("sums over ranks", sums.sums, 90.0),
    Part("compiled steps", compiled_steps, 150.0),
)
