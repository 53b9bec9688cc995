"""Which estimator of the bound is unbiased, and how noisy is its gradient?

    python -m ppl_vae.experiments.elbo_estimators

The model is linear-Gaussian and the columns of its loading are orthogonal, so that a mean-field guide can be the
posterior. The guide is at one of three distances from the posterior, and K is 1, 8 or 64 draws. The value and the
gradient are compared with a closed form or a long run, by z-scores. Then claims of the literature are tested, and each
is shown with the figure that was found here. The rows are written to results/elbo_estimators.csv and the claims to
results/elbo_estimators_claims.csv. The signal-to-noise ratios are plotted against K in results/elbo_estimators.png.
"""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pyro.infer import RenyiELBO
from torch import Tensor

from .. import Variant
from ..elbo import (
    CIWAE,
    IWAE,
    MIWAE,
    PIWAE,
    DReG,
    MeanFieldELBO,
    PathwiseELBO,
    PerDatumELBO,
    Renyi,
    StickingTheLanding,
)
from ..elbo.reading import Reading
from ..estimate import standard_error
from ..models import LinearGaussian
from ..streams import seeded
from ..verification.exact_pair import linear_pair
from ..verification.repeated_draws import frozen, replicates, spans
from ..verification.verdict import LIMIT, hold_against_truth

# By name: the shift of the guide's mean, and the factor on its standard deviations.
DISTANCES = {"at the posterior": (0.0, 1.0), "near": (0.1, 1.1), "far": (0.5, 1.5)}
DRAWS = 200  # replicates of value and gradient
LADDER = (4, 16, 64, 256)  # numbers of draws K for the slopes; at K = 1 the power law does not hold yet
with seeded(0):
    LOADING = torch.linalg.qr(torch.randn(5, 2).double())[0] * torch.tensor([2.0, 1.0]).double()
EXACT = LinearGaussian(LOADING, torch.zeros(5).double(), torch.tensor(0.55).double())
RESULTS = Path(__file__).parent / "results"


class Claim(NamedTuple):
    """One claim of the literature, and the figure that was found.

    Attributes:
        text: The claim, with the limit that the figure has to keep.
        figure: The figure that was found.
        holds: Whether the claim holds.
    """

    text: str
    figure: str
    holds: bool


class Inflated(IWAE):
    """IWAE with a deliberate error of 5 % in the value, and therefore in the gradient."""

    def objective(self, reading: Reading) -> Tensor:
        return 1.05 * super().objective(reading)


def problem(shift: float, stretch: float, rows: int = 50) -> tuple[Variant, Tensor]:
    """The pair and its data, in double precision. The data are the same at every distance."""
    with seeded(1):
        y = torch.randn(rows, 2).double() @ EXACT.loading.mT + EXACT.sigma * torch.randn(rows, 5).double()
    with seeded(2):
        return frozen(linear_pair(EXACT, shift=shift, stretch=stretch)), y


def estimators(num_particles: int) -> Iterator[PerDatumELBO | PathwiseELBO]:
    """Yield every unbiased estimator with ``num_particles`` draws."""
    groups = 1 if num_particles == 1 else 4
    yield PathwiseELBO(num_particles, 1, vectorize_particles=True)
    yield MeanFieldELBO(num_particles)
    yield StickingTheLanding(num_particles)
    yield IWAE(num_particles)
    yield DReG(num_particles)
    yield MIWAE(num_particles, groups)
    yield PIWAE(num_particles, groups)
    yield CIWAE(0.5, num_particles)
    yield Renyi(0.5, num_particles)


def encoder_gradients(variant: Variant, y: Tensor, loss: Any, draws: int) -> Tensor:
    """The gradients of the guide's parameters in repeated draws, [draws, parameters of the guide]."""
    found = replicates(variant, loss, (y, len(y)), draws, 0)
    return torch.stack([replicate.gradient for replicate in found])[:, spans(variant)["encoder"]]


