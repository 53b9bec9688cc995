"""Explicit regularisers: what is added to the log joint in training, in nats, and is silent in eval mode.

A penalty is called as ``penalty(model, x, z)`` and returns a log factor. With ``per_datum`` it stands inside the plate
of the data, as a tensor [batch] or as one number for each datum alike, and is summed over the whole set; without, it
stands outside and is counted once per data set, whatever the batch.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

if TYPE_CHECKING:
    from .latent_variable import LatentVariableModel

__all__ = ["MMD", "JacobianNorm", "WeightPrior", "imq", "spectrally_normalised"]


class WeightPrior(nn.Module):
    """``weight ~ Normal(0, scale)`` for the weights of chosen layers: L2 or Tikhonov, counted once per data set.

    In RAE's terms, ``lambda = sigma**2 / (N scale**2)`` beside a squared error per datum. Weight decay of an
    optimizer is another thing: it hits biases and the encoder, and in AdamW it is no prior at all.

    Args:
        scale: Standard deviation tau of the prior.
        layers: Parts of the model whose weight matrices and kernels are meant (biases and norms are not).

    Raises:
        ValueError: If ``scale`` is not positive and finite, or a layer has no weights.
    """

    per_datum = False

    def __init__(self, scale: float = 1.0, layers: tuple[str, ...] = ("decoder",)) -> None:
        super().__init__()
        if not 0.0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale!r}")
        if not layers:
            raise ValueError("no weights in (): wanted names of the model's parts, such as 'decoder'")
        self.scale, self.layers = scale, layers

    @property
    def formula(self) -> str:
        return f"{1 / (2 * self.scale**2):.4g} |{' and '.join(self.layers)} weights|**2"

    def weights(self, model: nn.Module) -> list[Tensor]:
        """The tensors that the prior is on."""
        chosen: list[Tensor] = []
        for layer in self.layers:
            part = dict(model.named_modules()).get(layer)
            found = [] if part is None else [weight for weight in part.parameters() if weight.ndim > 1]
            if not found:
                raise ValueError(f"no weights in {layer!r}: wanted names of the model's parts, such as 'decoder'")
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
    """``-weight * |J(z)|_F**2`` a datum, J the Jacobian of the decoder's mean at the code: RAE's gradient penalty.

    The gradient of the summed output is ``J^T 1``, and that of the summed square ``2 J^T y``: both are in use under
    this name, and both are something else.

    Args:
        weight: In nats; RAE's gamma beside a squared error is ``2 sigma**2 weight``.
        probes: Random directions per datum, unbiased (Hutchinson, 1989); every direction, exactly, unless given.

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
        """``|J(z)|_F**2`` for z [..., batch, z_dim]: shape [..., batch]."""
        directions = None
        if self.probes is not None:
            signs = torch.randint(2, (self.probes, *z.shape), device=z.device)
            directions = signs.to(z.dtype) * 2 - 1
        total = model.jacobian(z, directions).square().flatten(z.ndim).sum(-1).sum(0)
        return total if self.probes is None else total / self.probes

    def forward(self, model: "LatentVariableModel", x: Tensor, z: Tensor) -> Tensor:
        """``-weight * |J(z)|_F**2``, shape [..., batch]."""
        return -self.weight * self.squared_norm(model, z)

    def extra_repr(self) -> str:
        return f"weight={self.weight:.4g}, probes={'all' if self.probes is None else self.probes}"


def imq(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Inverse multiquadric kernel, ``C / (C + |a_i - b_j|**2)``, summed over seven widths C.

    From [..., n, d] and [..., m, d] to [..., n, m]; ``C = 2 d scale**2 {.1, .2, .5, 1, 2, 5, 10}``.
    """
    square = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
    widths = 2 * a.shape[-1] * scale**2 * torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]).to(square)
    return sum((width / (width + square) for width in widths.unbind()), torch.zeros_like(square))


class MMD(nn.Module):
    """``-weight * MMD**2(q(z), p(z))`` a datum, q(z) the aggregate of the batch's codes: the penalty of WAE.

    The unbiased estimate: pairs of a code with itself do not count, so that it is negative half the time when the two
    laws agree. With the diagonal kept it would be mostly bias.

    Args:
        weight: In nats; WAE's lambda beside a squared error is ``2 sigma**2 weight``.

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
        """Unbiased ``MMD**2`` of two samples [..., n, d]: shape [..., 1]."""
        n = codes.shape[-2]
        if n < 2:  # no pair, no estimate: a last batch of one datum
            return torch.zeros_like(codes[..., 0])

        def off_diagonal(kernel: Tensor) -> Tensor:
            return (kernel.sum((-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))

        within = off_diagonal(imq(codes, codes, scale)) + off_diagonal(imq(draws, draws, scale))
        return (within - 2 * imq(codes, draws, scale).mean((-2, -1))).unsqueeze(-1)

    def forward(self, model: "LatentVariableModel", x: Tensor, z: Tensor) -> Tensor:
        """``-weight * MMD**2``, shape [..., 1]: the same for each datum of the batch."""
        prior = model.prior()
        draws = prior.sample(z.shape[:-1])
        return -self.weight * self.estimate(z, draws, prior.variance.mean().sqrt())

    def extra_repr(self) -> str:
        return f"weight={self.weight:.4g}"


def spectrally_normalised(network: nn.Module) -> nn.Module:
    """Hold the largest singular value of each weight near 1, by power iteration: RAE-SN, changed in place.

    What is held is the norm of the *reshaped* matrix, from below. The operator norm of a 3x3 convolution can be half
    as large again, so this is no Lipschitz bound of the network.

    A network that is normalised like this cannot be pickled, because torch parametrises its layers by classes made on
    the spot; ``copy.deepcopy``, ``save`` and ``load`` work.

    References:
        Miyato et al., Spectral Normalization, 2018, algorithm 1. https://arxiv.org/abs/1802.05957
    """
    for layer in list(network.modules()):
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            spectral_norm(layer)
    return network
