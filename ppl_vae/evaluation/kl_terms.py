"""The KL of q(z | x) from p(z), and when a unit of the code counts as active."""

import torch
from torch import Tensor

from ..elbo.kl import closed_form_kl, kl_per_unit
from ..variant import Variant

__all__ = ["ACTIVE", "kl_from_prior"]

ACTIVE = 0.01  # a unit is active if its posterior mean has a larger variance over data (Burda et al., 2016)
DRAWS = 100  # draws per datum for a KL without a closed form in torch


def kl_from_prior(variant: Variant, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute KL(q(z | x) || p(z)), nats, in closed form where torch knows one, and from 100 draws otherwise.

    Call it under ``evaluating``.

    Args:
        variant: A pair whose guide has a density.
        y: Data [rows, *x_shape], in the model's units.

    Returns:
        The KL of each datum, [rows], and the KL of each unit, [rows, z_dim]. The second is None where a distribution
        does not factorise.
    """
    prior = variant.model.prior()
    per_datum, per_unit = [], []
    for rows in y.split(variant.at_once):
        q = variant.guide.posterior(rows)
        kl = closed_form_kl(q, prior)
        if kl is None:
            z = q.sample((DRAWS,))
            kl = (q.log_prob(z) - prior.log_prob(z)).mean(0)
        units = kl_per_unit(q, prior)
        if units is not None:
            per_unit.append(units)
        per_datum.append(kl)
    return torch.cat(per_datum), torch.cat(per_unit) if per_unit else None
