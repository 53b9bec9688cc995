"""How is a pair trained, and what was optimised?"""

__all__: list[str] = []
