"""One training pass over a few data, recorded for the contracts."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro
from torch import Tensor

from ..elbo.reading import traces
from ..models.likelihoods import of_coordinate
from ..models.schedules import Schedule
from ..variant import Variant, set_mode

__all__ = ["PLATE", "RUNS", "Pass", "one_pass"]

SIZE = 10  # the number of data in the whole set for each datum of the pass
PROBE = 3.0  # the KL weight of the pass, because a weight of 1 would not show where it acts
PLATE = "pyro.plate('data', len(x) if size is None else size, subsample=x)"
RUNS = f"forward(x, size) has to run in training mode, with z and x in {PLATE}"


class Pass(NamedTuple):
    """A training pass on a batch out of a larger data set, with every schedule at its end.

    Attributes:
        variant: The pair, in training mode.
        y: The batch [rows, *x_shape], in the model's units.
        size: The number of data in the whole set.
        traces: The trace of the ``"guide"``, and that of the ``"model"``, which is replayed at the guide's z.
        stored: The tensors that the pair put into Pyro's parameter store, by name. The store was empty before.
    """

    variant: Variant
    y: Tensor
    size: int
    traces: dict[str, Any]
    stored: dict[str, Tensor]

    @property
    def owned(self) -> set[int]:
        """The identities of the parameters of the model and of the guide."""
        return {id(parameter) for half in self.variant[:2] for parameter in half.parameters()}

    @property
    def law(self) -> Any:
        """p(x | z) of each coordinate, of batch shape [rows, *x_shape]."""
        return of_coordinate(self.site("model", "x")["fn"])

    def site(self, half: str, name: str) -> Any:
        """Pyro's record of a site, with for example its distribution ``fn``, its value and its scale."""
        return self.traces[half].nodes[name]

    def sites(self) -> Iterator[tuple[str, str, Any]]:
        """Yield (half, name, site) for each site of the guide and of the model, factors included."""
        for half, trace in self.traces.items():
            for name, site in trace.nodes.items():
                if site["type"] == "sample":
                    yield half, name, site


def one_pass(variant: Variant, y: Tensor) -> Pass:
    """Run the guide and the model as a training step does. This moves their statistics.

    Pyro's own checks are off, because the contracts find the same mistakes and name the remedy.
    """
    size = SIZE * len(y)
    set_mode(variant, training=True)
    variant.model.advance(1, 1)
    if isinstance(variant.model.kl_weight, Schedule):
        variant.model.kl_weight.value.fill_(PROBE)
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        guide, model = traces(variant.model, variant.guide, y, size)
        stored: dict[str, Tensor] = dict(pyro.get_param_store().get_state()["params"])
    return Pass(variant, y, size, {"guide": guide, "model": model}, stored)
