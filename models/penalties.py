"""Penalties: terms, in nats, that are added to the log joint in training and not in eval mode.

A penalty is called as ``penalty(model, x, z)`` and returns a log factor. If its ``per_datum`` is True, the factor
stands inside the plate of the data and is summed over the whole set. The factor is then a tensor [..., batch], or
[..., 1] where it is the same for every datum. If its ``per_datum`` is False, the factor stands outside the plate and
counts once per data set, for any batch size. A penalty may have a text ``nature``, which says in the receipt what the
objective is with this term, and a method ``attach(guide)``, which ``pair`` calls with the guide of the pair.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

if TYPE_CHECKING:
    from .latent_variable import LatentVariableModel

from .half import positive

__all__ = ["MMD", "JacobianNorm", "WeightPrior", "imq", "matrices", "spectrally_normalised"]

OF_GUIDE = "guide."  # the beginning of the name of a layer that is a part of the guide
NO_WEIGHTS = "wanted names of the model's parts, such as 'decoder', or of the guide's, such as 'guide.heads'"


def matrices(part: nn.Module) -> list[Tensor]:
    """The weight matrices and kernels of a module, without biases and norms."""
    return [weight for weight in part.parameters() if weight.ndim > 1]


class WeightPrior(nn.Module):
    """``weight ~ Normal(0, scale)`` on the weights of chosen layers: L2 or Tikhonov, counted once per data set.

    Its gradient is ``-weight / scale**2`` in nats per data set. In a loss per datum, this is the gradient that an
    optimizer adds as ``weight_decay = 1 / (N scale**2)`` for N data. In the notation of RAE,
    ``lambda = sigma**2 / (N scale**2)`` beside a squared error per datum. The weight decay of an optimizer is something
    else: it also acts on biases and on the encoder, and in AdamW it is not a prior.

    The weights of the guide are no variables of the model p(x, z). On them the same term is a penalty on the inference
    network, and not a prior: the maximum of the objective is no MAP estimate of these weights, and without the penalty
    any weights of the guide give a lower bound of log p(x).

    Args:
        scale: The standard deviation of the prior.
        layers: Names of the parts whose weight matrices and kernels have this prior. Biases and norms do not have it.
            ``"decoder"`` is a part of the model, and ``"guide.heads"`` is the part ``heads`` of the guide.

    Raises:
        ValueError: If ``scale`` is not positive and finite, or a layer has no weights.
    """

    per_datum = False

    def __init__(self, scale: float = 1.0, layers: tuple[str, ...] = ("decoder",)) -> None:
        super().__init__()
        positive("scale", scale)
        if not layers:
            raise ValueError(f"no weights in (): {NO_WEIGHTS}")
        self.scale, self.layers = scale, layers
        self.of_guide: tuple[nn.Module, ...] = ()  # a tuple, so that the guide is no part of the model

    @property
    def formula(self) -> str:
        return f"{1 / (2 * self.scale**2):.4g} |{' and '.join(self.layers)} weights|**2"

    @property
    def nature(self) -> str:
        """What the objective is with a penalty on the guide. It is empty for a prior on the model alone."""
        inside = [layer for layer in self.layers if layer.startswith(OF_GUIDE)]
        if not inside:
            return ""
        text = f"the bound of log p(x) minus an L2 penalty on {' and '.join(inside)}, which is no prior of p(x, z)"
        others = [layer for layer in self.layers if layer not in inside]
        return f"{text}, plus the log prior of the weights of {' and '.join(others)}" if others else text

    def attach(self, guide: nn.Module) -> None:
        """Take the layers whose names begin with ``"guide."`` from this guide. ``pair`` calls it.

        Raises:
            ValueError: If the penalty has such layers and belongs to the guide of another pair already.
        """
        if not any(layer.startswith(OF_GUIDE) for layer in self.layers):
            return
        if self.of_guide and self.of_guide[0] is not guide:
            raise ValueError(f"WeightPrior on {self.layers} belongs to another pair: make one for each pair")
        self.of_guide = (guide,)

    def weights(self, model: nn.Module) -> list[Tensor]:
        """The weights of the chosen layers, which have this prior.

        Raises:
            ValueError: If a layer does not exist or has no weights.
        """
        parts = dict(model.named_modules())
        for guide in self.of_guide:
            parts |= {OF_GUIDE + name: part for name, part in guide.named_modules() if name}
        chosen: list[Tensor] = []
        for layer in self.layers:
            found = matrices(parts[layer]) if layer in parts else []
            if not found:
                raise ValueError(f"no weights in {layer!r}: {NO_WEIGHTS}")
            chosen += found
        return chosen

    def forward(self, model: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        """``log p(weights)``, shape []."""
        weights = self.weights(model)
        square = torch.stack([weight.square().sum() for weight in weights]).sum()
        count = sum(weight.numel() for weight in weights)
        return -square / (2 * self.scale**2) - count * math.log(self.scale * math.sqrt(2 * math.pi))

    def extra_repr(self) -> str:
        return f"scale={self.scale:.4g}, layers={self.layers}"


class JacobianNorm(nn.Module):
    """The gradient penalty of RAE, ``-weight * |J(z)|_F**2`` per datum.

    J is the Jacobian of the decoder's mean at the code. Two other terms are used under the same name: the gradient of
    the summed output, ``J^T 1``, and the gradient of the summed square, ``2 J^T y``. They are not this penalty.

    Args:
        weight: The factor, in nats. RAE's gamma beside a squared error is ``2 sigma**2 weight``.
        probes: The number of random directions per datum, for an unbiased estimate of the norm (Hutchinson, 1989). By
            default the norm is exact, over all directions.

    Raises:
        ValueError: If ``weight`` is negative or not finite, or ``probes`` is below 1.

    References:
        Ghosh et al., From Variational to Deterministic Autoencoders, 2020, eq. 9. https://arxiv.org/abs/1903.12436
    """

    per_datum = True

    def __init__(self, weight: float = 1.0, probes: int | None = None) -> None:
        super().__init__()
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"weight must be finite and not negative, got {weight!r}")
        if probes is not None and probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes!r}")
        self.weight, self.probes = weight, probes

    @property
    def formula(self) -> str:
        return f"{self.weight:.4g} |J(z)|_F**2"

    def squared_norm(self, model: "LatentVariableModel", z: Tensor) -> Tensor:
        """The squared norm ``|J(z)|_F**2``, [..., batch], for z [..., batch, z_dim]."""
        directions = None
        if self.probes is not None:
            signs = torch.randint(2, (self.probes, *z.shape), device=z.device)
            directions = signs.to(z.dtype) * 2 - 1
        products = model.jacobian(z, directions)  # [directions, ..., batch, *x_shape]
        total = products.square().flatten(z.ndim).sum(-1).sum(0)
        return total if self.probes is None else total / self.probes

    def forward(self, model: "LatentVariableModel", x: Tensor, z: Tensor) -> Tensor:
        """``-weight * |J(z)|_F**2``, shape [..., batch]."""
        return -self.weight * self.squared_norm(model, z)

    def extra_repr(self) -> str:
        return f"weight={self.weight:.4g}, probes={'all' if self.probes is None else self.probes}"


def imq(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """The inverse multiquadric kernel ``C / (C + |a_i - b_j|**2)``, summed over seven widths C.

    The widths are ``C = 2 d scale**2 {.1, .2, .5, 1, 2, 5, 10}``.

    Args:
        a: Points [..., n, d].
        b: Points [..., m, d].
        scale: The scale of the points, shape [].

    Returns:
        The kernel of each pair of points, [..., n, m].
    """
    square = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
    widths = 2 * a.shape[-1] * scale**2 * torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]).to(square)
    return sum((width / (width + square) for width in widths.unbind()), torch.zeros_like(square))


class MMD(nn.Module):
    """The penalty of WAE, ``-weight * MMD**2(q(z), p(z))`` per datum. The codes of the batch are the draws from q(z).

    ``MMD**2`` is estimated without bias: the pairs of a code with itself are left out. The estimate is therefore
    negative about half the time when the two distributions agree. With these pairs, the estimate would be mostly bias.

    Args:
        weight: The factor, in nats. WAE's lambda beside a squared error is ``2 sigma**2 weight``.

    Raises:
        ValueError: If ``weight`` is negative or not finite.

    References:
        Tolstikhin et al., Wasserstein Auto-Encoders, 2018, algorithm 2. https://arxiv.org/abs/1711.01558
    """

    per_datum = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"weight must be finite and not negative, got {weight!r}")
        self.weight = weight

    @property
    def formula(self) -> str:
        return f"{self.weight:.4g} MMD**2(q(z), p(z))"

    @staticmethod
    def estimate(codes: Tensor, draws: Tensor, scale: Tensor) -> Tensor:
        """The unbiased estimate of ``MMD**2``, [..., 1], from two samples [..., n, d]."""
        n = codes.shape[-2]
        if n < 2:  # a last batch of one datum has no pairs
            return torch.zeros_like(codes[..., 0])

        def mean_off_diagonal(kernel: Tensor) -> Tensor:
            diagonal = kernel.diagonal(dim1=-2, dim2=-1).sum(-1)
            return (kernel.sum((-2, -1)) - diagonal) / (n * (n - 1))

        within = mean_off_diagonal(imq(codes, codes, scale)) + mean_off_diagonal(imq(draws, draws, scale))
        between = imq(codes, draws, scale).mean((-2, -1))
        return (within - 2 * between).unsqueeze(-1)

    def forward(self, model: "LatentVariableModel", x: Tensor, z: Tensor) -> Tensor:
        """``-weight * MMD**2``, shape [..., 1], which is the same for each datum of the batch."""
        prior = model.prior()
        draws = prior.sample(z.shape[:-1])
        return -self.weight * self.estimate(z, draws, prior.variance.mean().sqrt())

    def extra_repr(self) -> str:
        return f"weight={self.weight:.4g}"


def spectrally_normalised(network: nn.Module) -> nn.Module:
    """Divide each weight of a network by its largest singular value in place, as RAE-SN does, and return the network.

    The singular value is estimated by power iteration, from below, for the weight reshaped to a matrix. The operator
    norm of a 3x3 convolution can be 1.5 times as large. Therefore this does not bound the Lipschitz constant.

    A network that is normalised like this cannot be pickled, because torch makes a class for each parametrised layer at
    run time. ``copy.deepcopy``, ``save`` and ``load`` work.

    References:
        Miyato et al., Spectral Normalization, 2018, algorithm 1. https://arxiv.org/abs/1802.05957
    """
    for layer in list(network.modules()):
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            spectral_norm(layer)
    return network
