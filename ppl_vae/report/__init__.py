"""What does a person see? The comparison of variants and its page."""

__all__: list[str] = []
