"""Is this estimator what it says? Values and gradients against the truth."""

__all__: list[str] = []
