"""Contracts on a copy of a pair that is tried in eval mode, trained for a step, and saved."""

import copy
import math
import tempfile
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn

from ..checkpoint import load, save
from ..coding import missing_mean
from ..models import Half
from ..models.half import is_point_mass
from ..models.likelihoods import is_nominal, mean_or_mode, moment, of_coordinate
from ..streams import seeded
from ..variant import Variant, densities, evaluating, set_mode
from .registry import Contract, Trial, contract

__all__ = ["TRIALS"]

TRIALS: list[Contract] = []
CLOSE = 1e-4  # relative and absolute error that sums in float32 may have
FOLD = "networks see [rows, ...], so fold leading axes into the rows, and count axes from the right"
KEEP = "keep state in parameters or buffers"
CLOSED_FORM = "a mean must not be estimated from draws: return the closed form, or a mode"
QUIET = "layers that draw, such as dropout or noise, act only under self.training"
APART = "compute no statistics of the batch in eval mode"


# In eval mode.


@contract(TRIALS, "repeats", remedy="in eval mode, only z and x are drawn")
def repeats(trial: Trial) -> str | None:
    """In eval mode, q(z | x), p(x | z) and their means are the same from call to call."""
    variant, y = trial.variant, trial.y
    with evaluating(variant):
        q = variant.guide.posterior(y)
        z = q.mean
        first = q, variant.model.x_given_z(z)
        second = variant.guide.posterior(y), variant.model.x_given_z(z)
        for name, one, other in zip(("q(z | x)", "p(x | z)"), first, second, strict=True):
            if not _same(mean_or_mode(one, y), mean_or_mode(one, y)):
                return f"the mean of {name} is random: two readings of one distribution differ ({CLOSED_FORM})"
            if not _same(mean_or_mode(one, y), mean_or_mode(other, y)):
                return f"{name} is random in eval mode: for the same datum it differs from call to call ({QUIET})"
    return None


@contract(TRIALS, "rows", remedy="the networks have to take a batch of any size", gate=True)
def rows(trial: Trial) -> str | None:
    """In eval mode, q(z | x) and p(x | z) of a row do not depend on the rows beside it."""
    if repeats(trial) is not None:
        return None  # the contract "repeats" reports this
    variant, y = trial.variant, trial.y
    twos = [slice(row, row + 2) for row in range(0, len(y) - 1, 2)]
    with evaluating(variant):
        q = variant.guide.posterior(y)
        z = q.mean
        parts = [variant.guide.posterior(y[two]) for two in twos]
        z_apart = torch.cat([part.mean for part in parts])
        q_together = q.log_prob(z)
        q_apart = torch.cat([part.log_prob(z[two]) for part, two in zip(parts, twos, strict=True)])
        p_together = variant.model.x_given_z(z).log_prob(y)
        p_apart = torch.cat([variant.model.x_given_z(z[two]).log_prob(y[two]) for two in twos])
    count = len(z_apart)  # an odd row at the end has no neighbour
    if not _same(z[:count], z_apart):
        if not is_point_mass(q) and _same(q_together[:count], q_apart):
            return f"the mean of q(z | x) is an estimate: the batch changes it, but not its density ({CLOSED_FORM})"
        return f"q(z | x) of a row depends on the rows beside it ({APART})"
    if not _same(p_together[:count], p_apart):
        return f"p(x | z) of a row depends on the rows beside it ({APART})"
    return None


@contract(TRIALS, "moments", remedy="a distribution has a mean and a variance")
def moments(trial: Trial) -> str | None:
    """p(x | z) has a mean and a variance, or x is nominal."""
    variant, y = trial.variant, trial.y
    with evaluating(variant):
        z = variant.guide.posterior(y).mean
        law: Any = variant.model.x_given_z(z)
        missing = missing_mean(variant, z)
        if missing is not None:
            return missing
        variance = moment(law, "variance", y)
    if is_nominal(law) or not bool(variance.isnan().all()):
        return None
    name = type(of_coordinate(law)).__name__
    return f"p(x | z), a {name}, has no variance: guides.Laplace needs one (give the distribution a variance)"


