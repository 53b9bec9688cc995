"""Which pairs have exact answers? Those of a linear-Gaussian model and a Gaussian guide are built and recognised."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from ..assembly import pair
from ..guides import FullRank, Guide, MeanField
from ..models import LearnedSigma, LinearGaussian, StandardNormal
from ..variant import Variant, evaluating

__all__ = ["as_linear_gaussian", "gaussian_guide", "linear_pair"]


def linear_pair(
    exact: LinearGaussian, guide: type[Guide] = MeanField, *, shift: float = 0.0, stretch: float = 1.0
) -> Variant:
    """Build a pair whose model is ``exact`` with a learned sigma, and whose guide is at a known distance from the best.

    Args:
        exact: The model.
        guide: ``FullRank``, whose best member is the posterior, or ``MeanField``, whose best member is the posterior if
            the columns of the loading are orthogonal.
        shift: Number that is added to the mean of the best guide of the family.
        stretch: Factor on the standard deviations of the best guide of the family.
    """
    x_dim, z_dim = exact.loading.shape
    decoder = nn.Linear(z_dim, x_dim)
    likelihood = LearnedSigma(exact.sigma.item())
    variant = pair((x_dim,), z_dim, likelihood=likelihood, guide=guide, encoder=nn.Identity(), decoder=decoder)
    variant.model.to(exact.loading)
    variant.guide.to(exact.loading)
    likelihood.set_scale(exact.sigma.item())  # again, in the precision of ``exact``
    with torch.no_grad():
        decoder.weight.copy_(exact.loading)
        decoder.bias.copy_(exact.loc)
        _set_guide(variant.guide, exact, shift, stretch)
    return variant


def _set_guide(guide: Guide, exact: LinearGaussian, shift: float, stretch: float) -> None:
    """Set the heads of a guide to the best of its family; only the mean depends on x."""
    x_dim, z_dim = exact.loading.shape
    family = exact.posterior if isinstance(guide, FullRank) else exact.mean_field_posterior
    at_zero = family(torch.zeros(1, x_dim).to(exact.loc))
    at_units = family(torch.eye(x_dim).to(exact.loc))
    tril = stretch * at_zero.scale_tril.reshape(z_dim, z_dim)
    below_diagonal = tril[tuple(torch.tril_indices(z_dim, z_dim, -1))]
    loc, log_diagonal, *below = cast("list[nn.Linear]", list(guide.heads))
    for head in (loc, log_diagonal, *below):
        head.weight.zero_()
    loc.weight.copy_((at_units.loc - at_zero.loc).mT)
    loc.bias.copy_(at_zero.loc[0] + shift)
    log_diagonal.bias.copy_(tril.diagonal().log())
    for head in below:  # a full-rank guide has one
        head.bias.copy_(below_diagonal)


def as_linear_gaussian(variant: Variant) -> LinearGaussian | None:
    """Return the model of a pair as a ``LinearGaussian``, with the graph of its parameters; None if it is not one.

    The decoder must be one linear layer, and p(x | z) a normal distribution with a single scale. The prior must be a
    standard normal that is not trained, because the closed forms of ``LinearGaussian`` hold for no other prior.
    """
    layer = _only_linear_layer(variant.model.decoder)
    scale = getattr(variant.model.likelihood, "scale", None)
    if layer is None or not isinstance(scale, Tensor) or scale.numel() != 1:
        return None
    if not _is_standard(variant.model.prior) or not _is_normal_around(variant, layer, scale):
        return None
    bias = getattr(layer, "bias", None)
    loc = torch.zeros_like(layer.weight[:, 0]) if bias is None else bias
    return LinearGaussian(layer.weight, loc, scale)


def _only_linear_layer(decoder: nn.Module) -> nn.Linear | None:
    """The linear layer of a decoder that has no other layer, or None."""
    plain = nn.Sequential, nn.Flatten, nn.Identity  # types are compared, because a subclass may compute something else
    layers = [layer for layer in decoder.modules() if type(layer) not in plain]
    return layers[0] if len(layers) == 1 and type(layers[0]) is nn.Linear else None


def _is_standard(prior: nn.Module) -> bool:
    """Whether p(z) is Normal(0, I) and has no trained parameter."""
    if type(prior) is not StandardNormal or any(parameter.requires_grad for parameter in prior.parameters()):
        return False
    return bool((prior.loc == 0).all() and (prior.scale == 1).all())


def _is_normal_around(variant: Variant, layer: nn.Linear, scale: Tensor) -> bool:
    """Whether p(x | z) is Normal(layer(z), scale), tried at codes near 0 and far from 0."""
    near = torch.linspace(-3, 3, 2 * variant.z_dim).to(layer.weight).reshape(2, -1)
    far = 1e3 * near  # a mean that is clamped somewhere differs from the layer there
    z = torch.cat([near, far])
    with evaluating(variant), torch.enable_grad():
        normal: Any = getattr(variant.model.x_given_z(z), "base_dist", None)
        if not isinstance(normal, Normal) or not torch.equal(normal.loc.flatten(1), layer(z)):
            return False
        if _is_moved_by(variant.model.likelihood, normal.loc):
            return False
        return bool((normal.scale == scale).all())


def _is_moved_by(likelihood: nn.Module, loc: Tensor) -> bool:
    """Whether ``loc`` depends on a trained parameter of the likelihood, such as a bias that starts at 0."""
    trained = [parameter for parameter in likelihood.parameters() if parameter.requires_grad]
    if not trained or not loc.requires_grad:
        return False
    gradients = torch.autograd.grad(loc.sum(), trained, allow_unused=True)
    return any(gradient is not None for gradient in gradients)


def gaussian_guide(variant: Variant, y: Tensor) -> MultivariateNormal | None:
    """Return q(z | x) as a ``MultivariateNormal``, with the graph of its parameters; None if it is not Gaussian."""
    q = variant.guide.posterior(y)
    if isinstance(q, Independent) and isinstance(q.base_dist, Normal):
        return MultivariateNormal(q.base_dist.loc, scale_tril=q.base_dist.scale.diag_embed(), validate_args=False)
    return q if isinstance(q, MultivariateNormal) else None
