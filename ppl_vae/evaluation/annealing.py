"""Bounds of log p(x) by annealed importance sampling, and a bracket of it for data that the model drew itself."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from ..elbo.importance import log_mean
from ..estimate import standard_error
from ..progress import Progress
from ..streams import seeded
from ..variant import Variant, evaluating, log_jacobian, needs_density, needs_prior_density
from .pareto import effective_sample_size, log_mean_error

__all__ = ["Annealed", "Bracket", "annealed", "annealed_weights", "bracket", "log_joint"]

ACCEPTANCE = 0.65  # the share of accepted proposals that the pilot run aims at
GAIN = 0.5  # how far a log step size moves for each unit of acceptance above that share
DRAWS = 100  # draws from the guide that estimate its standard deviations
CHAINS = 16  # the default number of independent runs per datum
DELTA = 4.0  # the sigmoid that sets the temperatures ends at -DELTA and DELTA


class Annealed(NamedTuple):
    """Annealed importance weights in the data's units. Their mean has expectation p(x), for any number of steps.

    Attributes:
        log_weight: The natural logarithms of the weights, [chains, rows].
        acceptance: The mean probability that a proposal was accepted, [rows]. The pilot run aims at 0.65.
    """

    log_weight: Tensor
    acceptance: Tensor

    @property
    def bound(self) -> Tensor:
        """The log of the mean weight over chains, [rows]. In expectation it lies between ``mean`` and log p(x)."""
        return log_mean(self.log_weight)

    @property
    def error(self) -> Tensor:
        """The Monte Carlo standard error of ``bound``, [rows], by the delta method.

        It is meaningless if the effective sample size is small.
        """
        return log_mean_error(self.log_weight.mT)

    @property
    def mean(self) -> Tensor:
        """The mean log weight over chains, [rows].

        In expectation it is below log p(x), to first order by half the variance of the log weights.
        """
        return self.log_weight.mean(0)

    @property
    def mean_error(self) -> Tensor:
        """The Monte Carlo standard error of ``mean``, [rows]."""
        return standard_error(self.log_weight)

    @property
    def effective_sample_size(self) -> Tensor:
        """The effective sample size of the weights, [rows], from 1 to ``chains``."""
        return effective_sample_size(self.log_weight.mT)


class Bracket(NamedTuple):
    """Two bounds with log p(x) between them, for data drawn from the model, nats per datum, in the data's units.

    The reverse chains of a datum all start from its own code, the only known exact draw from p(z | x). These chains are
    not independent, so the error of the gap is over data and not over chains.

    Attributes:
        x: The data, [rows, *x_shape].
        forward: The chains from the guide to the posterior.
        reverse: The chains from the posterior to the guide. The mean reciprocal of their weights has expectation
            1 / p(x).
    """

    x: Tensor
    forward: Annealed
    reverse: Annealed

    @property
    def lower(self) -> Tensor:
        """``E lower <= log p(x)``, [rows]."""
        return self.forward.bound

    @property
    def upper(self) -> Tensor:
        """``E upper >= log p(x)``, [rows]."""
        return -log_mean(-self.reverse.log_weight)

    @property
    def gap(self) -> tuple[float, float]:
        """The mean of ``upper - lower`` over data, and its standard error.

        In expectation, neither bound is further from log p(x) than this mean.
        """
        difference = self.upper - self.lower
        return float(difference.mean()), float(standard_error(difference))


def log_joint(variant: Variant, y: Tensor, z: Tensor) -> Tensor:
    """Log p(y, z), [..., rows], for y [rows, *x_shape] in the model's units and codes z [..., rows, z_dim]."""
    value: Tensor = variant.model.prior().log_prob(z) + variant.model.x_given_z(z).log_prob(y)
    return value


