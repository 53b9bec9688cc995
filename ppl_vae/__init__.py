"""Variational and regularised autoencoders as Pyro programs.

A variant consists of a model p(x, z), a guide q(z | x) and an estimator of the bound. ``VARIANTS`` holds the named
variants, ``pair`` builds one from parts, ``fit`` trains it and ``evaluate`` judges it.
"""

from .assembly import pair, with_prior
from .catalogue import VARIANTS
from .checkpoint import load, save
from .coding import encode, reconstruct, sample
from .contracts import check
from .conversion import convert
from .data import Data, prepare
from .description import describe
from .diagnosis import collapse, diagnose, sbc, to_inferencedata
from .evaluation import Evaluation, annealed, bounds, bracket, evaluate, ex_post, gaps, paired, stack
from .svi import SVI
from .training import Fit, fit
from .variant import Variant
from .verification import compare_estimators, verify

__all__ = [
    "SVI",
    "VARIANTS",
    "Data",
    "Evaluation",
    "Fit",
    "Variant",
    "annealed",
    "bounds",
    "bracket",
    "check",
    "collapse",
    "compare_estimators",
    "convert",
    "describe",
    "diagnose",
    "encode",
    "evaluate",
    "ex_post",
    "fit",
    "gaps",
    "load",
    "pair",
    "paired",
    "prepare",
    "reconstruct",
    "sample",
    "save",
    "sbc",
    "stack",
    "to_inferencedata",
    "verify",
    "with_prior",
]
