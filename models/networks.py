"""Decoders: by default a perceptron for vectors and convolutions for images, and a recurrent one for sequences."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .half import whole

__all__ = [
    "WIDTH",
    "OneHot",
    "SequenceDecoder",
    "decoder",
    "halvings",
    "is_image",
    "one_tensor",
    "published_decoder",
    "sequence_decoder",
]

WIDTH = 256  # units of a hidden layer, unless a width is given


def is_image(x_shape: tuple[int, ...]) -> bool:
    """Whether a datum is an image [channels, height, width] large enough to convolve."""
    return len(x_shape) == 3 and min(x_shape[1:]) >= 8


def halvings(x_shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """The shapes [channels, height, width] from x down to a side below 8. Each halves the sides: 28, 14, 7."""
    shapes = [(x_shape[0], x_shape[1], x_shape[2])]
    while min(shapes[-1][1:]) >= 8:
        channels = min(16 * 2 ** (len(shapes) - 1), 256)
        _, height, width = shapes[-1]
        shapes.append((channels, height // 2, width // 2))
    return shapes


def one_tensor(name: str, made: Any, wanted: str, remedy: str) -> Tensor:
    """Check that a network returned one tensor, and return it.

    Args:
        name: The name of the network in the message.
        made: The value that it returned.
        wanted: The expected shape, for the message.
        remedy: How to change the network, for the message.

    Raises:
        ValueError: If the value is anything else than one tensor.
    """
    if isinstance(made, Tensor):
        return made
    several = f" of {len(made)}" if isinstance(made, tuple | list | dict) else ""
    raise ValueError(f"the {name} returned a {type(made).__name__}{several}, wanted one tensor {wanted} ({remedy})")


class OneHot(nn.Module):
    """The first layer of an encoder of categories, from codes [rows, *x_shape] to [rows, levels, *x_shape].

    A category becomes ``levels`` numbers, of which the one at its code is 1 and the others are 0. The numbers have the
    dtype of the codes.

    Args:
        levels: The number of categories.

    Raises:
        ValueError: If ``levels`` is not a whole number of at least 2.

    Example:
        >>> import torch
        >>> OneHot(levels=3)(torch.tensor([[2.0, 0.0]]))
        tensor([[[0., 1.],
                 [0., 0.],
                 [1., 0.]]])
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = whole("levels", levels, least=2)

    def forward(self, x: Tensor) -> Tensor:
        codes = torch.arange(self.levels, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        return (x.unsqueeze(1) == codes).to(x)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


def decoder(z_dim: int, x_shape: tuple[int, ...], outputs: int = 1, width: int = WIDTH) -> nn.Sequential:
    """The default decoder for data of a shape.

    It maps [rows, z_dim] to [rows, outputs * x_dim] for vectors, and to [rows, outputs * channels, height, width] for
    images.

    Args:
        z_dim: Size of a code.
        x_shape: Shape of one datum.
        outputs: The number of decoder outputs that the likelihood wants per coordinate of x.
        width: Units of a hidden layer of a perceptron. For images, units of the layer before the convolutions.

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


def published_decoder(z_dim: int, x_shape: tuple[int, ...], outputs: int = 1) -> nn.Sequential:
    """The decoder of the RAE paper for small images: 1024 channels at a quarter of the sides, then 512 and 256.

    Args:
        z_dim, x_shape, outputs: As in ``decoder``. The sides of an image must be multiples of 4.

    References:
        Ghosh et al., From Variational to Deterministic Autoencoders, 2020, appendix.
    """
    channels, height, width = x_shape
    smallest = (1024, height // 4, width // 4)
    return nn.Sequential(
        nn.Linear(z_dim, math.prod(smallest)),
        nn.Unflatten(-1, smallest),
        *(nn.BatchNorm2d(1024), nn.ReLU(), nn.ConvTranspose2d(1024, 512, 4, 2, 1)),
        *(nn.BatchNorm2d(512), nn.ReLU(), nn.ConvTranspose2d(512, 256, 4, 2, 1)),
        *(nn.BatchNorm2d(256), nn.ReLU(), nn.Conv2d(256, outputs * channels, 5, 1, 2)),
    )


class SequenceDecoder(nn.Module):
    """The recurrent decoder that ``sequence_decoder`` makes."""

    def __init__(self, z_dim: int, length: int, outputs: int, width: int) -> None:
        super().__init__()
        self.inputs = nn.Sequential(
            nn.Linear(z_dim, width),
            nn.ReLU(),
            nn.Linear(width, length * width),
            nn.ReLU(),
            nn.Unflatten(-1, (length, width)),
        )
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.last = nn.Linear(2 * width, outputs)

    def forward(self, z: Tensor) -> Tensor:
        inputs = self.inputs(z)
        states, _ = self.recurrent(inputs)
        return self.last(torch.cat([states, inputs], -1)).mT


def sequence_decoder(z_dim: int, length: int, outputs: int, width: int = WIDTH) -> SequenceDecoder:
    """A recurrent decoder for sequences, from [rows, z_dim] to [rows, outputs, length].

    A perceptron turns z into an input for each place of the sequence. A gated recurrent unit runs over these inputs,
    and a linear layer reads its state and the input of each place. It does not see x, as in the Grammar VAE, where each
    place has the same input z. With an input for each place, it learns in far fewer steps.

    Args:
        z_dim: Size of a code.
        length: The number of places of a sequence.
        outputs: The number of decoder outputs that the likelihood wants per place, for categories their number.
        width: Units of each hidden layer.

    References:
        Kusner, Paige and Hernandez-Lobato, Grammar Variational Autoencoder, 2017. https://arxiv.org/abs/1703.01925

    Example:
        >>> import torch
        >>> sequence_decoder(2, length=7, outputs=4)(torch.zeros(5, 2)).shape
        torch.Size([5, 4, 7])
    """
    return SequenceDecoder(z_dim, length, outputs, width)
