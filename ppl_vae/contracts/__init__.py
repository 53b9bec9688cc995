"""Is this pair what it says? What is held before training, and the conformance suite."""

__all__: list[str] = []
