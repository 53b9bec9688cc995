"""How good is a fit on held-out data? Bounds, distances and what is fitted afterwards, each number with its error."""

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
