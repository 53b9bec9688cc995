"""Variational and regularised autoencoders as Pyro programs: swap a part, train, and trust the numbers."""

from . import ex_post
from .annealing import annealed, bracket
from .bounds import bounds
from .catalogue import VARIANTS
from .check import check
from .checkpoint import load, save
from .conversion import convert
from .data import Data, prepare
from .diagnosis import collapse, diagnose, sbc, to_inferencedata
from .estimators import compare_estimators
from .evaluation import Evaluation, evaluate
from .gaps import gaps
from .stacking import paired, stack
from .svi import SVI
from .training import Fit, fit
from .variant import Variant, encode, pair, reconstruct, sample, with_prior
from .verification import verify

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
