"""Decoders by the shape of x: perceptrons for vectors, convolutions for images [channels, height, width]."""

import math
from typing import Any

from torch import Tensor, nn

__all__ = ["WIDTH", "decoder", "halvings", "is_image", "one_tensor"]

WIDTH = 256  # units of a hidden layer, unless a width is given


def is_image(x_shape: tuple[int, ...]) -> bool:
    """Whether a datum is an image [channels, height, width] large enough to convolve."""
    return len(x_shape) == 3 and min(x_shape[1:]) >= 8


def halvings(x_shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Shapes [channels, height, width] from x down to a side below 8, halving: 28, 14, 7."""
    shapes = [(x_shape[0], x_shape[1], x_shape[2])]
    while min(shapes[-1][1:]) >= 8:
        shapes.append((min(16 * 2 ** (len(shapes) - 1), 256), shapes[-1][1] // 2, shapes[-1][2] // 2))
    return shapes


def one_tensor(name: str, made: Any, wanted: str, remedy: str) -> Tensor:
    """What a network returned, where it is one tensor.

    Args:
        name: What the network is called.
        made: What it returned.
        wanted: The shape that was wanted.
        remedy: What to do where it returned something else.

    Raises:
        ValueError: If it returned anything else than one tensor.
    """
    if isinstance(made, Tensor):
        return made
    several = f" of {len(made)}" if isinstance(made, tuple | list | dict) else ""
    raise ValueError(f"the {name} returned a {type(made).__name__}{several}, wanted one tensor {wanted} ({remedy})")


def decoder(z_dim: int, x_shape: tuple[int, ...], outputs: int = 1, width: int = WIDTH) -> nn.Sequential:
    """From [rows, z_dim] to [rows, outputs * channels, height, width], or to [rows, outputs * x_dim] for vectors.

    Args:
        z_dim: Size of a code.
        x_shape: Shape of one datum.
        outputs: Numbers that the likelihood wants for each coordinate of x.
        width: Units of a hidden layer of a perceptron; of the one layer before the convolutions for images.

    Example:
        >>> import torch
        >>> decoder(2, (3, 28, 20), outputs=2)(torch.zeros(5, 2)).shape
        torch.Size([5, 6, 28, 20])
    """
    if not is_image(x_shape):
        return nn.Sequential(
            nn.Linear(z_dim, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, outputs * math.prod(x_shape)),
        )
    *larger, smallest = halvings(x_shape)
    layers: list[nn.Module] = [
        nn.Linear(z_dim, width),
        nn.ReLU(),
        nn.Linear(width, math.prod(smallest)),
        nn.Unflatten(-1, smallest),
    ]
    channels = smallest[0]
    for index, (target, *sides) in enumerate(reversed(larger)):
        target = outputs * target if index == len(larger) - 1 else target
        padding = (sides[0] % 2, sides[1] % 2)
        layers += [nn.ReLU(), nn.ConvTranspose2d(channels, target, 4, 2, 1, output_padding=padding)]
        channels = target
    return nn.Sequential(*layers)
