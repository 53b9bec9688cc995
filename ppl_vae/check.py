"""The conformance suite: what every pair of ours is held to, for a user's own likelihood, prior, guide or penalty."""

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor

from .bounds import terms
from .checkpoint import load, save
from .data import check_support, tensor_of
from .seeding import seeded
from .variant import Variant, evaluating

__all__ = ["check"]

Check = Callable[[Variant, Tensor], str | None]


def check(variant: Variant, x: Any) -> list[str]:
    """Hold a pair to the contracts that every number here rests on.

    Args:
        variant: The pair; a copy is tried, it is left as it was.
        x: At least 4 data [rows, *x_shape], in the data's units.

    Returns:
        One line a failure, with the remedy; empty when all hold.

    Example:
        >>> import torch
        >>> from ppl_vae import VARIANTS, check
        >>> check(VARIANTS["sigma_vae"](x_shape=(6,), z_dim=2), torch.randn(8, 6))
        []
    """
    x = tensor_of(x)
    if len(x) < 4:
        raise ValueError(f"check needs at least 4 data to split, got {len(x)}")
    try:
        y = variant.in_model_units(x)
        check_support(variant, y)
    except (ValueError, RuntimeError, TypeError) as error:
        return [f"data: {error}"]
    failures = []
    for test in CHECKS:
        with seeded(0), warnings.catch_warnings(), pyro.validation_enabled(True):
            warnings.simplefilter("error", UserWarning)
            try:
                failure = test(copy.deepcopy(variant), y)
            except Exception as error:  # noqa: BLE001 - a user's part may raise anything, and it is what is reported
                failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        if failure is not None:
            failures.append(f"{test.__name__.removeprefix('_').replace('_', ' ')}: {failure}")
        if failure is not None and test is _shapes:
            break  # nothing that follows would say more
    return failures


def _shapes(variant: Variant, y: Tensor) -> str | None:
    """Event and batch shapes of q(z | x), p(z) and p(x | z)."""
    q = variant.guide.posterior(y)
    wanted = [
        ("q(z | x)", q, (len(y),), (variant.z_dim,), "guide.posterior: .to_event(1) makes coordinates an event"),
        ("p(z)", variant.model.prior(), (), (variant.z_dim,), "prior.forward: .to_event(1) makes coordinates an event"),
        ("p(x | z)", variant.model.x_given_z(q.mean), (len(y),), variant.model.x_shape,
         "likelihood.forward returns batch shape [..., *x_shape], one scalar event a coordinate; no to_event"),
    ]  # fmt: skip
    for name, law, batch, event, remedy in wanted:
        if tuple(law.batch_shape) != batch or tuple(law.event_shape) != event:
            got = f"batch shape {list(law.batch_shape)}, event shape {list(law.event_shape)}"
            return f"{name} has {got}, wanted {list(batch)} and {list(event)} ({remedy})"
    return None


def _loss(variant: Variant, y: Tensor, size: int | None = None) -> Tensor:
    loss: Tensor = variant.loss(variant.model, variant.guide)(y, size)
    return loss


def _finite_loss_and_gradients(variant: Variant, y: Tensor) -> str | None:
    """The loss is finite, and every parameter gets a finite gradient once all schedules are open."""
    variant.model.train()
    variant.guide.train()
    variant.model.advance(1, 1)
    loss = _loss(variant, y)
    if loss.ndim != 0 or not bool(loss.isfinite()):
        return f"the loss is {loss.detach()}, wanted one finite number (check log_prob at these data, and the scales)"
    loss.backward()
    for half in variant[:2]:
        for name, parameter in half.named_parameters():
            label = f"{type(half).__name__}.{name}"
            if parameter.requires_grad and parameter.grad is None:
                return f"{label} gets no gradient (it is not used in forward: use it, or delete it)"
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"{label} gets a gradient that is not finite (bound the scales away from 0)"
    return None


def _batch_splits(variant: Variant, y: Tensor) -> str | None:
    """In eval mode the log density of a batch is the sum of its rows', whatever stands beside them."""
    with evaluating(variant):
        whole = terms(variant, y, 1)
        half = len(y) // 2
        z = variant.guide.posterior(y).mean
        parts = [variant.model.x_given_z(z[rows]).log_prob(y[rows]) for rows in (slice(half), slice(half, None))]
        together = variant.model.x_given_z(z).log_prob(y)
    if whole.likelihood.shape != (1, len(y)):
        return f"p(x | z) gives {list(whole.likelihood.shape)} log densities for {len(y)} data (keep one a datum)"
    if not torch.allclose(together, torch.cat(parts), rtol=1e-4, atol=1e-4):
        return "log p(x | z) of a row depends on the rows beside it (no statistics of the batch in eval mode)"
    return None


