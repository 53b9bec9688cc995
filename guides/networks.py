"""Encoders by the shape of x: perceptrons for vectors, convolutions for images [channels, height, width]."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..models.networks import WIDTH, halvings, is_image

__all__ = ["encoder", "width_of"]


def encoder(x_shape: tuple[int, ...]) -> nn.Sequential:
    """From [rows, *x_shape] to [rows, 256].

    Example:
        >>> import torch
        >>> encoder((3, 28, 20))(torch.zeros(5, 3, 28, 20)).shape
        torch.Size([5, 256])
    """
    if not is_image(x_shape):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(x_shape), WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
        )
    shapes = halvings(x_shape)
    layers: list[nn.Module] = []
    for (channels, *_), (target, *_) in pairwise(shapes):
        layers += [nn.Conv2d(channels, target, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(math.prod(shapes[-1]), WIDTH), nn.ReLU())


@torch.no_grad()
def width_of(network: nn.Module, x_shape: tuple[int, ...]) -> int:
    """Numbers a row that an encoder makes of x, found by trying one row in eval mode."""
    like: Tensor | None = next(network.parameters(), None)
    x = torch.zeros(1, *x_shape) if like is None else torch.zeros(1, *x_shape, dtype=like.dtype, device=like.device)
    training = network.training
    h = network.eval()(x)
    network.train(training)
    return h.flatten(1).shape[1]
