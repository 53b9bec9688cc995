"""Estimators of the bound beyond Pyro's own; each is a ``pyro.infer.ELBO``."""

from .pathwise import PathwiseELBO

__all__ = ["PathwiseELBO"]
