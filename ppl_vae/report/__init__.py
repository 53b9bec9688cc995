"""How are variants compared, and what does the page of a comparison show?"""

from .comparison import compare
from .results import Refused, Result

__all__ = ["Refused", "Result", "compare"]
