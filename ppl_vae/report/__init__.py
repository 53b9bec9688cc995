"""What does a person see? The comparison of variants and its page."""

from .comparison import compare
from .results import Refused, Result

__all__ = ["Refused", "Result", "compare"]
