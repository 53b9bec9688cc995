"""Variational and regularised autoencoders as Pyro programs: swap a part, train, and trust the numbers."""

from . import ex_post
from .bounds import bounds
from .catalogue import VARIANTS
from .check import check
from .checkpoint import load, save
from .conversion import convert
from .data import Data, prepare
from .evaluation import Evaluation, evaluate
from .training import Fit, fit
from .variant import Variant, encode, pair, reconstruct, sample, with_prior

__all__ = [
    "VARIANTS",
    "Data",
    "Evaluation",
    "Fit",
    "Variant",
    "bounds",
    "check",
    "convert",
    "encode",
    "evaluate",
    "ex_post",
    "fit",
    "load",
    "pair",
    "prepare",
    "reconstruct",
    "sample",
    "save",
    "with_prior",
]
