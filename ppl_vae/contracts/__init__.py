"""The contracts that a pair has to keep, one function each, and the two functions that test them."""

from .conformance import check, preflight
from .support import check_density, check_support

__all__ = ["check", "check_density", "check_support", "preflight"]