def slope(ratios: list[float], ladder: tuple[int, ...]) -> float:
    """The least-squares slope of the log signal-to-noise ratio against log K."""
    x, y = torch.tensor(ladder).double().log(), torch.tensor(ratios).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def unbiased(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    """Compare every estimator with the truth, for every distance and K. Check that a wrong estimator is caught."""
    for distance, moved in DISTANCES.items():
        variant, y = problem(*moved)
        for num_particles in (1, 8, 64):
            for loss in estimators(num_particles):
                verdict = hold_against_truth(variant, y, loss, draws=DRAWS)
                variance = float(encoder_gradients(variant, y, loss, 40).var(0).sum())
                largest = max(verdict.z.values(), key=abs)
                rows.append(
                    {"distance": distance, "estimator": type(loss).__name__, "K": num_particles}
                    | {"encoder variance": variance, "largest z": largest}
                    | verdict.z
                )
                print(f"{distance:<18}{loss!r:<44}largest z {largest:+6.2f}   variance {variance:.3g}", flush=True)
        wrong = hold_against_truth(variant, y, Inflated(8), draws=DRAWS)
        largest = max(map(abs, wrong.z.values()))
        yield Claim(f"{distance}: an error of 5 % is caught, |z| above 5", f"{largest:.0f}", largest > LIMIT)
    largest = max((row["largest z"] for row in rows), key=abs)
    yield Claim(f"all {len(rows)} rows are unbiased: largest |z| below 5", f"{abs(largest):.2f}", abs(largest) < LIMIT)


def variances() -> Iterator[Claim]:
    """Test the gradient variances of sticking the landing and of the doubly reparameterised gradient."""
    at = problem(*DISTANCES["at the posterior"])
    stl, trace = (
        float(encoder_gradients(*at, loss, DRAWS).var(0).sum()) for loss in (StickingTheLanding(), PathwiseELBO())
    )
    yield Claim("at the posterior: variance of the guide's gradient, STL: below 1e-20", f"{stl:.1g}", stl < 1e-20)
    yield Claim("at the posterior: variance of the guide's gradient, ELBO: above 1", f"{trace:.3g}", trace > 1)
    for distance in ("near", "far"):
        pair = problem(*DISTANCES[distance])
        dreg, iwae = (float(encoder_gradients(*pair, loss, DRAWS).var(0).sum()) for loss in (DReG(8), IWAE(8)))
        claimed = "below .02" if distance == "near" else "nothing is claimed"
        text = f"{distance}: variance of DReG over IWAE at K = 8, {claimed}"
        yield Claim(text, f"{dreg / iwae:.2g}", distance == "far" or dreg / iwae < 0.02)


def slopes(ratios: dict[str, list[float]]) -> Iterator[Claim]:
    """Test how the signal-to-noise ratio of the guide's gradient, averaged over coordinates, depends on K.

    The mean gradient of DReG is taken as the signal of both estimators: their expectations are equal, and the mean of
    IWAE is mostly noise. The ratios are added to ``ratios`` by name of the estimator.
    """
    variant, y = problem(*DISTANCES["near"])
    for num_particles in LADDER:
        found = {loss.__name__: encoder_gradients(variant, y, loss(num_particles), 2 * DRAWS) for loss in (DReG, IWAE)}
        signal = found["DReG"].mean(0).abs()
        for name, gradients in found.items():
            ratios.setdefault(name, []).append(float((signal / gradients.std(0)).mean()))
    for name, wanted in {"DReG": 0.5, "IWAE": -0.5}.items():
        got, figures = slope(ratios[name], LADDER), ", ".join(f"{ratio:.3g}" for ratio in ratios[name])
        text = f"near: slope of log SNR against log K, {name}: near {wanted:+.1f}"
        yield Claim(text, f"{got:+.2f}  ({figures} at K = {', '.join(map(str, LADDER))})", abs(got - wanted) < 0.1)


def subsampled() -> Iterator[Claim]:
    """Test bounds that are computed from a fifth of the data and scaled up to all of the data."""
    variant, y = problem(*DISTANCES["far"])
    evidence = EXACT.log_evidence(y).sum().item()
    for loss in (IWAE(8), RenyiELBO(alpha=0.0, num_particles=8, max_plate_nesting=1, vectorize_particles=True)):
        part, whole = (-next(replicates(variant, loss, (y[:10], size), 1, 0)).value for size in (10, 50))
        ours, name = isinstance(loss, IWAE), type(loss).__name__
        exact = math.isclose(whole, 5 * part, rel_tol=1e-12)
        yield Claim(
            f"{name}: the bound of B data with size = N is {'' if ours else 'not '}N / B times that with size = B",
            f"{whole:.3f}, 5 x {part:.3f}",
            exact == ours,
        )
        values = torch.tensor(
            [-r.value for i in range(5) for r in replicates(variant, loss, (y[10 * i : 10 * i + 10], 50), DRAWS, 1)]
        ).double()
        mean, error = float(values.mean()), float(standard_error(values))
        above = mean - evidence > 4 * error
        yield Claim(
            f"{name}: mean of subsampled bounds is {'above' if above else 'below'} log p(X)",
            f"{mean:.2f} ± {error:.2f}, log p(X) {evidence:.2f}",
            above != ours,
        )


def main() -> None:
    """Print the table and the claims, write both, and plot the signal-to-noise ratios."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, list[float]] = {}
    claims = [*unbiased(rows), *variances(), *slopes(ratios), *subsampled()]
    print()
    for claim in claims:
        print(f"{'holds' if claim.holds else 'FAILS':<7}{claim.text}: {claim.figure}")
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "elbo_estimators.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with (RESULTS / "elbo_estimators_claims.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([Claim._fields, *claims])
    plot(ratios)


def plot(ratios: dict[str, list[float]]) -> None:
    """Plot the signal-to-noise ratios against K."""
    from ..drawing import panels, tidy

    figure, (axes,) = panels(1, 1, 4.2, 3.0)
    tidy(axes, "signal-to-noise ratio of the guide's gradient")
    for name, found in ratios.items():
        axes.loglog(LADDER, found, "o-", label=f"{name}, slope {slope(found, LADDER):+.2f}")
    axes.set_xlabel("draws K", fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(RESULTS / "elbo_estimators.png")


if __name__ == "__main__":
    main()
