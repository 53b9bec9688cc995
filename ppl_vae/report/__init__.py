"""How are variants compared, and what does the page of a comparison show?"""

from .comparison import compare

__all__ = ["compare"]
