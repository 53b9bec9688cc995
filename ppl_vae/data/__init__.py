"""What is x, and in which units?"""

__all__: list[str] = []
