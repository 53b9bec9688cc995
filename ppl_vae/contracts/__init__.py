"""Is this pair what it says? The contracts, one function each, and the two functions that ask them."""

from .conformance import check, preflight
from .support import check_density, check_support

__all__ = ["check", "check_density", "check_support", "preflight"]
