"""Trace_ELBO for reparameterised guides, without reading a value back from the device."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

__all__ = ["PathwiseELBO"]

Program = Callable[..., Any]


class PathwiseELBO(Trace_ELBO):
    """``log q(z | x) - log p(x, z)``, z drawn by the guide: the value and the gradient of ``Trace_ELBO``.

    When every site of the guide is reparameterised, the surrogate loss of ``Trace_ELBO`` is the loss itself; what is
    left out is bookkeeping that calls ``.item()`` five times a step. Any other guide goes the long way.

    References:
        Kingma and Welling, Auto-Encoding Variational Bayes, 2014, eq. 6 (estimator A).
        https://arxiv.org/abs/1312.6114
    """

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The negative bound, in nats summed over the data set: a tensor of shape [] with its graph."""
        losses: list[Tensor] = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            sites = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
            if not all(site["is_observed"] or site["fn"].has_rsample for site in sites):
                return super().differentiable_loss(model, guide, *args, **kwargs)
            losses.append(guide_trace.log_prob_sum() - model_trace.log_prob_sum())
        return torch.stack(losses).sum() / self.num_particles  # vectorised draws stand in one trace
