"""The objective of DIP-VAE: the bound, less a penalty on the covariance of the codes of all data."""

import math
from typing import Any

import torch
from torch import Tensor

from ..models.half import is_point_mass
from .per_datum import PerDatumELBO
from .reading import Latent, Program, Reading

__all__ = ["DIP", "covariance_of_codes"]

RATIO = {1: 10.0, 2: 1.0}  # the default of ``diagonal / off_diagonal`` by kind, as in disentanglement_lib


def covariance_of_codes(q: Any, kind: int) -> Tensor:
    """The covariance C of the codes of a batch, [z_dim, z_dim].

    For kind 1 it is ``Cov_x(mu(x))``, the covariance of the means of q(z | x) over the data. For kind 2 it is
    ``E_x Sigma(x) + Cov_x(mu(x))``. By the law of total covariance, that is the covariance of the mixture of all
    q(z | x) in the batch. Both moments are divided by the number of data B, not by B - 1, because the batch is this
    mixture itself and not a sample from which another one is estimated.

    Args:
        q: The distribution q(z | x), of batch shape [..., data] and event shape [z_dim].
        kind: 1 or 2.
    """
    mean = q.mean.reshape(-1, q.event_shape[-1])  # several draws per datum have the same q, which changes no average
    centred = mean - mean.mean(0)
    covariance = centred.mT @ centred / len(mean)
    return covariance if kind == 1 else covariance + _mean_covariance(q)


def _mean_covariance(q: Any) -> Tensor:
    """``E_x Sigma(x)``, the covariance of q(z | x) averaged over the data, [z_dim, z_dim]."""
    z_dim = q.event_shape[-1]
    full: Tensor | None = getattr(q, "covariance_matrix", None)
    if full is not None:
        return full.reshape(-1, z_dim, z_dim).mean(0)
    return q.variance.reshape(-1, z_dim).mean(0).diag()


class DIP(PerDatumELBO):
    """A training objective that pulls the covariance of the codes towards the identity, nats per datum.

    ``ELBO - off_diagonal sum_(i != j) C_ij**2 - diagonal sum_i (C_ii - 1)**2``, where C is the covariance of the codes
    of the batch (see ``covariance_of_codes``). With both weights 0 it is the bound, and otherwise it is below. The
    covariance of a batch of B data is a noisy estimate of that of all data, so the penalty is too large by an amount of
    the order 1 / B.

    Args:
        kind: 1 for DIP-VAE-I, where C is the covariance of the means of q(z | x) and its variances are left free; 2 for
            DIP-VAE-II, where C is the covariance of the draws of q(z | x).
        off_diagonal: The weight of the covariances, in nats, finite and not negative.
        diagonal: The weight of the variances, in nats, finite and not negative. By default it is ``10 off_diagonal``
            for kind 1 and ``off_diagonal`` for kind 2.
        num_particles, max_plate_nesting: As in Pyro.

    Raises:
        ValueError: If ``kind`` is not 1 or 2, or a weight is negative or not finite.

    References:
        Kumar, Sattigeri and Balakrishnan, Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations, 2018, eq. 6 (DIP-VAE-I) and eq. 7 (DIP-VAE-II). https://arxiv.org/abs/1711.00848
    """

    target = "dip"

    def __init__(
        self,
        kind: int = 1,
        off_diagonal: float = 10.0,
        diagonal: float | None = None,
        num_particles: int = 1,
        max_plate_nesting: int = 1,
    ) -> None:
        super().__init__(num_particles, max_plate_nesting)
        if kind not in RATIO:
            raise ValueError(f"kind must be 1 (DIP-VAE-I) or 2 (DIP-VAE-II), got {kind!r}")
        self.kind = int(kind)
        self.off_diagonal = _weight("off_diagonal", off_diagonal)
        self.diagonal = _weight("diagonal", RATIO[self.kind] * self.off_diagonal if diagonal is None else diagonal)
        self.caution = "the covariance of the codes is penalised"

    @property
    def formula(self) -> str:
        covariance = "Cov(E[z given x])" if self.kind == 1 else "Cov(z)"
        return (
            f"ELBO (less {self.off_diagonal:.4g} sum of C_ij**2 and {self.diagonal:.4g} sum of (C_ii - 1)**2, "
            f"C = {covariance})"
        )

    def objective(self, reading: Reading) -> Tensor:
        penalties = [self.penalty(covariance_of_codes(latent.q, self.kind)) for latent in reading.latents]
        return reading.log_weight.mean(0) - torch.stack(penalties).sum()

    def penalty(self, covariance: Tensor) -> Tensor:
        """``off_diagonal sum_(i != j) C_ij**2 + diagonal sum_i (C_ii - 1)**2`` of a covariance C, shape []."""
        variances = covariance.diagonal()
        off_diagonal = (covariance - variances.diag()).square().sum()
        return self.off_diagonal * off_diagonal + self.diagonal * (variances - 1).square().sum()

    def refuse(self, model: Program, guide: Program, reading: Reading) -> None:
        super().refuse(model, guide, reading)
        for latent in reading.latents:
            reason = _no_covariance(latent)
            if reason is not None:
                raise ValueError(f"DIP penalises the covariance of the codes over the data, but {reason}")


def _weight(name: str, value: float) -> float:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    return float(value)


def _no_covariance(latent: Latent) -> str | None:
    """The reason why the codes at a site have no covariance over the data, with a remedy, or None if they have one."""
    name, q = latent.name, latent.q
    if is_point_mass(q):
        return f"q({name} | x) is a point mass, which has no variance and no bound (use a guide such as MeanField)"
    if len(q.event_shape) != 1 or latent.dims:
        return f"site {name!r} is not one vector per datum (end its distributions in .to_event(1))"
    if latent.mask is not None:
        return f"site {name!r} is masked, so that some data would count and others not (take the mask away)"
    try:
        q.mean, q.variance  # noqa: B018 - a distribution may lack them
    except NotImplementedError:
        return f"q({name} | x), a {type(q).__name__}, has no mean or no variance (use a guide such as MeanField)"
    return None
