"""The conformance suite: what every pair of ours is held to, for a user's own likelihood, prior, guide or penalty."""

import copy
import math
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor

from ..checkpoint import load, save
from ..coding import missing_mean
from ..data.data_set import tensor_of
from ..models import Half
from ..models.half import is_point_mass
from ..models.likelihoods import moment, of_coordinate
from ..streams import seeded
from ..variant import Variant, densities, evaluating, set_mode
from .support import check_support
from .training_pass import READINGS, one_pass

__all__ = ["check"]

NEWLINE = "\n"
CLOSE = 1e-4  # relative error that float32 sums may have


def check(variant: Variant, x: Any) -> list[str]:
    """Hold a pair to the contracts that every number here rests on.

    Args:
        variant: The pair; a copy is tried, it is left as it was, as the random streams are.
        x: At least 4 data [rows, *x_shape], in the data's units.

    Returns:
        One line a failure, with the remedy, named as in ``CHECKS``; empty when all hold. Where one of ``GATES`` is
        reached after a failure, what follows is not tried, for it would say the same again.

    Example:
        >>> import torch
        >>> from ppl_vae import VARIANTS, check
        >>> check(VARIANTS["sigma_vae"](x_shape=(6,), z_dim=2), torch.randn(8, 6))
        []
    """
    x = tensor_of(x)
    if len(x) < 4:
        raise ValueError(f"check needs at least 4 data to split, got {len(x)}")
    run = cache(lambda: one_pass(copy.deepcopy(variant), variant.in_model_units(x)))
    failures: list[str] = []
    for name, (test, remedy) in CHECKS.items():
        store = pyro.get_param_store().scope()
        with seeded(0), torch.enable_grad(), warnings.catch_warnings(), pyro.validation_enabled(True), store:
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", message="Encountered", category=UserWarning)  # NaN: told with its remedy
            try:
                failure = test(run()) if name in READINGS else test(copy.deepcopy(variant), x)
            except Exception as error:  # noqa: BLE001 - a user's part may raise anything, and it is what is reported
                failure = f"{type(error).__name__}: {str(error).strip().partition(NEWLINE)[0]} ({remedy})"
        if failure is not None:
            failures.append(f"{name}: {failure}")
        if failures and name in GATES:
            break  # what follows would say the same again
    return failures


def _data(variant: Variant, x: Tensor) -> str | None:
    """X has the model's shape and lie in the likelihood's support."""
    if not variant.model.prior().event_shape:
        return None  # the shapes say it better
    try:
        check_support(variant, variant.in_model_units(x))
    except ValueError as error:
        return str(error)
    return None


def _shapes(variant: Variant, x: Tensor) -> str | None:
    """Event and batch shapes of p(z), q(z | x) and p(x | z)."""
    y, event = variant.in_model_units(x), "makes coordinates an event: .to_event(1)"
    prior, q = variant.model.prior(), variant.guide.posterior(variant.in_model_units(x))
    failure = _shape("p(z)", prior, (), (variant.z_dim,), f"prior.forward {event}")
    failure = failure or _shape("q(z | x)", q, (len(y),), (variant.z_dim,), f"guide.posterior {event}")
    if failure:
        return failure
    try:
        code = q.mean
    except NotImplementedError:
        return "q(z | x) has no mean, and a code is one (give the distribution a mean)"
    x_given_z = variant.model.x_given_z(code)
    remedy = "likelihood.forward returns batch shape [..., *x_shape], a scalar event each: no to_event"
    return _shape("p(x | z)", x_given_z, (len(y),), variant.model.x_shape, remedy)


def _shape(name: str, law: Any, batch: tuple[int, ...], event: tuple[int, ...], remedy: str) -> str | None:
    got = f"batch shape {list(law.batch_shape)}, event shape {list(law.event_shape)}"
    right = tuple(law.batch_shape) == batch and tuple(law.event_shape) == event
    return None if right else f"{name} has {got}, wanted {list(batch)} and {list(event)} ({remedy})"


def _loss(variant: Variant, x: Tensor) -> str | None:
    """The loss is one finite number once all schedules are open."""
    loss = _objective(variant, x)
    if loss.ndim == 0 and bool(loss.isfinite()):
        return None
    return f"the loss is {loss.tolist()}, wanted one finite number (look at log_prob at these data, at the scales)"


def _objective(variant: Variant, x: Tensor) -> Tensor:
    set_mode(variant, training=True)
    variant.model.advance(1, 1)
    loss: Tensor = variant.loss(variant.model, variant.guide)(variant.in_model_units(x))
    return loss


