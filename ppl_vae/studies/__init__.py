"""How are many fits run, kept and compared?

A cell is one fit and its evaluation. ``study`` runs cells, keeps each of them in a folder of its own, and compares
contestants over seeds.
"""

from .cells import Cell, Contestant, Judging, grid
from .claims import Claim, Verdict, judged
from .driver import study
from .results import Refused, Result
from .summary import Measured, Pair, Ranking, ranked
from .table import Row, Study

__all__ = [
    "Cell",
    "Claim",
    "Contestant",
    "Judging",
    "Measured",
    "Pair",
    "Ranking",
    "Refused",
    "Result",
    "Row",
    "Study",
    "Verdict",
    "grid",
    "judged",
    "ranked",
    "study",
]
