"""From a trained autoencoder to a VAE and back: same inputs, same outputs, ready to fine-tune."""

import copy
import math

from torch import nn

from .elbo import PathwiseELBO
from .guides import MeanField, PointMass
from .guides.networks import width_of
from .models import LatentVariableModel
from .variant import Variant

__all__ = ["convert"]

SPREAD = 0.1  # standard deviation of q(z | x) that a converted autoencoder starts with


def convert(variant: Variant) -> Variant:
    """Turn a point-mass guide into a mean-field one, or the other way round.

    An autoencoder gets a head for ``log scale``, a constant to start with, so that the reconstruction at the guide's
    mean is unchanged; its penalties and KL weight are left behind and the loss is the bound. A VAE loses its noise: the
    loss becomes ``-log p(x, z)``, RAE's. The converted pair shares nothing with the one that came.

    Args:
        variant: A pair whose guide is ``PointMass`` or ``MeanField``.

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
    model = LatentVariableModel(old.prior, old.decoder, old.likelihood, old.x_shape)
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
        raise ValueError(f"convert knows PointMass and MeanField guides, got {type(guide).__name__}")
    return Variant(model, converted, PathwiseELBO())


def _constant_head(variant: Variant) -> nn.Module:
    """A linear head that starts as the constant ``log(SPREAD)``, of the width that the encoder has."""
    head = nn.Linear(width_of(variant.guide.encoder, variant.guide.x_shape), variant.z_dim)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, math.log(SPREAD))
    return head.to(next(variant.model.parameters()))
