"""diagnose: whether the numbers of a run can be trusted, in plain words, with what to do where they cannot."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..contracts.support import check_support
from ..data.data_set import tensor_of
from ..estimate import Number, mean_over_data
from ..evaluation.annealing import CHAINS
from ..evaluation.lower_bounds import Bounds, bounds, bounds_of, draws
from ..evaluation.pareto import k_threshold
from ..files import writable, write_text
from ..guides import Laplace
from ..progress import Progress
from ..report.table import printed
from ..report.templates import filled_template
from ..streams import chosen
from ..variant import Variant
from . import plots
from .calibration import FALSE_ALARMS, Ranks, sbc
from .code_usage import Collapse, collapse
from .inference_data import labelled, write as write_draws
from .predictive import CENTRAL, Check, NoiseCalibration, noise_calibration, prior_predictive
from .verdicts import SCALES, Verdict, verdicts

__all__ = ["Diagnosis", "diagnose", "page", "write"]

ANNEALED = 20  # data that annealed importance sampling is run on
FEWEST = 25  # draws below which a tail cannot be fitted; more than there are chains
LAPLACE = (
    "The guide is a point mass, which has no bound. Judged here is the same model with another guide, a normal around "
    "the code with the covariance of the Laplace approximation: a proposal that nobody trained. For the bounds and "
    "their weights its covariance is twice as large, since weights stay bounded only under a proposal that is wider "
    "than the posterior."
)
UNSCORED = " p(z) had no part in its training: bounds and samples under it say how far codes are from it by chance."
Step = tuple[int, Callable[[], Any]]  # work, in decodings, and how it is done


class Rung(NamedTuple):
    """A row of the ladder of bounds: mean over data, the error of that, and the part of it that is Monte Carlo's."""

    title: str
    value: Number
    monte_carlo: float
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found of one variant on held-out data.

    Attributes:
        name: Of the variant.
        proposal: What the guide was replaced by, else "".
        num_particles: Draws K a datum of the bounds.
        bounds: Of each datum.
        ex_post: The same draws under the ex-post mixture as the prior, where one was given.
        annealed: On some of the data, drawn at random, with annealed importance sampling, where it was asked for.
        ranks: Of simulation-based calibration.
        collapse: What the codes carry.
        checks: Prior-predictive checks, by the name of the prior.
        noise: Sigma against residuals.
        data: Draws for arviz.
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
        """Held-out data."""
        return len(self.bounds.elbo)

    @property
    def ladder(self) -> list[Rung]:
        """Bounds of log p(x), means over data.

        In expectation the ELBO is no larger than any other. The weighted bound is no larger than the annealed one for
        certain only where there are at least K chains: with fewer it can be the larger.
        """
        rungs = _rungs(self.bounds, f"K = {self.num_particles}, {self.rows} data")
        if self.ex_post is not None:
            rungs += _rungs(self.ex_post, "the ex-post mixture as p(z): bounds of another model, same draws")
        if self.annealed is not None:
            text = f"{len(self.annealed.elbo)} of the data alone, drawn at random"
            *below, annealed = _rungs(self.annealed, text)
            fewer = f"{text}; {CHAINS} chains, fewer than K, so that it can be below the weighted bound"
            rungs += [*below, annealed._replace(text=fewer)]
        return rungs

    @property
    def verdicts(self) -> list[Verdict]:
        """One verdict per question, in the order of the page."""
        return verdicts(self)

    def __str__(self) -> str:
        return "\n".join(f"{found.grade:<10}{found.title} {found.text}" for found in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """All numbers but the draws, for JSON; what is not finite is written out."""
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
                "scales": SCALES,
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
    pairs = {
        "ELBO": (found.elbo, found.elbo_error),
        "importance-weighted": (found.importance_weighted, found.importance_weighted_error),
        "annealed": (found.annealed, found.annealed_error),
    }
    return [
        Rung(title, mean_over_data(value), float(error.square().sum().sqrt() / len(error)), text)
        for title, (value, error) in pairs.items()
        if value is not None and error is not None
    ]


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
    """Ask of a trained variant what its numbers are worth. It is left as it was, and so are random streams.

    Args:
        variant: A trained pair; of a point mass the model is judged, with ``guides.Laplace`` for its guide. Its
            inflation is 2 for the bounds, whose weights need a wide proposal, and 1 for everything else: a covariance
            that is too large would add to the residuals.
        x: Held-out data [rows, *x_shape], in the data's units.
        ex_post: The density ``ex_post.fit`` returns: bounds and predictive checks under it too.
        num_particles: Draws K per datum of the bounds.
        temperatures: Steps of annealed importance sampling on 20 of the data; left out unless given.
        simulations: Data that the model draws for the calibration of its guide.
        seed: Of every draw.
        progress: Show how much is done and the time left, under a label of its own if it is a string.

    Raises:
        ValueError: If x has the wrong shape, holds NaN, lies outside the likelihood's support, or has under 2 rows; or
            ``num_particles`` is too small for a tail.
    """
    x = tensor_of(x)
    if len(x) < 2:
        raise ValueError(f"diagnose needs at least 2 data for its standard errors, got {len(x)}")
    if num_particles < FEWEST:
        raise ValueError(f"num_particles must be at least {FEWEST} for a tail index, got {num_particles!r}: try 1000")
    check_support(variant, variant.in_model_units(x), x)
    steps = _steps(variant, x, ex_post, num_particles, temperatures, simulations, seed)
    label = progress if isinstance(progress, str) else variant.name
    found = _run(steps, label, shown=bool(progress))
    drawn = found.pop("draws")
    return Diagnosis(
        name=variant.name,
        proposal="" if variant.has_bound else LAPLACE + UNSCORED * (not variant.codes_are_scored),
        num_particles=num_particles,
        bounds=bounds_of(drawn),
        ex_post=None if ex_post is None else bounds_of(drawn.under(ex_post)),
        data=labelled(variant, x, drawn, seed=seed),
        **found,
    )


def _steps(
    variant: Variant,
    x: Tensor,
    ex_post: nn.Module | None,
    num_particles: int,
    temperatures: int | None,
    simulations: int,
    seed: int,
) -> dict[str, Step]:
    """What is to be done, by the names of what is found."""
    priors = {"p(z)": None} | ({} if ex_post is None else {"the ex-post mixture": ex_post})
    variant, proposal = (variant, variant) if variant.has_bound else (_around(variant, 1.0), _around(variant, 2.0))
    steps: dict[str, Step] = {
        "draws": (num_particles * len(x), lambda: draws(proposal, variant.in_model_units(x), num_particles, seed=seed)),
        "annealed": (0, lambda: None),
        "collapse": (4 * len(x), lambda: collapse(variant, x, seed=seed)),
        "ranks": (100 * simulations, lambda: sbc(variant, simulations=simulations, seed=seed)),
        "checks": (
            400 * len(x) * len(priors),
            lambda: {name: prior_predictive(variant, x, ex_post=prior, seed=seed) for name, prior in priors.items()},
        ),
        "noise": (100 * len(x), lambda: noise_calibration(variant, x, seed=seed)),
    }
    if temperatures is not None:
        some = x[chosen(len(x), ANNEALED, seed)]
        work = 400 * temperatures * len(some)
        steps["annealed"] = (
            work,
            lambda: bounds(proposal, some, num_particles, temperatures=temperatures, seed=seed),
        )
    return steps


def _around(variant: Variant, inflation: float) -> Variant:
    """The pair with the Laplace approximation for its guide, its covariance times ``inflation``."""
    return variant._replace(guide=Laplace(variant.guide, variant.model, inflation))


def _run(steps: dict[str, Step], label: str, *, shown: bool) -> dict[str, Any]:
    """Take the steps in turn; the time left is told by their work."""
    found, done = {}, 0
    with Progress(label, sum(work for work, _ in steps.values()), shown=shown, unit="decoding") as bar:
        for name, (work, step) in steps.items():
            found[name], done = step(), done + work
            if work:
                bar.advance(done, name)
    return found


def page(found: Diagnosis) -> str:
    """HTML that needs no other file, in the style of the report of a comparison."""
    k_hat = found.bounds.k_hat
    finite = k_hat[k_hat.isfinite()]
    return filled_template(
        "diagnosis/diagnosis.html.jinja",
        found=found,
        threshold=k_threshold(found.num_particles),
        left_out=len(k_hat) - len(finite),
        printed=printed,
        level=FALSE_ALARMS,
        scales=SCALES,
        coverage=list(zip(CENTRAL, found.noise.coverage, strict=False)),
        k_plot=plots.tail_indices(finite, k_threshold(found.num_particles)) if len(finite) else "",
        ecdf=plots.ecdf(found.ranks),
        cumulative=plots.cumulative(found.data),
        bars=plots.bars(found.collapse.kl_per_dim, found.collapse.variance, found.noise.pit),
    )


def write(found: Diagnosis, folder: str | Path) -> Path:
    """Write ``diagnosis.html``, ``diagnosis.json`` and ``draws.nc`` into a folder; returns the page.

    Raises:
        ValueError: If the folder cannot be written.
    """
    folder = writable(folder)
    write_draws(folder / "draws.nc", found.data)
    write_text(folder / "diagnosis.json", json.dumps(found.as_dict(), indent=2, allow_nan=False) + "\n")
    write_text(folder / "diagnosis.html", page(found))
    return folder / "diagnosis.html"
