"""Turn a trained autoencoder into a VAE, or back, with the same inputs and outputs, ready to fine-tune."""

import copy
import math
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .elbo import PathwiseELBO
from .guides import Guide, MeanField, PointMass
from .guides.networks import width_of
from .models import LatentVariableModel
from .recipes import PAIR, recipe, with_part
from .variant import Variant

__all__ = ["convert"]

NETWORKS = ("encoder", "decoder", "width")  # the options of ``pair`` that concern networks
SPREAD = 0.1  # initial standard deviation of q(z | x) in a converted autoencoder


def convert(variant: Variant) -> Variant:
    """Turn a point-mass guide into a mean-field guide, or a mean-field guide into a point mass.

    An autoencoder gets a head for ``log scale`` that starts as a constant, so that the reconstruction at the guide's
    mean is unchanged. The new loss is the bound, without the penalties and the KL weight of the autoencoder. A VAE
    loses the noise of its guide, and its loss becomes that of RAE, ``-log p(x, z)``. A second VAE on the codes is left
    behind, because the codes change.

    Args:
        variant: A pair whose guide is ``PointMass`` or ``MeanField``.

    Returns:
        The converted pair. It is a copy that shares no tensor with ``variant``.

    Raises:
        ValueError: If the guide is of another family.

    Example:
        >>> import torch
        >>> from ppl_vae import VARIANTS, convert, reconstruct
        >>> autoencoder, x = VARIANTS["ae"](x_shape=(6,), z_dim=2), torch.randn(5, 6)
        >>> vae = convert(autoencoder)
        >>> torch.equal(reconstruct(vae, x), reconstruct(autoencoder, x))
        True
    """
    old = copy.deepcopy(variant.model)
    prior = getattr(old.prior, "first_stage", old.prior)
    model = LatentVariableModel(prior, old.decoder, old.likelihood, old.x_shape)
    model.scale = old.scale
    guide = copy.deepcopy(variant.guide)
    loc, *rest = guide.heads
    arguments = (guide.encoder, guide.x_shape, guide.z_dim)
    converted: PointMass | MeanField
    if isinstance(guide, PointMass):
        converted = MeanField(*arguments, heads=[loc, _constant_head(variant)])
    elif isinstance(guide, MeanField) and len(rest) == 1:
        converted = PointMass(*arguments, heads=[loc])
    else:
        raise ValueError(f"convert takes PointMass and MeanField guides, got {type(guide).__name__}")
    model.recipe = _recipe(variant.model.recipe, model, converted)
    return Variant(model, converted, PathwiseELBO())


def _recipe(old: dict[str, Any] | None, model: LatentVariableModel, guide: Guide) -> dict[str, Any] | None:
    """The recipe of the converted pair, with the networks of the recipe of the pair before.

    It is None if the pair before has no recipe, or if its decoder was changed after it was built.
    """
    if old is None or any(map(is_parametrized, model.decoder.modules())):
        return None
    made = recipe(PAIR, model.x_shape, guide.z_dim, {"likelihood": model.likelihood, "prior": model.prior})
    made = with_part(made, "guide", type(guide))
    networks = {name: option for name, option in old["options"].items() if name in NETWORKS}
    own = [name for name in old["parts"] if name in NETWORKS]
    return {**made, "options": {**made["options"], **networks}, "parts": [*made["parts"], *own]}


def _constant_head(variant: Variant) -> nn.Module:
    """A linear head on the encoder's output that starts as the constant ``log(SPREAD)``."""
    head = nn.Linear(width_of(variant.guide.encoder, variant.guide.x_shape), variant.z_dim)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, math.log(SPREAD))
    return head.to(next(variant.model.parameters()))
