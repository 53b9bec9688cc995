"""Encoders: by default a perceptron for vectors and convolutions for images, and convolutions for sequences."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..models.networks import WIDTH, OneHot, halvings, is_image, one_tensor

__all__ = ["OneHot", "encoded", "encoder", "encoder_of", "published_encoder", "sequence_encoder", "width_of"]


def encoder(x_shape: tuple[int, ...], width: int = WIDTH) -> nn.Sequential:
    """The default encoder for data of a shape, from [rows, *x_shape] to [rows, width].

    Args:
        x_shape: Shape of one datum.
        width: Units of a hidden layer of a perceptron. For images, units of the layer after the convolutions.

    Example:
        >>> import torch
        >>> encoder((3, 28, 20))(torch.zeros(5, 3, 28, 20)).shape
        torch.Size([5, 256])
    """
    if not is_image(x_shape):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(x_shape), width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
    shapes = halvings(x_shape)
    layers: list[nn.Module] = []
    for (channels, *_), (target, *_) in pairwise(shapes):
        layers += [nn.Conv2d(channels, target, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(math.prod(shapes[-1]), width), nn.ReLU())


def encoder_of(
    likelihood: nn.Module, x_shape: tuple[int, ...], make: Callable[[tuple[int, ...]], nn.Module]
) -> nn.Module:
    """An encoder that begins with the layer that a likelihood declares for x, or with none.

    Args:
        likelihood: The likelihood. It may have ``encoder_input``; see ``models.likelihoods``.
        x_shape: Shape of one datum.
        make: A function from the shape of the encoder's input to an encoder, such as ``encoder``.
    """
    encoder_input: Any = getattr(likelihood, "encoder_input", None)
    if encoder_input is None:
        return make(x_shape)
    first, shape = encoder_input(x_shape)
    return nn.Sequential(first, make(shape))


def published_encoder(x_shape: tuple[int, ...]) -> nn.Sequential:
    """The encoder of the RAE paper for small images: convolutions with 128, 256, 512 and 1024 channels.

    References:
        Ghosh et al., From Variational to Deterministic Autoencoders, 2020, appendix.
    """
    layers: list[nn.Module] = []
    for channels, target in pairwise((x_shape[0], 128, 256, 512, 1024)):
        layers += [nn.Conv2d(channels, target, 4, 2, 1), nn.BatchNorm2d(target), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def sequence_encoder(levels: int, length: int, width: int = WIDTH) -> nn.Sequential:
    """An encoder for sequences of categories, from codes [rows, length] to [rows, width].

    Two convolutions run over the one-hot codes, and the second halves the length.

    Args:
        levels: The number of categories.
        length: The number of places of a sequence.
        width: Channels of the convolutions, and units of the layer after them.

    Example:
        >>> import torch
        >>> sequence_encoder(levels=4, length=7)(torch.zeros(5, 7)).shape
        torch.Size([5, 256])
    """
    return nn.Sequential(
        OneHot(levels),
        nn.Conv1d(levels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(width, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * ((length + 1) // 2), width),
        nn.ReLU(),
    )


HEADS = (
    "the guide has its own heads for loc and log scale: remove the heads from the encoder, or pass them as "
    "guide=functools.partial(MeanField, heads=[to_loc, to_log_scale])"
)
RECURRENT = (
    "a recurrent layer returns outputs and state: wrap it in a module that returns one of them, such as the last state"
)


def encoded(network: nn.Module, x: Tensor) -> Tensor:
    """The output of an encoder, [rows, width], which is the input of the heads.

    Raises:
        ValueError: If the encoder does not return one tensor with one row per datum.
    """
    recurrent = isinstance(list(network.modules())[-1], nn.RNNBase)
    h = one_tensor("encoder", network(x), "[rows, width]", RECURRENT if recurrent else HEADS)
    if h.ndim < 2 or len(h) != len(x):
        raise ValueError(f"the encoder turned x {list(x.shape)} into {list(h.shape)}, wanted one row per datum")
    return h.flatten(1)


@torch.no_grad()
def width_of(network: nn.Module, x_shape: tuple[int, ...]) -> int:
    """The number of outputs of an encoder per datum, found by running it on two rows in eval mode."""
    like: Tensor | None = next(network.parameters(), None)
    x = torch.zeros(2, *x_shape) if like is None else torch.zeros(2, *x_shape, dtype=like.dtype, device=like.device)
    modes = [(module, module.training) for module in network.modules()]
    try:
        return encoded(network.eval(), x).shape[1]
    finally:
        for module, mode in modes:
            module.training = mode
