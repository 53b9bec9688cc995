"""A prior p(z) that is a second VAE on the codes of the first, as in the two-stage VAE, and its objective."""

import math
from typing import TYPE_CHECKING, Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

if TYPE_CHECKING:
    from .latent_variable import LatentVariableModel

from .half import in_range
from .likelihoods import LearnedSigma
from .networks import WIDTH
from .priors import StandardNormal
from .rounding import least_scale

__all__ = ["SecondStage", "SecondStageBound", "SecondStageLaw"]

SCALAR = torch.Size()


class _Joined(nn.Module):
    """A perceptron with two hidden layers, whose last layer sees its input too: from [..., size] to [..., outputs].

    It starts as ``factor`` times its input, followed by zeros for the outputs beyond ``size``.
    """

    def __init__(self, size: int, outputs: int, width: int, factor: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.last = nn.Linear(width + size, outputs)
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.weight[:size, width:].fill_diagonal_(factor)
            self.last.bias.zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(torch.cat([self.hidden(inputs), inputs], -1))
        return outputs


class SecondStage(nn.Module):
    """``u ~ Normal(0, I)``, ``z ~ Normal(loc(u), gamma)``: a second VAE on the codes z, with u of the size of z.

    The second VAE has a guide ``q(u | z) = Normal(loc(z), scale(z))`` of its own, and gamma is learned. Its objective
    is the penalty ``SecondStageBound``, so the two always come together.

    In training mode ``forward`` returns ``first_stage``, the standard normal, so that the first VAE trains as if it
    were alone. In eval mode it returns the second VAE as p(z), a ``SecondStageLaw``, which counts in every bound and
    every sample of the pair. A prior that is frozen by ``requires_grad_(False)`` is in eval mode during training too,
    and is then the p(z) of the first VAE.

    In the paper, the second VAE is trained after the first. Here both are trained side by side. The optimum is the
    same: the objective of the first VAE does not depend on the second, and no gradient of the second reaches the first,
    so at the end the second VAE is left with the codes of the finished first VAE, which is the paper's second stage. On
    the way it follows codes that still move. To train one after the other, train once, freeze the guide, the decoder
    and the likelihood with ``requires_grad_(False)``, and train again.

    The second VAE starts as the standard normal, and its guide as the posterior: ``loc(u) = sqrt(1 - gamma**2) u``,
    ``loc(z) = sqrt(1 - gamma**2) z`` and ``scale(z) = gamma``. It is therefore no worse than ``first_stage`` before any
    training, and u is in use from the start.

    Args:
        z_dim: Size of a code.
        width: Units of a hidden layer of the two networks.
        gamma: The initial standard deviation of p(z | u), between 0 and 1. Near 1, u carries nothing, and codes of
            the covariance I leave it so, because linear networks have the same p(z) for every gamma. From 0.2 and from
            0.5, the second VAE of codes on a ring gained 0.24 nats on the standard normal, and from 0.9 nothing.

    Attributes:
        exact_density: False, because log p(z) in eval mode is an estimate. See ``SecondStageLaw``.
        encoder: From z [..., z_dim] to the location and the log scale of q(u | z), [..., 2 z_dim].
        decoder: From u [..., z_dim] to the location of p(z | u), [..., z_dim].
        likelihood: p(z | u) from its location, with the learned scale. ``gamma`` remains its initial value.

    Raises:
        ValueError: If ``gamma`` is not between 0 and 1.

    References:
        Dai and Wipf, Diagnosing and Enhancing VAE Models, 2019, section 4. https://arxiv.org/abs/1903.05789
    """

    exact_density = False
    formula = "second VAE: Normal(loc(u), gamma), u ~ Normal(0, 1), gamma learned"

    def __init__(self, z_dim: int, width: int = WIDTH, gamma: float = 0.5) -> None:
        super().__init__()
        if not 0.0 < gamma < 1.0:
            raise ValueError(f"gamma must be between 0 and 1, the standard deviation of the codes, got {gamma!r}")
        self.z_dim, self.width, self.gamma = z_dim, width, gamma
        self.first_stage = StandardNormal(z_dim)
        factor = math.sqrt(1 - gamma**2)
        self.encoder = _Joined(z_dim, 2 * z_dim, width, factor)
        nn.init.constant_(self.encoder.last.bias[z_dim:], math.log(gamma))
        self.decoder = _Joined(z_dim, z_dim, width, factor)
        self.likelihood = LearnedSigma(gamma)

    def u_given_z(self, z: Tensor) -> TorchDistributionMixin:
        """The guide q(u | z) for z [..., z_dim]."""
        loc, log_scale = self.encoder(z).chunk(2, -1)
        scale = log_scale.exp() if self.training else in_range(log_scale).exp().maximum(least_scale(loc))
        return dist.Normal(loc, scale).to_event(1)

    def z_given_u(self, u: Tensor) -> TorchDistributionMixin:
        """p(z | u) for u [..., z_dim]."""
        return self.likelihood(self.decoder(u)).to_event(1)

    def log_weight(self, z: Tensor) -> Tensor:
        """``log p(z, u) - log q(u | z)`` for one fresh draw of u from q(u | z) for each z [..., z_dim], [...].

        Its mean over u is the bound of log p(z), and its exponential has the mean p(z).
        """
        q = self.u_given_z(z)
        u = q.rsample()
        log_weight: Tensor = self.first_stage().log_prob(u) + self.z_given_u(u).log_prob(z) - q.log_prob(u)
        return log_weight

    def forward(self) -> TorchDistributionMixin:
        return self.first_stage() if self.training else SecondStageLaw(self)

    def extra_repr(self) -> str:
        return f"{self.z_dim}, width={self.width}, gamma={float(self.likelihood.scale.detach()):.4g}"


class SecondStageLaw(TorchDistribution):
    """The law of z in ``u ~ p(u)``, ``z ~ p(z | u)``. Its density is an integral over u, and is estimated.

    ``log_prob(z)`` is ``log w``, ``w = p(z, u) / q(u | z)``, for one fresh draw ``u ~ q(u | z)`` for each z. The draw
    makes it differ from call to call. The mean of w is ``int q(u | z) p(z, u) / q(u | z) du = p(z)``.

    Every lower bound of log p(x) therefore stays one. The weight of a draw z from q(z | x) with its u is

        ``p(x | z) w / q(z | x) = p(x, z, u) / (q(z | x) q(u | z))``,

    which is the importance weight of the model p(x, z, u) under the guide q(z | x) q(u | z). Its mean is p(x). By
    Jensen's inequality, the mean of its logarithm and the log of the mean of K such weights are below log p(x) in
    expectation (Burda et al., 2016, theorem 1). For the same reason, ``E log_prob(z) <= log p(z)``. A KL from p(z) that
    is computed from ``log_prob`` is therefore too large, by ``KL(q(u | z) || p(u | z))`` on average.

    Args:
        stage: The second VAE.
        batch_shape: The batch shape. The event shape is [z_dim].
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, stage: SecondStage, batch_shape: Any = SCALAR, *, validate_args: bool | None = None) -> None:
        self.stage = stage
        super().__init__(torch.Size(batch_shape), torch.Size((stage.z_dim,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "SecondStageLaw":
        return SecondStageLaw(self.stage, batch_shape, validate_args=False)

    def sample(self, sample_shape: Any = SCALAR) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            u = self.stage.first_stage().sample(shape[:-1])
            z: Tensor = self.stage.z_given_u(u).sample()
            return z

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        return self.stage.log_weight(value.expand(shape))  # each z of the whole shape has a u of its own


class SecondStageBound(nn.Module):
    """The objective of the second VAE: ``log p(z, u) - log q(u | z)`` per datum, for one draw of u.

    z is the draw of the first guide, held fixed (``z.detach()``). The term therefore moves only the second VAE, and the
    first VAE trains as it would without it. It is a penalty only in the sense that it is a term of the training
    objective. It does not depend on the KL weight.
    """

    per_datum = True
    formula = "(-ELBO of the second VAE, with z held fixed)"
    nature = (
        "two bounds side by side, that of log p(x) under p(z) = Normal(0, 1) and that of log p(z) under the second "
        "VAE, with separate gradients. The bound that is reported has the second VAE as p(z)"
    )

    def forward(self, model: "LatentVariableModel", x: Tensor, z: Tensor) -> Tensor:
        """The bound of log p(z) from one draw of u, [..., batch].

        Raises:
            ValueError: If the prior of the model is not a ``SecondStage``.
        """
        prior = model.prior
        if not isinstance(prior, SecondStage):
            raise ValueError(
                f"SecondStageBound trains the prior SecondStage, and the prior is {type(prior).__name__}: use "
                "prior=SecondStage, or take the penalty away"
            )
        if not prior.training:  # it is frozen, and is p(z) already
            return torch.zeros_like(z[..., 0])
        return prior.log_weight(z.detach())
