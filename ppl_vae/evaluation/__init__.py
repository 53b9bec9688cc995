"""How good is a fit on held-out data? Bounds, distances and what is fitted afterwards, each number with its error."""

__all__: list[str] = []
