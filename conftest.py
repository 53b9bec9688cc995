"""Every test and doctest: one seed, float64, Pyro's validation on, and a parameter store that nobody leaves dirty."""

from collections.abc import Iterator

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(dtype)
    assert not list(pyro.get_param_store().keys())
