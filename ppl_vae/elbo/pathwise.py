"""``Trace_ELBO`` for reparameterised guides, without waiting for the device."""

import math
from typing import Any

from pyro.infer import Trace_ELBO

from ..models.steps import one_step
from .per_datum import whole_number, with_gradients
from .reading import Program

__all__ = ["PathwiseELBO"]


class PathwiseELBO(Trace_ELBO):
    """The loss ``log q(z | x) - log p(x, z)`` with z from the guide: the value and the gradient of ``Trace_ELBO``.

    If every site of the guide is reparameterised, the surrogate loss of ``Trace_ELBO`` is the loss itself. This class
    then leaves out bookkeeping that calls ``.item()`` five times per step. For any other guide it computes the
    surrogate loss of ``Trace_ELBO``.

    References:
        Kingma and Welling, Auto-Encoding Variational Bayes, 2014, eq. 6 (estimator A).
        https://arxiv.org/abs/1312.6114
    """

    target = "elbo"
    formula = "ELBO"

    def __init__(
        self, num_particles: int = 1, max_plate_nesting: float = math.inf, *, vectorize_particles: bool = False
    ) -> None:
        num_particles = whole_number("num_particles", num_particles)
        super().__init__(num_particles, max_plate_nesting, vectorize_particles=vectorize_particles)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """The negative bound in nats, summed over the data set, as a tensor of shape [] with its graph."""
        total: Any = 0.0
        with one_step():
            for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
                total = total + self._of_draw(model_trace, guide_trace)
        return total / self.num_particles  # vectorised draws are in one trace, already summed

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The value of ``differentiable_loss``. Its gradients are added to those of the parameters."""
        return with_gradients(self.differentiable_loss(model, guide, *args, **kwargs))

    def _of_draw(self, model_trace: Any, guide_trace: Any) -> Any:
        """The loss of one pass, with its graph."""
        sites = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
        if all(site["is_observed"] or site["fn"].has_rsample for site in sites):
            return guide_trace.log_prob_sum() - model_trace.log_prob_sum()
        loss, surrogate = self._differentiable_loss_particle(model_trace, guide_trace)
        return loss + surrogate - surrogate.detach()

    def __repr__(self) -> str:
        return f"PathwiseELBO(num_particles={self.num_particles})"
