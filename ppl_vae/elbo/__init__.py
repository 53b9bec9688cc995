"""Estimators of the bound. Each is a ``pyro.infer.ELBO``, like Pyro's own."""

from .dip import DIP
from .importance import IWAE, MIWAE, Renyi
from .kl import BetaELBO, FreeBits, MeanFieldELBO
from .named import ESTIMATORS, estimator, target_of
from .path import CIWAE, PIWAE, DReG, StickingTheLanding
from .pathwise import PathwiseELBO
from .per_datum import PerDatumELBO

__all__ = [
    "CIWAE",
    "DIP",
    "ESTIMATORS",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "BetaELBO",
    "DReG",
    "FreeBits",
    "MeanFieldELBO",
    "PathwiseELBO",
    "PerDatumELBO",
    "Renyi",
    "StickingTheLanding",
    "estimator",
    "target_of",
]
