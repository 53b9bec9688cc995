"""The guides q(z | x): one family per file."""

from .constant_variance import ConstantVariance
from .full_rank import FullRank
from .guide import Guide
from .laplace import Laplace
from .mean_field import MeanField
from .networks import OneHot, encoder, sequence_encoder
from .point_mass import PointMass

__all__ = [
    "ConstantVariance",
    "FullRank",
    "Guide",
    "Laplace",
    "MeanField",
    "OneHot",
    "PointMass",
    "encoder",
    "sequence_encoder",
]
