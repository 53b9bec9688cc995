"""How is a pair trained, and what was optimised?"""

from .divergence import Diverged
from .fitting import Fit, fit

__all__ = ["Diverged", "Fit", "fit"]
