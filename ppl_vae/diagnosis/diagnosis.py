"""diagnose: can the numbers of a trained variant be trusted, and what can be done if they cannot?"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..contracts import check_support
from ..data.data_set import tensor_of
from ..estimate import Number, mean_over_data
from ..evaluation.annealing import CHAINS
from ..evaluation.lower_bounds import Bounds, all_bounds, bounds_of, draws
from ..evaluation.pareto import k_threshold
from ..guides import Laplace
from ..progress import Progress
from ..streams import chosen
from ..variant import Variant
from .calibration import Ranks, sbc
from .code_usage import Collapse, usage_of
from .grades import THRESHOLDS, Verdict
from .inference_data import labelled
from .noise_verdict import judge_noise
from .predictive import Check, checks_of
from .residuals import DRAWS, NoiseCalibration, noise_of
from .verdicts import judge_codes, judge_data, judge_guide, judge_prior, judge_weights

__all__ = ["Diagnosis", "diagnose"]

ANNEALED = 20  # data that annealed importance sampling is run on
FEWEST_DRAWS = 25  # with fewer draws a tail cannot be fitted; it is also larger than the number of chains
LAPLACE = (
    "The guide is a point mass, which has no bound. The model is therefore judged with another guide, a normal law "
    "around the code with the covariance of the Laplace approximation: a proposal that nobody trained. For the bounds "
    "and their weights this covariance is doubled, because weights are bounded only if the proposal is wider than the "
    "posterior."
)
UNSCORED = (
    " p(z) had no part in the training of this variant, so bounds and samples under p(z) say only how far the codes "
    "happen to be from it."
)


class Rung(NamedTuple):
    """A row of the ladder of bounds.

    Attributes:
        title: The name of the bound.
        value: The mean over data, nats, with its standard error over data.
        monte_carlo: The part of this error that more draws would remove.
        text: The model and the data that the bound is computed from.
    """

    title: str
    value: Number
    monte_carlo: float
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """The results of ``diagnose`` for one variant on held-out data.

    Attributes:
        name: The name of the variant.
        proposal: A sentence on what replaced the guide, or an empty string.
        num_particles: Number of draws K per datum of the bounds.
        bounds: The bounds of each datum.
        ex_post: The bounds from the same draws with the ex-post mixture as the prior, or None if none was given.
        annealed: The bounds of some of the data, drawn at random, with annealed importance sampling, or None if it was
            not asked for.
        ranks: The ranks of simulation-based calibration.
        collapse: The information in the codes.
        checks: The prior-predictive checks, by the name of the prior.
        noise: The noise of p(x | z) compared with the residuals.
        data: The draws, in the form that arviz reads.
    """

    name: str
    proposal: str
    num_particles: int
    bounds: Bounds
    ex_post: Bounds | None
    annealed: Bounds | None
    ranks: Ranks
    collapse: Collapse
    checks: dict[str, list[Check]]
    noise: NoiseCalibration
    data: Any

    @property
    def rows(self) -> int:
        """Number of held-out data."""
        return len(self.bounds.elbo)

    @property
    def ladder(self) -> list[Rung]:
        """Bounds of log p(x), means over data.

        In expectation the ELBO is the lowest. The weighted bound is certainly no larger than the annealed one only if
        there are at least K chains. With fewer chains it can be larger.
        """
        rungs = _rungs(self.bounds, f"K = {self.num_particles}, {self.rows} data")
        if self.ex_post is not None:
            rungs += _rungs(self.ex_post, "the ex-post mixture as p(z): bounds of another model, from the same draws")
        if self.annealed is not None:
            text = f"only {len(self.annealed.elbo)} of the data, drawn at random"
            *others, annealed = _rungs(self.annealed, text)
            chains = f"{text}; {CHAINS} chains, which are fewer than K, so it can be below the weighted bound"
            rungs += [*others, annealed._replace(text=chains)]
        return rungs

    @property
    def verdicts(self) -> list[Verdict]:
        """One verdict per question, in the order of the page."""
        proposed = bool(self.proposal)
        return [
            judge_weights(self.bounds, self.num_particles, proposed=proposed),
            judge_codes(self.collapse, self.noise, self.rows, proposed=proposed),
            judge_guide(self.ranks, proposed=proposed),
            *(judge_data(checks, prior, self.rows) for prior, checks in self.checks.items()),
            judge_noise(self.noise, self.rows),
            judge_prior(self.collapse, self.rows),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{found.grade:<10}{found.title} {found.text}" for found in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """All numbers except the draws, for JSON. Numbers that are not finite are written as text."""
        ranks = {
            "quantities": self.ranks.names,
            "p_values": self.ranks.p_values,
            "off": self.ranks.off,
            "departures": self.ranks.departures,
        }
        found = [{**one._asdict(), "text": one.text, "good": one.good, "answer": one.answer} for one in self.verdicts]
        return _plain(
            {
                "variant": self.name,
                "proposal": self.proposal,
                "rows": self.rows,
                "K": self.num_particles,
                "k_threshold": k_threshold(self.num_particles),
                "verdicts": found,
                "scales": THRESHOLDS,
                "ladder": self.ladder,
                "per_datum": self.bounds,
                "per_datum_ex_post": self.ex_post,
                "per_datum_annealed": self.annealed,
                "collapse": self.collapse,
                "simulation_based_calibration": ranks,
                "prior_predictive": self.checks,
                "noise": self.noise,
            }
        )


def _plain(value: Any) -> Any:
    """The same value without tensors, records and numbers that are not finite."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _rungs(found: Bounds, text: str) -> list[Rung]:
    """One rung for each of the bounds that there are."""
    pairs = {
        "ELBO": (found.elbo, found.elbo_error),
        "importance-weighted": (found.importance_weighted, found.importance_weighted_error),
        "annealed": (found.annealed, found.annealed_error),
    }
    rungs = []
    for title, (value, error) in pairs.items():
        if value is not None and error is not None:
            monte_carlo = float(error.square().sum().sqrt() / len(error))
            rungs.append(Rung(title, mean_over_data(value), monte_carlo, text))
    return rungs


