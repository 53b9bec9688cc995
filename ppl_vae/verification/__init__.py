"""Does an estimator give what it should? Its value and gradient are compared with the truth and with others."""

from .estimator_table import EstimatorComparison, compare_estimators
from .exact_pair import linear_pair
from .targets import TARGETS, Estimand, Target, Truth, estimand_of, truth
from .verdict import Verdict, hold_against_truth, verify

__all__ = [
    "TARGETS",
    "Estimand",
    "EstimatorComparison",
    "Target",
    "Truth",
    "Verdict",
    "compare_estimators",
    "estimand_of",
    "hold_against_truth",
    "linear_pair",
    "truth",
    "verify",
]
