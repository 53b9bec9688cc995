"""Variational and regularised autoencoders as Pyro programs.

A variant consists of a model p(x, z), a guide q(z | x) and an estimator of the bound. ``VARIANTS`` holds the named
variants, ``pair`` builds one from parts, ``fit`` trains it and ``evaluate`` judges it. ``compare`` trains and judges
several over seeds, and writes a report.
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
from .report import compare
from .studies import Contestant, Study, grid, study
from .svi import SVI
from .training import Fit, fit
from .variant import Variant
from .verification import compare_estimators, verify

__all__ = [
    "SVI",
    "VARIANTS",
    "Contestant",
    "Data",
    "Evaluation",
    "Fit",
    "Study",
    "Variant",
    "annealed",
    "bounds",
    "bracket",
    "check",
    "collapse",
    "compare",
    "compare_estimators",
    "convert",
    "describe",
    "diagnose",
    "encode",
    "evaluate",
    "ex_post",
    "fit",
    "gaps",
    "grid",
    "load",
    "pair",
    "paired",
    "prepare",
    "reconstruct",
    "sample",
    "save",
    "sbc",
    "stack",
    "study",
    "to_inferencedata",
    "verify",
    "with_prior",
]
