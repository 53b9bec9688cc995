"""Builders and trainings for the tests of studies. They stand in a module, so that other processes can import them."""

import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae import VARIANTS, Fit, Variant, fit
from ppl_vae.estimate import Number
from ppl_vae.evaluation.features import Features
from ppl_vae.models import LearnedSigma, StudentT
from ppl_vae.studies import Result
from ppl_vae.training.divergence import Diverged


def plain(x_shape: tuple[int, ...], z_dim: int, **options: Any) -> Variant:
    """A builder of one's own."""
    return VARIANTS["sigma_vae"](x_shape, z_dim, **options)


def seen_seed(x_shape: tuple[int, ...], z_dim: int, seed: int, log: str) -> Variant:
    """A builder that takes the seed, and writes it down."""
    with Path(log).open("a") as file:
        file.write(f"{seed}\n")
    return plain(x_shape, z_dim)


def dying(x_shape: tuple[int, ...], z_dim: int, flag: str) -> Variant:
    """A builder that ends its process while the file ``flag`` is there."""
    if Path(flag).exists():
        os._exit(3)
    return plain(x_shape, z_dim)


def raising(x_shape: tuple[int, ...], z_dim: int, kind: str) -> Variant:
    """A builder that raises an error."""
    if kind == "exit":
        sys.exit("no more")
    raise {"value": ValueError, "key": KeyError, "lines": ValueError, "memory": MemoryError}[kind](
        *(["first\nsecond"] if kind == "lines" else [])
    )


def sloppy(x_shape: tuple[int, ...], z_dim: int) -> Variant:
    """A builder that changes the default dtype, the streams and Pyro's store."""
    import pyro

    torch.set_default_dtype(torch.float32)
    torch.manual_seed(17)
    pyro.param("mine", torch.ones(()))
    return plain(x_shape, z_dim)


def counted(variant: Variant, data: Any, *, log: str, **training: Any) -> Fit:
    """``fit``, which writes a line for each call."""
    with Path(log).open("a") as file:
        file.write("fit\n")
    return fit(variant, data, **training)


def diverging(variant: Variant, data: Any, **training: Any) -> Fit:
    """A training whose loss turns NaN."""
    raise Diverged("step 3: log p of site 'x' is nan")


def refusing(variant: Variant, data: Any, *, log: str, **training: Any) -> Fit:
    """A training that diverges, and writes a line for each call."""
    with Path(log).open("a") as file:
        file.write("fit\n")
    return diverging(variant, data, **training)


def stepped(variant: Variant, data: Any, *, lr: float = 1e-2, **training: Any) -> Fit:
    """A training by ``fit`` with another learning rate."""
    return fit(variant, data, lr=lr, **training)


def untrained(variant: Variant, data: Any, *, seed: int, progress: bool, epochs: int = 1) -> Fit:
    """A training that sets every weight to the same number, whatever the seed."""
    variant.model.scale.load_state_dict(data.scale.state_dict())
    with torch.no_grad():
        for half in variant[:2]:
            for parameter in half.parameters():
                parameter.fill_(0.01)
    settings = {
        "epochs": 1,
        "steps": 1,
        "batch_size": 64,
        "lr": 1e-3,
        "optimizer": "Adam",
        "seed": 0,
        "rows": len(data.train),
    }
    return Fit(variant, data, [], 1, {**settings, "backend": "eager", "precision": "full"})


def far(result: Result, features: Features) -> dict[str, Number]:
    """A number of one's own: the largest weight of the decoder."""
    largest = max(float(parameter.detach().abs().max()) for parameter in result.variant.model.parameters())
    return {"largest": Number(largest)}


def single_precision_number(result: Result, features: Features) -> dict[str, Any]:
    return {"half": torch.tensor(0.5)}


def shadowing(result: Result, features: Features) -> dict[str, Number]:
    return {"bound": Number(1e6)}


def not_finite(result: Result, features: Features) -> dict[str, Number]:
    return {"odd": Number(float("nan") if result.seed == 0 else 1.0)}


def only_some(result: Result, features: Features) -> dict[str, Number]:
    return {"some": Number(float(result.seed), 0.1)}


class Shifted(LearnedSigma):
    """A likelihood of one's own, with an argument that its extra_repr does not show."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, loc: Tensor) -> Any:
        return super().forward(loc + self.shift)


def values() -> dict[str, Any]:
    """Options whose order, address or hash could differ between processes."""
    return {
        "set": {"a", "b", "c", ("d", 1)},
        "part": StudentT(3.0),
        "path": Path("a/b"),
        "own": Shifted(1.0),
        "function": functools.partial(stepped, lr=0.1),
        "in": lambda x: x in {"p", "q", "r"},
        "number": 0.1,
    }


SHARED = nn.Sequential(nn.Linear(3, 4, dtype=torch.float64))


def sharing(x_shape: tuple[int, ...], z_dim: int) -> Variant:
    """A builder that puts the same module into every pair."""
    return plain(x_shape, z_dim, encoder=SHARED)
