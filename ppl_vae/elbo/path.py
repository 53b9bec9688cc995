"""Estimators whose gradient follows the path of a draw. They drop the score of the guide, or weigh it separately."""

from typing import NamedTuple

import torch
from pyro.distributions.util import detach
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from .importance import grouped, log_mean, whole_groups
from .per_datum import PerDatumELBO
from .reading import Program, Reading

__all__ = ["CIWAE", "PIWAE", "DReG", "StickingTheLanding", "Weights"]


class Weights(NamedTuple):
    """The weights of three gradients of each draw, [num_particles, *data] each.

    theta are the parameters of the model and phi those of the guide.

    Attributes:
        model: The weight of ``d log p(x, z) / d theta`` at fixed z.
        path: The weight of ``(d log w / d z) (d z / d phi)``.
        score: The weight of ``-d log q(z | x) / d phi`` at fixed z. None stands for 0.
    """

    model: Tensor
    path: Tensor
    score: Tensor | None = None


class _PathELBO(PerDatumELBO):
    """The base class of this module's estimators: ``bound`` gives the value, and ``weights`` gives the gradient."""

    def bound(self, log_weight: Tensor) -> Tensor:
        """The bound per datum, [*data], from log weights [num_particles, *data]."""
        raise NotImplementedError

    def weights(self, log_weight: Tensor) -> Weights:
        """The weights of the gradients, from log weights [num_particles, *data] without a graph."""
        raise NotImplementedError

    def objective(self, reading: Reading) -> Tensor:
        (latent,) = reading.latents
        log_weight = reading.log_weight.detach()
        model, path, score = self.weights(log_weight)
        log_q = latent.total(detach(latent.q).log_prob(latent.z))  # phi is detached, so the gradient follows z only
        surrogate = (model * (reading.likelihood + reading.prior - log_q)).sum(0)
        if latent.z.requires_grad and path is not model:
            ratio = path / model.clamp_min(torch.finfo(model.dtype).tiny)
            surrogate = _with_path_times(ratio, surrogate, reading)
        if score is not None:
            log_q_at_fixed_z = latent.total(latent.q.log_prob(latent.z.detach()))
            surrogate = surrogate - (score * log_q_at_fixed_z).sum(0)
        value = self.bound(log_weight)
        return surrogate + (value - surrogate).detach()

    def refuse(self, model: Program, guide: Program, reading: Reading) -> None:
        super().refuse(model, guide, reading)
        names = [latent.name for latent in reading.latents]
        if len(names) != 1:
            raise ValueError(f"{type(self).__name__} follows the path of one latent, this pair draws {names}: use IWAE")
        if reading.latents[0].mask is not None:
            raise ValueError(f"{type(self).__name__} scores site {names[0]!r}, which is masked: use Trace_ELBO")
        z, q = reading.latents[0].z.detach(), reading.latents[0].q
        if is_validation_enabled() and detach(q).log_prob(z).requires_grad:
            raise ValueError(
                f"{type(self).__name__} detaches the parameters of q({names[0]} | x), but some of them are inside "
                "functions and cannot be detached: use IWAE or Trace_ELBO"
            )


def _with_path_times(ratio: Tensor, surrogate: Tensor, reading: Reading) -> Tensor:
    """A surrogate [*data] whose gradient through z is multiplied by ``ratio`` [num_particles, *data].

    The gradient of the penalties through z is not multiplied.
    """
    (latent,) = reading.latents
    ratio = ratio.reshape(ratio.shape + (1,) * latent.q.event_dim)
    has_penalty = isinstance(reading.penalty, Tensor) and reading.penalty.requires_grad
    if not has_penalty:
        latent.z.register_hook(lambda gradient: (gradient * ratio).reshape(gradient.shape))
        return surrogate
    # A hook would multiply the gradient of the penalties too. A term that is linear in z adds the difference instead.
    (gradient,) = torch.autograd.grad(surrogate.sum(), latent.z, retain_graph=True)
    difference = ((ratio - 1) * gradient).detach()
    return surrogate + (difference * latent.z).sum() / surrogate.numel()


