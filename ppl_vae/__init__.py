"""Variational and regularised autoencoders as Pyro programs."""

from .catalogue import VARIANTS
from .variant import Variant, encode, pair, reconstruct, sample

__all__ = ["VARIANTS", "Variant", "encode", "pair", "reconstruct", "sample"]
