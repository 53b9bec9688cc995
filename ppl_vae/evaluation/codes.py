"""What codes cost and carry: the KL of q(z | x) from p(z), and units that vary."""

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ..variant import Variant

__all__ = ["ACTIVE", "divergence"]

ACTIVE = 0.01  # variance over data of a posterior mean above which a unit counts as active (Burda et al., 2016)


def divergence(variant: Variant, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """KL(q(z | x) || p(z)) of each datum, [rows], and by code where both factorise, [rows, z_dim].

    In closed form where torch knows one, else by 100 draws.
    """
    prior, total, per_dim = variant.model.prior(), [], []
    for rows in variant.in_model_units(x).split(variant.at_once):
        q = variant.guide.posterior(rows)
        try:
            total.append(kl_divergence(q, prior.expand(q.batch_shape)))
            if isinstance(q, Independent) and isinstance(prior, Independent):
                per_dim.append(kl_divergence(q.base_dist, prior.base_dist.expand(q.base_dist.batch_shape)))
        except NotImplementedError:
            z = q.sample((100,))
            total.append((q.log_prob(z) - prior.log_prob(z)).mean(0))
    return torch.cat(total), torch.cat(per_dim) if per_dim else None
