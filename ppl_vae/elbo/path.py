"""Gradients along the path of a draw, with the score of the guide taken out or given a weight of its own."""

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
    """What multiplies the gradients of a draw, [num_particles, *data] each.

    Attributes:
        model: Of ``d log p(x, z) / d theta``, z held.
        path: Of ``(d log w / d z) (d z / d phi)``.
        score: Of ``-d log q(z | x) / d phi``, z held; None for 0.
    """

    model: Tensor
    path: Tensor
    score: Tensor | None = None


class _PathELBO(PerDatumELBO):
    """A value from the log weights, and a gradient from three weights on the draws."""

    def bound(self, log_weight: Tensor) -> Tensor:
        """Of log weights [num_particles, *data]: [*data]."""
        raise NotImplementedError

    def weights(self, log_weight: Tensor) -> Weights:
        """Of log weights [num_particles, *data], which take no gradient."""
        raise NotImplementedError

    def objective(self, reading: Reading) -> Tensor:
        (latent,) = reading.latents
        log_weight = reading.log_weight.detach()
        model, path, score = self.weights(log_weight)
        held = latent.total(detach(latent.q).log_prob(latent.z))  # phi held: only the path is left
        surrogate = (model * (reading.likelihood + reading.prior - held)).sum(0)
        if latent.z.requires_grad and path is not model:
            surrogate = _reweighted(surrogate, reading, path / model.clamp_min(torch.finfo(model.dtype).tiny))
        if score is not None:
            surrogate = surrogate - (score * latent.total(latent.q.log_prob(latent.z.detach()))).sum(0)
        return surrogate + (self.bound(log_weight) - surrogate).detach()

    def refuse(self, model: Program, guide: Program, reading: Reading) -> None:
        super().refuse(model, guide, reading)
        names = [latent.name for latent in reading.latents]
        if len(names) != 1:
            raise ValueError(f"{type(self).__name__} follows the path of one latent, this pair draws {names}: use IWAE")
        if reading.latents[0].mask is not None:
            raise ValueError(f"{type(self).__name__} scores {names[0]!r}, and it is masked: use Trace_ELBO")
        z, q = reading.latents[0].z.detach(), reading.latents[0].q
        if is_validation_enabled() and detach(q).log_prob(z).requires_grad:
            raise ValueError(
                f"{type(self).__name__} holds the parameters of q({names[0]} | x), and some of them stand in functions "
                "where they are out of reach: use IWAE or Trace_ELBO"
            )


def _reweighted(surrogate: Tensor, reading: Reading, ratio: Tensor) -> Tensor:
    """``surrogate`` [*data], the path of z ``ratio`` [num_particles, *data] times; that of penalties once."""
    (latent,) = reading.latents
    ratio = ratio.reshape(ratio.shape + (1,) * latent.q.event_dim)
    if not isinstance(reading.penalty, Tensor) or not reading.penalty.requires_grad:
        latent.z.register_hook(lambda gradient: (gradient * ratio).reshape(gradient.shape))
        return surrogate
    (gradient,) = torch.autograd.grad(surrogate.sum(), latent.z, retain_graph=True)  # a hook would see theirs as well
    return surrogate + (((ratio - 1) * gradient).detach() * latent.z).sum() / surrogate.numel()


class StickingTheLanding(_PathELBO):
    """The ELBO; the guide's score, whose mean is 0, is left out of the gradient (Roeder et al., 2017, eq. 8).

    At the exact posterior the gradient for the guide is 0 for every draw. Inside an importance-weighted bound leaving
    it out is biased: there, use ``DReG``.
    """

    target = "elbo"
    formula = "ELBO (gradient without the score of the guide)"

    def bound(self, log_weight: Tensor) -> Tensor:
        return log_weight.mean(0)

    def weights(self, log_weight: Tensor) -> Weights:
        mean = torch.full_like(log_weight, 1 / len(log_weight))
        return Weights(mean, mean)


class _PathOfWeights(_PathELBO):
    """One that weighs draws."""

    weighs_draws = True

    def __init__(self, num_particles: int = 8, max_plate_nesting: int = 1) -> None:
        super().__init__(num_particles, max_plate_nesting)


class DReG(_PathOfWeights):
    """The importance-weighted bound with the doubly reparameterised gradient (Tucker et al., 2019, eq. 8).

    With normalised weights v_k, the path of draw k counts ``v_k**2``. K = 1 is ``StickingTheLanding``.
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
    """``beta ELBO + (1 - beta) IWAE`` (Rainforth et al., 2018, section 4), with STL and DReG as the gradients.

    Args:
        beta: Share of the ELBO, in [0, 1].
        num_particles: Draws K.
        max_plate_nesting: As in Pyro.
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
    """Two targets (Rainforth et al., 2018, section 4): all draws in one bound for the model, M bounds for the guide.

    The value is that of the model's bound, ``IWAE`` with all draws; the guide's gradient is that of ``MIWAE``.

    Args:
        num_particles: Draws in all.
        groups: Bounds M of the guide.
        max_plate_nesting: As in Pyro.
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
        return Weights(torch.maximum(model, 1e-12 * guide), guide, guide)  # a floor below rounding, to divide by