def annealed(
    variant: Variant,
    x: Any,
    *,
    chains: int = CHAINS,
    temperatures: int = 100,
    leapfrogs: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Annealed:
    """Bound log p(x) by chains that go from q(z | x) to p(z | x) along ``q**(1 - beta) p(x, .)**beta``.

    At each temperature z moves by one trajectory of Hamiltonian Monte Carlo, in units of the guide's standard
    deviations. There is one step size per datum and temperature. It comes from a pilot run and is then frozen,
    because moves that adapt their own step size would not leave the path invariant. Gradients are with respect to z
    alone. The cost, with the pilot run, is about ``2 * chains * temperatures * leapfrogs`` decodings per datum and
    their gradients.

    Args:
        variant: A pair in which z is unconstrained and the guide has a density.
        x: Data [rows, *x_shape] in their own units: an array, a tensor or a data frame. ``Data`` stands for its test
            part.
        chains: The number of independent runs per datum.
        temperatures: The number of steps from the guide to the posterior. More steps give a tighter bound. One step
            gives the importance-weighted bound with ``chains`` draws.
        leapfrogs: The number of steps of a trajectory.
        seed: Seed of every draw. The draws of all rows come from one stream. The caller's random streams are left as
            they were.
        progress: Whether to show progress.

    Raises:
        ValueError: If the guide is a point mass, log p(z) is an estimate, a number is too small, or x cannot be used.

    References:
        Neal, Annealed Importance Sampling, 2001, eq. 11. https://arxiv.org/abs/physics/9803008
        Wu et al., On the Quantitative Analysis of Decoder-Based Generative Models, 2017. https://arxiv.org/abs/1611.04273
    """
    y = variant.admit(x)
    return annealed_weights(
        variant, y, chains=chains, temperatures=temperatures, leapfrogs=leapfrogs, seed=seed, progress=progress
    )


def annealed_weights(
    variant: Variant,
    y: Tensor,
    *,
    chains: int = CHAINS,
    temperatures: int = 100,
    leapfrogs: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Annealed:
    """Compute ``annealed`` for data y [rows, *x_shape] in the model's units. The weights are in the data's units."""
    _check(variant, chains, temperatures, leapfrogs)
    parts = y.split(max(1, variant.at_once // chains))
    with evaluating(variant), seeded(seed), _watched(2 * len(parts) * temperatures, shown=progress) as tick:
        runs = []
        for y in parts:
            path = AnnealedPath(variant, y, temperatures, leapfrogs, tick)
            path.tune(chains)
            runs.append(path.forward(chains))
        return _joined(variant, runs)


def bracket(
    variant: Variant,
    *,
    rows: int = 100,
    chains: int = CHAINS,
    temperatures: int = 100,
    leapfrogs: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Bracket:
    """Bound log p(x) from below and above, for data drawn from the model (bidirectional Monte Carlo).

    A datum is drawn together with its code, which is then an exact draw from p(z | x). From this code the same moves
    run backwards. The gap shows how far ``annealed`` can be from log p(x) with these settings, on data that the model
    draws.

    Args:
        variant: As in ``annealed``.
        rows: The number of data to draw.
        chains, temperatures, leapfrogs, seed, progress: As in ``annealed``.

    Raises:
        ValueError: If the guide is a point mass, log p(z) is an estimate, ``rows`` is below 2, or another number is too
            small.

    References:
        Grosse, Ghahramani and Adams, Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, 2015.
        https://arxiv.org/abs/1511.02543
    """
    _check(variant, chains, temperatures, leapfrogs)
    if rows < 2:
        raise ValueError(f"rows must be at least 2, for an error over data, got {rows!r}")
    data, forward, reverse = [], [], []
    with evaluating(variant), seeded(seed):
        parts = variant.model.prior().sample((rows,)).split(max(1, variant.at_once // chains))
        with _watched(3 * len(parts) * temperatures, shown=progress) as tick:
            for z in parts:
                y = variant.model.x_given_z(z).sample().to(z)  # some distributions draw integers
                path = AnnealedPath(variant, y, temperatures, leapfrogs, tick)
                path.tune(chains)
                data.append(variant.model.scale.inverse(y))
                forward.append(path.forward(chains))
                reverse.append(path.reverse(z.expand(chains, *z.shape)))
        return Bracket(torch.cat(data), _joined(variant, forward), _joined(variant, reverse))


def _check(variant: Variant, chains: int, temperatures: int, leapfrogs: int) -> None:
    needs_density(variant)
    needs_prior_density(variant, "annealed importance sampling")
    if chains < 2 or temperatures < 1 or leapfrogs < 1:
        wanted = "chains must be at least 2, temperatures and leapfrogs at least 1"
        raise ValueError(f"{wanted}, got {chains!r}, {temperatures!r} and {leapfrogs!r}")


def _joined(variant: Variant, runs: list[Annealed]) -> Annealed:
    """Join the runs of all chunks, and convert their weights to the data's units."""
    log_weight = torch.cat([run.log_weight for run in runs], 1) + log_jacobian(variant)
    return Annealed(log_weight, torch.cat([run.acceptance for run in runs]))


@contextmanager
def _watched(total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Show a bar of ``total`` temperatures, and yield the function to call after each of them."""
    counter = count(1)
    fifth = max(1, total // 5)
    with Progress("annealing", total, shown=shown, unit="temperature") as bar:

        def tick() -> None:
            done = next(counter)
            bar.advance(done, line=done % fifth == 0)

        yield tick


class State(NamedTuple):
    """Codes z [chains, rows, z_dim] with log p(y, z) and log q(z | y), [chains, rows], and their gradients in z."""

    z: Tensor
    log_p: Tensor
    log_q: Tensor
    slope_p: Tensor
    slope_q: Tensor


class AnnealedPath:
    """The path ``f_t = q**(1 - beta_t) p(y, .)**beta_t``, t = 0 to T, for y [rows, *x_shape] in the model's units.

    ``beta_t = (s(DELTA (2 t / T - 1)) - s(-DELTA)) / (s(DELTA) - s(-DELTA))`` with the sigmoid s (Wu et al., 2017). A
    run consists of T increments of the log weight, with moves between them that leave f_t invariant. A run can go
    backwards too.
    """

    def __init__(
        self, variant: Variant, y: Tensor, temperatures: int, leapfrogs: int, tick: Callable[[], None] = lambda: None
    ) -> None:
        self.variant, self.y, self.leapfrogs, self.tick = variant, y, leapfrogs, tick
        self.guide = variant.guide.posterior(y)
        self.width = self.guide.sample((DRAWS,)).std(0)
        s = torch.sigmoid(DELTA * torch.linspace(-1, 1, temperatures + 1, dtype=torch.float64))
        self.betas: list[float] = ((s - s[0]) / (s[-1] - s[0])).tolist()
        self.step_size = self.width.new_full((temperatures + 1, len(y)), self.width.shape[-1] ** -0.25)

    def tune(self, chains: int) -> None:
        """Set the step sizes in a pilot run. Its chains are not used."""
        self._run(self.guide.sample((chains,)), upwards=True, pilot=True)

    def forward(self, chains: int) -> Annealed:
        """Run from draws of the guide to the posterior."""
        return self._run(self.guide.sample((chains,)), upwards=True)

    def reverse(self, z: Tensor) -> Annealed:
        """Run from draws z of the posterior to the guide. Each move is reversible, so the same moves are used."""
        return self._run(z, upwards=False)

    def _run(self, z: Tensor, *, upwards: bool, pilot: bool = False) -> Annealed:
        last = len(self.betas) - 1
        state = self.at(z)
        log_weight, acceptance = torch.zeros_like(state.log_p), torch.zeros_like(state.log_p[0])
        for t in range(1, last + 1) if upwards else range(last, 0, -1):
            log_weight = log_weight + (self.betas[t] - self.betas[t - 1]) * (state.log_p - state.log_q)
            between = t if upwards else t - 1
            if 0 < between < last:
                state, rate = self.move(state, between)
                acceptance = acceptance + rate / (last - 1)
                if pilot:  # the next temperature starts where this one ends
                    self.step_size[between : between + 2] = self.step_size[between] * (GAIN * (rate - ACCEPTANCE)).exp()
            self.tick()
        return Annealed(log_weight, acceptance)

    def at(self, z: Tensor) -> State:
        """The densities and gradients at z, for as many chains at once as the networks take."""
        parts = [self._at(some) for some in z.split(max(1, self.variant.at_once // z.shape[1]))]
        return parts[0] if len(parts) == 1 else State(*map(torch.cat, zip(*parts, strict=True)))

    def _at(self, z: Tensor) -> State:
        with torch.enable_grad(), pyro.validation_enabled(False):
            z = z.detach().requires_grad_()
            values = log_joint(self.variant, self.y, z), self.guide.log_prob(z)
            slopes = [torch.autograd.grad(value.sum(), z)[0] for value in values]
        return State(z.detach(), *(value.detach() for value in values), *slopes)

    def move(self, state: State, t: int) -> tuple[State, Tensor]:
        """Move z by one Hamiltonian trajectory, which leaves f_t invariant (Neal, 2011, section 5.3.2).

        Returns:
            The state at the end of the trajectory, or at its start where the end was rejected, and the mean acceptance
            probability, [rows].
        """
        jitter = 0.8 + 0.4 * torch.rand_like(state.log_p)  # a fixed length could return to its start each time
        beta, step = self.betas[t], (jitter * self.step_size[t]).unsqueeze(-1) * self.width

        def log_density(state: State) -> Tensor:
            return (1 - beta) * state.log_q + beta * state.log_p

        def kick(state: State) -> Tensor:
            return step / 2 * ((1 - beta) * state.slope_q + beta * state.slope_p)

        there, start = state, torch.randn_like(state.z)
        momentum = start
        for _ in range(self.leapfrogs):
            momentum = momentum + kick(there)
            there = self.at(there.z + step * momentum)
            momentum = momentum + kick(there)
        kinetic = (start.square() - momentum.square()).sum(-1) / 2
        log_ratio = (log_density(there) - log_density(state) + kinetic).nan_to_num(nan=-math.inf)
        accepted = log_ratio > torch.rand_like(log_ratio).log()
        mixed = [
            torch.where(accepted.view(*accepted.shape, *[1] * (new.ndim - 2)), new, old)
            for new, old in zip(there, state, strict=True)
        ]
        return State(*mixed), log_ratio.exp().clamp_max(1).mean(0)
