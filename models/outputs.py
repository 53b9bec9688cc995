"""The contract between a decoder and a likelihood: how many outputs a datum has, and how the likelihood gets them.

A likelihood has an attribute ``outputs``. By default this is the number of outputs per coordinate of x: the decoder
gives [rows, outputs, *x_shape], and ``forward`` gets ``outputs`` tensors [..., *x_shape]. A likelihood that declares
``is_flat = True`` counts its outputs per datum: the decoder gives [rows, outputs], and ``forward`` gets one tensor
[..., outputs], which it splits itself. Both return a distribution of batch shape [..., *x_shape].
"""

from typing import Any

from torch import Tensor, nn

from .networks import WIDTH, decoder

__all__ = ["default_decoder", "inputs_of", "is_flat", "outputs_of", "outputs_shape"]


def is_flat(likelihood: nn.Module) -> bool:
    """Whether a likelihood counts its outputs per datum, and not per coordinate. It declares this as ``is_flat``."""
    return bool(getattr(likelihood, "is_flat", False))


def outputs_of(likelihood: nn.Module) -> int:
    """The attribute ``outputs`` of a likelihood.

    Raises:
        ValueError: If it is missing, or is not a whole number of at least 1.
    """
    name, unit = type(likelihood).__name__, "datum" if is_flat(likelihood) else "coordinate"
    outputs: Any = getattr(likelihood, "outputs", None)
    if outputs is None:
        raise ValueError(f"{name} has no attribute outputs: set it to its number of decoder outputs per {unit}")
    if isinstance(outputs, bool) or not isinstance(outputs, int) or outputs < 1:
        raise ValueError(
            f"{name}.outputs is its number of decoder outputs per {unit}, a whole number of at least 1, got {outputs!r}"
        )
    return outputs


def outputs_shape(likelihood: nn.Module, x_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the decoder's outputs for one datum: [outputs, *x_shape], or [outputs] where they are flat."""
    outputs = outputs_of(likelihood)
    return (outputs,) if is_flat(likelihood) else (outputs, *x_shape)


def inputs_of(likelihood: nn.Module, decoded: Tensor, x_shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The tensors that ``forward`` of a likelihood takes, from the decoder's outputs [..., *outputs_shape]."""
    return (decoded,) if is_flat(likelihood) else decoded.unbind(-1 - len(x_shape))


def default_decoder(likelihood: nn.Module, z_dim: int, x_shape: tuple[int, ...], width: int = WIDTH) -> nn.Sequential:
    """The decoder that is chosen by the shape of x. For flat outputs it is a perceptron, also where x is an image."""
    outputs = outputs_of(likelihood)
    if is_flat(likelihood):
        return decoder(z_dim, (outputs,), width=width)
    return decoder(z_dim, x_shape, outputs, width)