def _gradients(variant: Variant, x: Tensor) -> str | None:
    """Every parameter gets a finite gradient."""
    named = [
        (f"{type(half).__name__}.{name}", parameter)
        for half in variant[:2]
        for name, parameter in half.named_parameters()
        if parameter.requires_grad
    ]
    parameters = [parameter for _, parameter in named]
    if not parameters:
        return None  # the parameters have a line of their own
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(_objective(variant, x), parameters, allow_unused=True)
    for (label, _), gradient in zip(named, gradients, strict=True):
        if gradient is None:
            return f"{label} gets no gradient (it is not used in forward: use it, or delete it)"
        if not bool(gradient.isfinite().all()):
            return f"{label} gets a gradient that is not finite (bound the scales away from 0)"
    return None


def _repeats(variant: Variant, x: Tensor) -> str | None:
    """In eval mode q(z | x) and p(x | z) are the same from call to call, and so are their means."""
    y = variant.in_model_units(x)
    with evaluating(variant):
        q = variant.guide.posterior(y)
        z = q.mean
        first = q, variant.model.x_given_z(z)
        second = variant.guide.posterior(y), variant.model.x_given_z(z)
        for name, one, other in zip(("q(z | x)", "p(x | z)"), first, second, strict=True):
            if not _same(moment(one, "mean", y), moment(one, "mean", y)):
                return f"the mean of {name} is random: two readings of one distribution differ ({NO_ESTIMATE})"
            if not _same(moment(one, "mean", y), moment(other, "mean", y)):
                return f"{name} is random in eval mode: for one datum it differs from call to call ({QUIET})"
    return None


def _moments(variant: Variant, x: Tensor) -> str | None:
    """P(x | z) has a mean and a variance."""
    with evaluating(variant):
        z = variant.guide.posterior(variant.in_model_units(x)).mean
        law: Any = variant.model.x_given_z(z)
        missing = missing_mean(variant, z)
        if missing is not None:
            return missing
        try:
            variance = law.variance
        except NotImplementedError:
            variance = torch.full((1,), math.nan)
    if not bool(variance.isnan().all()):
        return None
    kind = type(of_coordinate(law)).__name__
    return f"p(x | z), a {kind}, has no variance: guides.Laplace needs one (give the distribution a variance)"


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=CLOSE, atol=CLOSE, equal_nan=True)


def _rows(variant: Variant, x: Tensor) -> str | None:
    """In eval mode neither q(z | x) nor p(x | z) of a row depends on the rows beside it."""
    if _repeats(variant, x) is not None:
        return None  # what is random has a line of its own
    y = variant.in_model_units(x)
    pairs = [slice(row, row + 2) for row in range(0, len(y) - 1, 2)]
    with evaluating(variant):
        q = variant.guide.posterior(y)
        z = q.mean
        whole = variant.model.x_given_z(z).log_prob(y)
        apart = torch.cat([variant.model.x_given_z(z[rows]).log_prob(y[rows]) for rows in pairs])
        parts = [variant.guide.posterior(y[rows]) for rows in pairs]
        codes = torch.cat([part.mean for part in parts])
        densities = torch.cat([part.log_prob(z[rows]) for part, rows in zip(parts, pairs, strict=True)])
        together = q.log_prob(z)
    if not _same(z[: len(codes)], codes):
        if not is_point_mass(q) and _same(together[: len(codes)], densities):
            return f"the mean of q(z | x) is an estimate: for the same density it differs by the batch ({NO_ESTIMATE})"
        return f"q(z | x) of a row depends on {BESIDE}"
    return None if _same(whole[: len(apart)], apart) else f"p(x | z) of a row depends on {BESIDE}"


def _eval_mode(variant: Variant, x: Tensor) -> str | None:
    """In eval mode the model's trace holds p(z) and p(x | z), unweighted, and moves nothing."""
    y = variant.in_model_units(x)
    before = {name: value.clone() for half in variant[:2] for name, value in half.named_buffers()}
    with evaluating(variant):
        trace = poutine.trace(variant.model).get_trace(y)
        z: Any = trace.nodes["z"]["value"]
        found = float(trace.log_prob_sum())
        expected = float(variant.model.prior().log_prob(z).sum() + variant.model.x_given_z(z).log_prob(y).sum())
    if not math.isclose(found, expected, rel_tol=CLOSE, abs_tol=CLOSE):
        return (
            f"log p(x, z) is {found:.6g}, prior and likelihood give {expected:.6g} "
            "(penalties and weights act in training mode alone)"
        )
    for half in variant[:2]:
        for name, value in half.named_buffers():
            if not torch.equal(value, before[name]):
                return f"buffer {name} moves in eval mode (update statistics under self.training alone)"
    return None


