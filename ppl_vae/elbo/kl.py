"""Bounds with a separate Kullback-Leibler term: in closed form, weighted, or with a floor."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from .per_datum import PerDatumELBO
from .reading import Latent, Program, Reading, is_weighted

__all__ = ["BetaELBO", "FreeBits", "MeanFieldELBO", "closed_form_kl", "kl_per_unit"]


def closed_form_kl(q: Any, prior: Any) -> Tensor | None:
    """KL(q || p) in nats, with the batch shape of both distributions, or None where torch has no closed form."""
    try:
        return kl_divergence(q, prior)
    except NotImplementedError:
        return None


def kl_per_unit(q: Any, prior: Any) -> Tensor | None:
    """The KL of each coordinate of z in nats, [..., z_dim], in closed form.

    It is None where the coordinates of q or of the prior depend on each other, or torch has no closed form.
    """
    if not isinstance(q, Independent) or not isinstance(prior, Independent):
        return None
    return closed_form_kl(q.base_dist, prior.base_dist)


class MeanFieldELBO(PerDatumELBO):
    """``E_q log p(x | z) - KL(q || p)``, with the KL in closed form where torch has one, and sampled elsewhere.

    ``kl_terms`` says which of the two is used. The closed form removes only the noise of the KL. At the exact posterior
    this estimator therefore has variance, and ``Trace_ELBO`` has none. With several latents the KL is sampled, because
    the KLs of the sites do not add up for every hierarchy. Pyro's ``TraceMeanField_ELBO`` adds them up.

    References:
        Kingma and Welling, Auto-Encoding Variational Bayes, 2014, eq. 7 (estimator B).
    """

    target = "elbo"
    formula = "ELBO (KL in closed form where torch knows one)"

    def objective(self, reading: Reading) -> Tensor:
        return reading.likelihood.mean(0) - self._kl(reading)

    def _kl(self, reading: Reading) -> Tensor:
        """The KL per datum, [*data]."""
        kl = closed_form_kl(reading.latents[0].q, reading.latents[0].prior) if len(reading.latents) == 1 else None
        if kl is None:
            return (reading.guide - reading.prior).mean(0)
        return reading.latents[0].total(kl).expand(reading.guide.shape).mean(0)

    def kl_terms(self, model: Program, guide: Program, *args: object, **kwargs: object) -> dict[str, str]:
        """How the KL of each latent is computed, ``"closed form"`` or ``"sampled"``, by the name of its site."""
        latents = self.read(model, guide, *args, **kwargs).latents
        is_closed = len(latents) == 1 and closed_form_kl(latents[0].q, latents[0].prior) is not None
        return {latent.name: "closed form" if is_closed else "sampled" for latent in latents}


class BetaELBO(PerDatumELBO):
    """``E_q[log p(x | z) - beta (log q - log p)]`` (Higgins et al., 2017, eq. 4). For beta below 1 it is not a bound.

    It has the same effect as ``KLWeight(constant(beta))`` in the pair. If the pair also has a KL weight, the two are
    multiplied.

    Args:
        beta: The weight of the KL, finite and not negative.
        num_particles, max_plate_nesting: As in Pyro.

    Raises:
        ValueError: If ``beta`` is negative or not finite.
    """

    target = "beta"

    def __init__(self, beta: float = 4.0, num_particles: int = 1, max_plate_nesting: int = 1) -> None:
        super().__init__(num_particles, max_plate_nesting)
        if not 0.0 <= beta < math.inf:
            raise ValueError(f"beta must be finite and not negative, got {beta!r}")
        self.beta = beta
        self.caution = "" if beta == 1.0 else f"the estimator multiplies its KL by {beta:.4g}"

    @property
    def formula(self) -> str:
        return f"ELBO (KL times {self.beta:.4g})"

    def objective(self, reading: Reading) -> Tensor:
        return (reading.likelihood + self.beta * (reading.prior - reading.guide)).mean(0)


class FreeBits(PerDatumELBO):
    """A training objective with free bits: ``E_q log p(x | z) - sum_j max(floor, KL_j)``.

    KL_j is the KL of coordinate j, averaged over the batch. A coordinate below the floor gets no gradient from its KL,
    so it is not driven to the prior. The objective is below the bound. The KL is in closed form where torch has one,
    and sampled elsewhere.

    Args:
        floor: The lowest KL that counts, in nats per coordinate, finite and not negative.
        num_particles, max_plate_nesting: As in Pyro.

    Raises:
        ValueError: If ``floor`` is negative or not finite.

    References:
        Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016, eq. 15.
        https://arxiv.org/abs/1606.04934
    """

    target = "free_bits"

    def __init__(self, floor: float = 0.1, num_particles: int = 1, max_plate_nesting: int = 1) -> None:
        super().__init__(num_particles, max_plate_nesting)
        if not 0.0 <= floor < math.inf:
            raise ValueError(f"floor is in nats per coordinate, finite and not negative, got {floor!r}")
        self.floor = floor
        self.caution = f"the KL of a coordinate counts at least {floor:.4g} nats"

    @property
    def formula(self) -> str:
        return f"ELBO (KL of a coordinate at least {self.floor:.4g})"

    def objective(self, reading: Reading) -> Tensor:
        floored = [_per_coordinate(latent).clamp_min(self.floor).sum() for latent in reading.latents]
        return reading.likelihood.mean(0) - torch.stack(floored).sum()

    def refuse(self, model: Program, guide: Program, reading: Reading) -> None:
        super().refuse(model, guide, reading)
        for latent in reading.latents:
            independent = isinstance(latent.q, Independent) and isinstance(latent.prior, Independent)
            factorises = independent and not latent.dims
            if not factorises or latent.mask is not None or is_weighted(latent.weight):
                raise ValueError(
                    f"FreeBits has a floor for the KL of each coordinate, but q or p of {latent.name!r} does not "
                    "factorise, is masked or is weighted: use independent coordinates and leave the KL weight at 1"
                )


def _per_coordinate(latent: Latent) -> Tensor:
    """The KL of each coordinate, [*event_shape], averaged over draws and data."""
    kl = kl_per_unit(latent.q, latent.prior)
    if kl is None:
        kl = latent.q.base_dist.log_prob(latent.z) - latent.prior.base_dist.log_prob(latent.z)
    return kl.flatten(0, -1 - latent.q.event_dim).mean(0)
