"""Judge a fit on held-out data by bounds, distances, gaps and ex-post densities, each number with its error."""

from . import ex_post
from .annealing import annealed, bracket
from .evaluation import Evaluation, evaluate
from .inference_gaps import gaps
from .lower_bounds import bounds
from .metrics import COLUMNS, metric
from .stacking import paired, stack

__all__ = [
    "COLUMNS",
    "Evaluation",
    "annealed",
    "bounds",
    "bracket",
    "evaluate",
    "ex_post",
    "gaps",
    "metric",
    "paired",
    "stack",
]
