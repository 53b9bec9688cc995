"""Contracts on the data and on the shapes of the distributions, on which the other contracts rely."""

from typing import Any

from .registry import Contract, Trial, contract
from .support import check_support

__all__ = ["SHAPES"]

SHAPES: list[Contract] = []
EVENT = "makes the coordinates an event: .to_event(1)"


@contract(SHAPES, "data", remedy="the decoder has to take a batch of any size", gate=True)
def data_support(trial: Trial) -> str | None:
    """The data lie in the support of the likelihood."""
    if not trial.variant.model.prior().event_shape:
        return None  # the contract "shapes" reports this
    try:
        check_support(trial.variant, trial.y, trial.x)
    except ValueError as error:
        return str(error)
    return None


@contract(
    SHAPES,
    "shapes",
    remedy="prior.forward, guide.posterior and likelihood.forward return distributions",
    gate=True,
)
def distribution_shapes(trial: Trial) -> str | None:
    """p(z), q(z | x) and p(x | z) have the right batch shapes and event shapes."""
    variant, rows = trial.variant, len(trial.y)
    prior, q = variant.model.prior(), variant.guide.posterior(trial.y)
    code_shape = (variant.z_dim,)
    failure = _wrong_shape("p(z)", prior, (), code_shape, f"prior.forward {EVENT}")
    failure = failure or _wrong_shape("q(z | x)", q, (rows,), code_shape, f"guide.posterior {EVENT}")
    if failure is not None:
        return failure
    try:
        code = q.mean
    except NotImplementedError:
        return "q(z | x) has no mean, and the code of a datum is its mean (give the distribution a mean)"
    remedy = "likelihood.forward returns batch shape [..., *x_shape] and scalar events: no to_event"
    return _wrong_shape("p(x | z)", variant.model.x_given_z(code), (rows,), variant.model.x_shape, remedy)


def _wrong_shape(name: str, law: Any, batch: tuple[int, ...], event: tuple[int, ...], remedy: str) -> str | None:
    batch_found, event_found = tuple(law.batch_shape), tuple(law.event_shape)
    if (batch_found, event_found) == (batch, event):
        return None
    return (
        f"{name} has batch shape {list(batch_found)}, event shape {list(event_found)}, wanted {list(batch)} and "
        f"{list(event)} ({remedy})"
    )
