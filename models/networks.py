"""Decoders by the shape of x: perceptrons for vectors, convolutions for images [channels, height, width]."""

import math

from torch import nn

__all__ = ["decoder", "halvings", "is_image"]

WIDTH = 256


def is_image(x_shape: tuple[int, ...]) -> bool:
    """Whether a datum is an image [channels, height, width] large enough to convolve."""
    return len(x_shape) == 3 and min(x_shape[1:]) >= 8


def halvings(x_shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Shapes [channels, height, width] from x down to a side below 8, halving: 28, 14, 7."""
    shapes = [(x_shape[0], x_shape[1], x_shape[2])]
    while min(shapes[-1][1:]) >= 8:
        shapes.append((min(16 * 2 ** (len(shapes) - 1), 256), shapes[-1][1] // 2, shapes[-1][2] // 2))
    return shapes


def decoder(z_dim: int, x_shape: tuple[int, ...], outputs: int = 1) -> nn.Sequential:
    """From [rows, z_dim] to [rows, outputs * channels, height, width], or to [rows, outputs * x_dim] for vectors.

    Example:
        >>> import torch
        >>> decoder(2, (3, 28, 20), outputs=2)(torch.zeros(5, 2)).shape
        torch.Size([5, 6, 28, 20])
    """
    if not is_image(x_shape):
        return nn.Sequential(
            nn.Linear(z_dim, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, outputs * math.prod(x_shape)),
        )
    *larger, smallest = halvings(x_shape)
    layers: list[nn.Module] = [
        nn.Linear(z_dim, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, math.prod(smallest)),
        nn.Unflatten(-1, smallest),
    ]
    channels = smallest[0]
    for index, (target, height, width) in enumerate(reversed(larger)):
        target = outputs * target if index == len(larger) - 1 else target
        layers += [nn.ReLU(), nn.ConvTranspose2d(channels, target, 4, 2, 1, output_padding=(height % 2, width % 2))]
        channels = target
    return nn.Sequential(*layers)
