"""Variational and regularised autoencoders as Pyro programs: swap a part, train, and trust the numbers."""

from .assembly import pair, with_prior
from .catalogue import VARIANTS
from .checkpoint import load, save
from .coding import encode, reconstruct, sample
from .contracts.conformance import check
from .conversion import convert
from .data.data_set import Data
from .data.prepared import prepare
from .diagnosis import collapse, diagnose, sbc, to_inferencedata
from .evaluation import ex_post
from .evaluation.annealing import annealed, bracket
from .evaluation.evaluation import Evaluation, evaluate
from .evaluation.inference_gaps import gaps
from .evaluation.lower_bounds import bounds
from .evaluation.stacking import paired, stack
from .svi import SVI
from .training.fitting import Fit, fit
from .variant import Variant
from .verification.estimator_table import compare_estimators
from .verification.verdict import verify

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