def _particles(variant: Variant, x: Tensor) -> str | None:
    """Several draws per datum in one pass give what they give one by one."""
    y = variant.in_model_units(x)
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
        return f"3 draws of {len(y)} data give log densities {shapes} ({FOLD})"
    same = torch.allclose(together, apart, rtol=CLOSE, atol=CLOSE)
    return None if same else f"log p(x | z) of a draw depends on the draws beside it ({FOLD})"


def _stock_svi(variant: Variant, x: Tensor) -> str | None:
    """A step of pyro.infer.SVI moves parameters of both halves."""
    variant.model.advance(1, 1)
    before = copy.deepcopy(variant)
    with pyro.get_param_store().scope():
        SVI(optim=PyroOptim(torch.optim.Adam, {"lr": 1e-2}), **variant._asdict()).step(variant.in_model_units(x))
    for name, old, new in zip(Variant._fields, before[:2], variant[:2], strict=False):
        pairs = [both for both in zip(old.parameters(), new.parameters(), strict=True) if both[0].requires_grad]
        if pairs and all(torch.equal(a, b) for a, b in pairs):
            declared = type(old).__call__ is Half.__call__
            return f"a step of SVI moved no parameter of the {name} ({FLAT if declared else DECLARED})"
    return None


def _save_and_load(variant: Variant, x: Tensor) -> str | None:
    """What training moved comes back from a checkpoint, in a copy that was never trained."""
    y = variant.in_model_units(x)
    for half in variant[:2]:
        for label, module in half.named_modules():
            plain = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
            for name in plain:
                if _matters(variant, module, name, y):
                    return f"{label}.{name} is a plain tensor, which no checkpoint holds ({KEEP})"
    untrained = copy.deepcopy(variant)
    set_mode(variant, training=True)
    with torch.no_grad():
        variant.loss(variant.model, variant.guide)(y)
    with tempfile.TemporaryDirectory() as folder:
        load(save(Path(folder) / "variant", variant), into=untrained)
    same = torch.equal(_log_weights(variant, y), _log_weights(untrained, y))
    return None if same else f"densities differ after loading ({KEEP})"


def _log_weights(variant: Variant, y: Tensor) -> Tensor:
    with evaluating(variant), seeded(0):
        return densities(variant, y, 1).log_weight


def _matters(variant: Variant, module: Any, name: str, y: Tensor) -> bool:
    """Whether densities depend on a tensor that a module holds as an attribute: some in Pyro's flows are idle."""
    value, before = getattr(module, name), _log_weights(variant, y)
    setattr(module, name, None)
    try:
        return not torch.equal(_log_weights(variant, y), before)
    except Exception:  # noqa: BLE001 - whatever a user's part raises without it, it is in use
        return True
    finally:
        setattr(module, name, value)


DECLARED = "derive it from Half, and do not override __call__"
FLAT = "its gradients are all zero: a density that is flat in what a network says, a uniform one, teaches it nothing"
BESIDE = "the rows beside it (no statistics of the batch in eval mode)"
NO_ESTIMATE = "an estimate from draws is no mean: return the closed form, or a mode"
QUIET = "layers that draw, dropout or noise, act under self.training alone"
FOLD = "let networks see [rows, ...], count axes from the right: fold leading axes"
KEEP = "keep state in parameters or buffers"
GATES = ("data", "shapes", "sites", "importance weights", "loss", "rows")
CHECKS: dict[str, tuple[Callable[..., str | None], str]] = {
    "data": (_data, "decode a batch of any size"),
    "shapes": (_shapes, "prior.forward, guide.posterior and likelihood.forward return distributions"),
    **READINGS,
    "loss": (_loss, "the loss is an ELBO with a differentiable_loss: Pyro's RenyiELBO has none, ppl_vae.elbo.IWAE has"),
    "gradients": (_gradients, "the loss has to be differentiable"),
    "repeats": (_repeats, "in eval mode nothing is drawn but z and x"),
    "rows": (_rows, "a batch of any size has to do"),
    "moments": (_moments, "a distribution has a mean and a variance"),
    "eval mode": (_eval_mode, "in eval mode the model is p(x, z)"),
    "particles": (_particles, FOLD),
    "stock svi": (_stock_svi, "train each pair inside pyro.get_param_store().scope()"),
    "save and load": (_save_and_load, KEEP),
}