class StickingTheLanding(_PathELBO):
    """The ELBO with a gradient that leaves out the score of the guide, a term of mean 0 (Roeder et al., 2017, eq. 8).

    At the exact posterior the gradient for the guide is 0 for every draw. In an importance-weighted bound a gradient
    without the score is biased. Use ``DReG`` there.
    """

    target = "elbo"
    formula = "ELBO (gradient without the score of the guide)"

    def bound(self, log_weight: Tensor) -> Tensor:
        return log_weight.mean(0)

    def weights(self, log_weight: Tensor) -> Weights:
        mean = torch.full_like(log_weight, 1 / len(log_weight))
        return Weights(mean, mean)


class _PathOfWeights(_PathELBO):
    """The base class of this module's estimators that weigh their draws."""

    weighs_draws = True

    def __init__(self, num_particles: int = 8, max_plate_nesting: int = 1) -> None:
        super().__init__(num_particles, max_plate_nesting)


class DReG(_PathOfWeights):
    """The importance-weighted bound with the doubly reparameterised gradient (Tucker et al., 2019, eq. 8).

    The gradient along the path of draw k is multiplied by ``v_k**2``, where v_k are the normalised weights. For K = 1
    it is ``StickingTheLanding``.
    """

    target = "iwae"

    @property
    def formula(self) -> str:
        return f"log mean_k w_k (K = {self.num_particles}, doubly reparameterised)"

    def bound(self, log_weight: Tensor) -> Tensor:
        return log_mean(log_weight)

    def weights(self, log_weight: Tensor) -> Weights:
        v = log_weight.softmax(0)
        return Weights(v, v.square())


class CIWAE(_PathOfWeights):
    """``beta ELBO + (1 - beta) IWAE`` (Rainforth et al., 2018, section 4), with the gradients of STL and DReG.

    Args:
        beta: The share of the ELBO, in [0, 1].
        num_particles: The number K of draws per datum.
        max_plate_nesting: As in Pyro.

    Raises:
        ValueError: If ``beta`` is not in [0, 1].
    """

    target = "ciwae"

    def __init__(self, beta: float = 0.5, num_particles: int = 8, max_plate_nesting: int = 1) -> None:
        super().__init__(num_particles, max_plate_nesting)
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta is a share in [0, 1], got {beta!r}")
        self.beta = beta

    @property
    def formula(self) -> str:
        return f"({self.beta:.4g} ELBO + {1 - self.beta:.4g} log mean_k w_k) (K = {self.num_particles})"

    def bound(self, log_weight: Tensor) -> Tensor:
        return self.beta * log_weight.mean(0) + (1 - self.beta) * log_mean(log_weight)

    def weights(self, log_weight: Tensor) -> Weights:
        v, even = log_weight.softmax(0), self.beta / len(log_weight)
        return Weights(even + (1 - self.beta) * v, even + (1 - self.beta) * v.square())


class PIWAE(_PathOfWeights):
    """One bound over all draws for the model, and M bounds for the guide (Rainforth et al., 2018, section 4).

    The value is that of ``IWAE`` with all draws. The gradient for the guide is that of ``MIWAE``.

    Args:
        num_particles: The number K of draws per datum, over all groups.
        groups: The number M of bounds for the guide. It divides K.
        max_plate_nesting: As in Pyro.

    Raises:
        ValueError: If ``groups`` is not a whole number of at least 1 that divides ``num_particles``.
    """

    target = "piwae"

    def __init__(self, num_particles: int = 16, groups: int = 4, max_plate_nesting: int = 1) -> None:
        super().__init__(num_particles, max_plate_nesting)
        self.groups = whole_groups(groups, self.num_particles)

    @property
    def formula(self) -> str:
        return f"log mean_k w_k (K = {self.num_particles}, {self.groups} groups of draws for the guide)"

    def bound(self, log_weight: Tensor) -> Tensor:
        return log_mean(log_weight)

    def weights(self, log_weight: Tensor) -> Weights:
        guide = grouped(log_weight, self.groups).softmax(0).flatten(0, 1) / self.groups
        model = log_weight.softmax(0)
        model = torch.maximum(model, 1e-12 * guide)  # ``objective`` divides by this, and the change is below rounding
        return Weights(model, guide, guide)
