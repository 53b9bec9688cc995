"""Pairs whose answers are known exactly: a linear-Gaussian model and a Gaussian guide."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from ..assembly import pair
from ..guides import FullRank, Guide, MeanField
from ..models import LearnedSigma, LinearGaussian, StandardNormal
from ..variant import Variant, evaluating

__all__ = ["gaussian_guide", "linear_gaussian", "linear_pair"]


def linear_pair(
    exact: LinearGaussian, guide: type[Guide] = MeanField, *, shift: float = 0.0, stretch: float = 1.0
) -> Variant:
    """``exact`` as a pair, sigma learned; the guide is the best of its family, then moved.

    Args:
        exact: The model.
        guide: ``FullRank``, the posterior itself, or ``MeanField``, which is the posterior where the columns
            of the loading are orthogonal.
        shift: Added to the guide's mean.
        stretch: Factor on the guide's standard deviations.
    """
    x_dim, z_dim = exact.loading.shape
    decoder = nn.Linear(z_dim, x_dim)
    likelihood = LearnedSigma(exact.sigma.item())
    variant = pair((x_dim,), z_dim, likelihood=likelihood, guide=guide, encoder=nn.Identity(), decoder=decoder)
    family = exact.posterior if guide is FullRank else exact.mean_field_posterior
    zero, units = torch.zeros(1, x_dim).to(exact.loc), torch.eye(x_dim).to(exact.loc)
    start = family(zero)
    tril = stretch * start.scale_tril.reshape(z_dim, z_dim)
    loc, log_diagonal, *below = cast("list[nn.Linear]", list(variant.guide.heads))
    biases = [start.loc[0] + shift, tril.diagonal().log()]
    biases += [tril[tuple(torch.tril_indices(z_dim, z_dim, -1))]] * len(below)
    variant.model.to(exact.loading)
    variant.guide.to(exact.loading)
    likelihood.set_scale(exact.sigma.item())  # in the precision of ``exact``
    with torch.no_grad():
        decoder.weight.copy_(exact.loading)
        decoder.bias.copy_(exact.loc)
        for head, bias in zip((loc, log_diagonal, *below), biases, strict=True):
            head.weight.zero_()
            head.bias.copy_(bias)
        loc.weight.copy_((family(units).loc - start.loc).mT)
    return variant


def linear_gaussian(variant: Variant) -> LinearGaussian | None:
    """The model of a pair as a ``LinearGaussian``, with the graph of its parameters; None where it is none.

    The decoder has to be one linear layer and p(x | z) a normal with one scale. The prior has to be a standard normal
    that is not trained, since the closed forms of ``LinearGaussian`` know no other.
    """
    plain = nn.Sequential, nn.Flatten, nn.Identity  # and no classes made of them
    layers = [layer for layer in variant.model.decoder.modules() if type(layer) not in plain]
    scale = getattr(variant.model.likelihood, "scale", None)
    if len(layers) != 1 or type(layers[0]) is not nn.Linear or not isinstance(scale, Tensor) or scale.numel() != 1:
        return None
    if not _is_standard(variant.model.prior) or not _is_normal_around(variant, layers[0], scale):
        return None
    weight, bias = layers[0].weight, getattr(layers[0], "bias", None)
    return LinearGaussian(weight, torch.zeros_like(weight[:, 0]) if bias is None else bias, scale)


def _is_standard(prior: nn.Module) -> bool:
    """Whether p(z) is Normal(0, I), and nothing in it is trained."""
    if type(prior) is not StandardNormal or any(parameter.requires_grad for parameter in prior.parameters()):
        return False
    return bool((prior.loc == 0).all() and (prior.scale == 1).all())


def _is_normal_around(variant: Variant, layer: nn.Linear, scale: Tensor) -> bool:
    """Whether p(x | z) is Normal(layer(z), scale), tried at codes near 0 and far from it."""
    z = torch.linspace(-3, 3, 2 * variant.z_dim).to(layer.weight).reshape(2, -1)
    z = torch.cat([z, 1e3 * z])  # a mean that is clamped somewhere is bent
    with evaluating(variant), torch.enable_grad():
        law: Any = getattr(variant.model.x_given_z(z), "base_dist", None)
        if not isinstance(law, Normal) or not torch.equal(law.loc.flatten(1), layer(z)):
            return False
        own = [parameter for parameter in variant.model.likelihood.parameters() if parameter.requires_grad]
        if own and law.loc.requires_grad:  # a bias of the likelihood's own may be 0 now, and is trained
            slopes = torch.autograd.grad(law.loc.sum(), own, allow_unused=True)
            if any(slope is not None for slope in slopes):
                return False
        return bool((law.scale == scale).all())


def gaussian_guide(variant: Variant, y: Tensor) -> MultivariateNormal | None:
    """q(z | x) as a ``MultivariateNormal``, with the graph of its parameters; None where it is none."""
    q = variant.guide.posterior(y)
    if isinstance(q, Independent) and isinstance(q.base_dist, Normal):
        return MultivariateNormal(q.base_dist.loc, scale_tril=q.base_dist.scale.diag_embed(), validate_args=False)
    return q if isinstance(q, MultivariateNormal) else None