@contract(TRIALS, "eval mode", remedy="in eval mode the model is p(x, z)")
def eval_mode(trial: Trial) -> str | None:
    """In eval mode, the trace of the model holds p(z) and p(x | z), unweighted, and no buffer moves."""
    variant, y = trial.variant, trial.y
    before = [{name: value.clone() for name, value in half.named_buffers()} for half in variant[:2]]
    with evaluating(variant):
        trace = poutine.trace(variant.model).get_trace(y)
        z: Any = trace.nodes["z"]["value"]
        with seeded(0):  # p(z) may be an estimate from draws, which have to be the same
            found = float(trace.log_prob_sum())
        with seeded(0):
            log_prior = variant.model.prior().log_prob(z)
        log_likelihood = variant.model.x_given_z(z).log_prob(y)
        expected = float(log_prior.sum() + log_likelihood.sum())
    if not math.isclose(found, expected, rel_tol=CLOSE, abs_tol=CLOSE):
        return (
            f"log p(x, z) is {found:.6g}, but the prior and the likelihood give {expected:.6g} "
            "(penalties and weights act only in training mode)"
        )
    for half, buffers in zip(variant[:2], before, strict=True):
        for name, value in half.named_buffers():
            if not torch.equal(value, buffers[name]):
                return f"buffer {name} moves in eval mode (update statistics only under self.training)"
    return None


@contract(TRIALS, "particles", remedy=FOLD)
def particles(trial: Trial) -> str | None:
    """Several draws per datum in one pass give the same densities as one draw after the other."""
    variant, y = trial.variant, trial.y
    with evaluating(variant):
        try:
            several = densities(variant, y, 3)
        except ValueError as error:
            return str(error)
        z = variant.guide.posterior(y).sample((3,))
        together = variant.model.x_given_z(z).log_prob(y)
        apart = torch.stack([variant.model.x_given_z(draw).log_prob(y) for draw in z])
    shapes = [list(part.shape) for part in (several.likelihood, several.prior, several.guide)]
    if shapes != [[3, len(y)]] * 3:
        return f"3 draws for each of {len(y)} data give log densities of shapes {shapes} ({FOLD})"
    same = torch.allclose(together, apart, rtol=CLOSE, atol=CLOSE)
    return None if same else f"log p(x | z) of a draw depends on the draws beside it ({FOLD})"


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=CLOSE, atol=CLOSE, equal_nan=True)


# Trained and saved.


@contract(TRIALS, "stock svi", remedy="train each pair inside pyro.get_param_store().scope()")
def stock_svi(trial: Trial) -> str | None:
    """A step of pyro.infer.SVI moves parameters of the model and of the guide."""
    variant = trial.variant
    variant.model.advance(1, 1)
    before = copy.deepcopy(variant)
    with pyro.get_param_store().scope():
        SVI(optim=PyroOptim(torch.optim.Adam, {"lr": 1e-2}), **variant._asdict()).step(trial.y)
    for name, old, new in zip(Variant._fields, before[:2], variant[:2], strict=False):
        both = zip(old.parameters(), new.parameters(), strict=True)
        moved = [not torch.equal(a, b) for a, b in both if a.requires_grad]
        if moved and not any(moved):
            return f"a step of SVI moved no parameter of the {name} ({_why_still(old)})"
    return None


def _why_still(half: nn.Module) -> str:
    """The remedy or the reason: Pyro does not know the parameters, or their gradients are all zero."""
    if type(half).__call__ is not Half.__call__:
        return "derive it from Half, and do not override __call__"
    return "its gradients are all zero: a density that is flat in the outputs of a network teaches it nothing"


@contract(TRIALS, "save and load", remedy=KEEP)
def save_and_load(trial: Trial) -> str | None:
    """A checkpoint that is loaded into an untrained copy restores everything that training moved."""
    variant, y = trial.variant, trial.y
    for half in variant[:2]:
        for label, module in half.named_modules():
            plain = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
            for name in plain:
                if _matters(variant, module, name, y):
                    return f"{label}.{name} is a plain tensor, which no checkpoint holds ({KEEP})"
    untrained = copy.deepcopy(variant)
    set_mode(variant, training=True)
    with torch.no_grad():
        variant.loss(variant.model, variant.guide)(y)  # moves the statistics that training updates without a gradient
    with tempfile.TemporaryDirectory() as folder:
        load(save(Path(folder) / "variant", variant), into=untrained)
    same = torch.equal(_log_weights(variant, y), _log_weights(untrained, y))
    return None if same else f"densities differ after loading ({KEEP})"


def _matters(variant: Variant, module: nn.Module, name: str, y: Tensor) -> bool:
    """Whether densities depend on a tensor attribute of a module. Some attributes of Pyro's flows are never used."""
    value, before = getattr(module, name), _log_weights(variant, y)
    setattr(module, name, None)
    try:
        return not torch.equal(_log_weights(variant, y), before)
    except Exception:  # noqa: BLE001 - any error without the tensor shows that it is used
        return True
    finally:
        setattr(module, name, value)


def _log_weights(variant: Variant, y: Tensor) -> Tensor:
    with evaluating(variant), seeded(0):
        return densities(variant, y, 1).log_weight
