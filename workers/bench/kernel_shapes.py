"""What `rayline bench kernels` can be asked for: operations, and the sizes of the decoders they are taken from."""

from dataclasses import dataclass

OPERATIONS = ("linear", "quantised", "attention", "norm", "silu", "sample")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder that its operations depend on."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


SHAPES = {
    "1b": ModelShape(2048, 8192, 32, 8, 64, 128256),  # Llama 3.2, 1.24 B parameters
    "135m": ModelShape(576, 1536, 9, 3, 64, 49152),  # SmolLM, 135 M parameters
}
