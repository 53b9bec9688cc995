"""The KL of q(z | x) from p(z), and when a unit of the code counts as active."""

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ..variant import Variant

__all__ = ["ACTIVE", "kl_from_prior"]

ACTIVE = 0.01  # a unit is active if its posterior mean has a larger variance over data (Burda et al., 2016)


def kl_from_prior(variant: Variant, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute KL(q(z | x) || p(z)), nats, in closed form where torch knows one, and from 100 draws otherwise.

    Call it under ``evaluating``.

    Args:
        variant: A pair whose guide has a density.
        y: Data [rows, *x_shape], in the model's units.

    Returns:
        The KL of each datum, [rows], and the KL of each unit, [rows, z_dim], where both laws factorise.
    """
    prior, total, per_dim = variant.model.prior(), [], []
    for rows in y.split(variant.at_once):
        q = variant.guide.posterior(rows)
        try:
            total.append(kl_divergence(q, prior.expand(q.batch_shape)))
            if isinstance(q, Independent) and isinstance(prior, Independent):
                per_dim.append(kl_divergence(q.base_dist, prior.base_dist.expand(q.base_dist.batch_shape)))
        except NotImplementedError:
            z = q.sample((100,))
            total.append((q.log_prob(z) - prior.log_prob(z)).mean(0))
    return torch.cat(total), torch.cat(per_dim) if per_dim else None