def _counted_once(variant: Variant, y: Tensor) -> str | None:
    """Sites in the plate count size / batch times each, factors outside it once."""
    variant.model.train()
    variant.guide.train()
    size = 10 * len(y)
    guide = poutine.trace(variant.guide).get_trace(y, size)
    model = poutine.trace(poutine.replay(variant.model, trace=guide)).get_trace(y, size)
    for trace in (guide, model):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or poutine.util.site_is_subsample(site):
                continue
            inside = any(frame.name == "data" for frame in site["cond_indep_stack"])
            scale = float(site["scale"]) / (variant.kl_weight if name == "z" and variant.kl_weight else 1.0)
            if name in ("z", "x") and not inside:
                return f"site {name!r} stands outside the plate 'data' (open it: pyro.plate('data', size, subsample=x))"
            if abs(scale - (10.0 if inside else 1.0)) > 1e-4:
                return f"site {name!r} counts {scale:g} times, wanted {10 if inside else 1} (pass size to the plate)"
    return None


def _eval_mode_is_the_density(variant: Variant, y: Tensor) -> str | None:
    """In eval mode the model's trace holds p(z) and p(x | z), unweighted, and moves nothing."""
    before = {name: value.clone() for half in variant[:2] for name, value in half.named_buffers()}
    with evaluating(variant):
        trace = poutine.trace(variant.model).get_trace(y)
        trace.compute_log_prob()
        z: Any = trace.nodes["z"]["value"]
        joint = torch.as_tensor(trace.log_prob_sum())
        expected = variant.model.prior().log_prob(z).sum() + variant.model.x_given_z(z).log_prob(y).sum()
    if not torch.allclose(joint, expected, rtol=1e-4):
        found = f"log p(x, z) is {float(joint):.6g}, prior and likelihood give {float(expected):.6g}"
        return f"{found} (penalties act in training mode alone)"
    for half in variant[:2]:
        for name, value in half.named_buffers():
            if not torch.equal(value, before[name]):
                return f"buffer {name} moves in eval mode (update statistics under self.training alone)"
    return None


def _particles(variant: Variant, y: Tensor) -> str | None:
    """Several draws a datum in one pass: networks see folded rows."""
    with evaluating(variant):
        several = terms(variant, y, 3)
        shapes = [tuple(part.shape) for part in several]
    if shapes != [(3, len(y))] * 3:
        return f"3 draws of {len(y)} data give log densities {shapes} (let networks see [rows, ...]: fold leading axes)"
    return None


def _stock_svi(variant: Variant, y: Tensor) -> str | None:
    """A step of pyro.infer.SVI moves every parameter that has a gradient."""
    variant.model.advance(1, 1)
    before = [p.detach().clone() for half in variant[:2] for p in half.parameters()]
    with pyro.get_param_store().scope():
        SVI(optim=PyroOptim(torch.optim.Adam, {"lr": 1e-2}), **variant._asdict()).step(y)
    after = [p for half in variant[:2] for p in half.parameters()]
    if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        return "a step of SVI moved no parameter (derive the model and the guide from Half, and call forward)"
    return None


def _save_and_load(variant: Variant, y: Tensor) -> str | None:
    """What is saved and loaded into the same parts gives the same densities."""
    with tempfile.TemporaryDirectory() as folder, evaluating(variant):
        with seeded(0):
            before = terms(variant, y, 1).log_weight
        saved = save(Path(folder) / "variant", variant)
        for half in variant[:2]:
            for tensor in half.state_dict().values():
                tensor.zero_()
        load(saved, into=variant)
        with seeded(0):
            after = terms(variant, y, 1).log_weight
    return (
        None if torch.equal(before, after) else "densities differ after loading (keep state in parameters or buffers)"
    )


CHECKS: list[Check] = [
    _shapes,
    _finite_loss_and_gradients,
    _batch_splits,
    _counted_once,
    _eval_mode_is_the_density,
    _particles,
    _stock_svi,
    _save_and_load,
]