def diagnose(
    variant: Variant,
    x: Any,
    *,
    ex_post: nn.Module | None = None,
    num_particles: int = 1000,
    temperatures: int | None = None,
    simulations: int = 500,
    seed: int = 0,
    progress: bool | str = False,
) -> Diagnosis:
    """Ask whether the numbers of a trained variant can be trusted.

    The variant and the caller's random streams are left as they were.

    Args:
        variant: A trained pair. If its guide is a point mass, the model is judged with ``guides.Laplace`` as the guide.
            The inflation of its covariance is 2 for the bounds, because their weights need a wide proposal. It is 1 for
            everything else, because a covariance that is too large would enlarge the residuals.
        x: Held-out data [rows, *x_shape], in the data's units.
        ex_post: The density that ``ex_post.fit`` returns. If it is given, bounds and predictive checks are also made
            with it as the prior.
        num_particles: Number of draws K per datum of the bounds.
        temperatures: Number of steps of annealed importance sampling, on 20 of the data. By default, it is not run.
        simulations: Number of data that the model draws to test the calibration of its guide.
        seed: Seed of all draws.
        progress: Whether to show how much is done and the time left. A string is used as the label.

    Returns:
        All numbers with their verdicts; see ``Diagnosis``.

    Raises:
        ValueError: If x has the wrong shape, holds NaN, lies outside the support of the likelihood, or has fewer than 2
            rows; or if ``num_particles`` is too small to fit a tail.
    """
    x = tensor_of(x)
    if len(x) < 2:
        raise ValueError(f"diagnose needs at least 2 data for its standard errors, got {len(x)}")
    if num_particles < FEWEST_DRAWS:
        raise ValueError(
            f"num_particles must be at least {FEWEST_DRAWS} for a tail index, got {num_particles!r}: try 1000"
        )
    y = variant.in_model_units(x)
    check_support(variant, y, x)
    judged, proposing, proposal = _judged(variant)
    priors = {"p(z)": None} if ex_post is None else {"p(z)": None, "the ex-post mixture": ex_post}
    rows = len(x)
    steps = {
        "draws": Step(num_particles * rows, lambda: draws(proposing, y, num_particles, seed=seed)),
        "collapse": Step(4 * rows, lambda: usage_of(judged, y, seed)),
        "ranks": Step(100 * simulations, lambda: sbc(judged, simulations=simulations, seed=seed)),
        "checks": Step(
            400 * rows * len(priors),
            lambda: {name: checks_of(judged, y, prior, seed=seed) for name, prior in priors.items()},
        ),
        "noise": Step(100 * rows, lambda: noise_of(judged, y, draws(judged, y, DRAWS, seed=seed).z, seed)),
    }
    if temperatures is not None:
        some = y[chosen(rows, ANNEALED, seed)]
        steps["annealed"] = Step(
            400 * temperatures * len(some),
            lambda: all_bounds(proposing, some, num_particles, temperatures=temperatures, seed=seed),
        )
    label = progress if isinstance(progress, str) else variant.name
    found = _results_of(steps, label, shown=bool(progress))
    drawn = found["draws"]
    return Diagnosis(
        name=variant.name,
        proposal=proposal,
        num_particles=num_particles,
        bounds=bounds_of(drawn),
        ex_post=None if ex_post is None else bounds_of(drawn.under(ex_post)),
        annealed=found.get("annealed"),
        ranks=found["ranks"],
        collapse=found["collapse"],
        checks=found["checks"],
        noise=found["noise"],
        data=labelled(variant, x, drawn, seed=seed),
    )


def _judged(variant: Variant) -> tuple[Variant, Variant, str]:
    """Return the pair to judge, the pair whose guide draws for the bounds, and a text if the guide was replaced."""
    if variant.has_bound:
        return variant, variant, ""
    proposal = LAPLACE if variant.codes_are_scored else LAPLACE + UNSCORED
    judged = variant._replace(guide=Laplace(variant.guide, variant.model, inflation=1.0))
    proposing = variant._replace(guide=Laplace(variant.guide, variant.model, inflation=2.0))
    return judged, proposing, proposal


class Step(NamedTuple):
    """A part of a diagnosis: the number of decodings that it needs, and a function that does it."""

    work: int
    do: Callable[[], Any]


def _results_of(steps: dict[str, Step], label: str, *, shown: bool) -> dict[str, Any]:
    """Take the steps one by one. The time left is estimated from their work."""
    total = sum(step.work for step in steps.values())
    found, done = {}, 0
    with Progress(label, total, shown=shown, unit="decoding") as bar:
        for name, step in steps.items():
            found[name] = step.do()
            done += step.work
            bar.advance(done, name)
    return found
