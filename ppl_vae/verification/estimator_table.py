"""compare_estimators: values and gradients at the same frozen parameters, with common random numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from ..data.data_set import tensor_of
from ..elbo import estimator as estimator_of
from ..estimate import Number
from ..files import whole_file
from ..progress import Progress
from ..streams import seeded, stream_seed
from ..variant import Variant, log_jacobian, needs_density
from .memory import peak_bytes
from .repeated_draws import Replicate, frozen, loss_and_grads, parameters, replicates, spans
from .verdict import Truth, target_of, truth

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DEFAULT", "EstimatorComparison", "compare_estimators"]

DEFAULT = ("trace", "mean_field", "stl", "iwae", "dreg", "miwae", "piwae", "ciwae", "renyi")
BATCHES = 10  # of replicates: the spread between them is the error of a variance, and without one of a ratio
OPTIONS = ("num_particles", "groups", "alpha", "beta", "floor")  # of estimators: what a target depends on
LONG = 4  # times the replicates: the long run, where there is no closed form


@dataclass(frozen=True)
class EstimatorComparison:
    """What ``compare_estimators`` found.

    Attributes:
        rows: A dictionary an estimator; see ``table``.
        groups: Groups of parameters whose gradients were looked at.
        data: Of the batch.
        draws: Replicates of each estimator.
    """

    rows: list[dict[str, Any]]
    groups: list[str]
    data: int
    draws: int

    @property
    def table(self) -> "pd.DataFrame":
        """One row per estimator.

        Columns: ``target`` (what it estimates), ``K`` (draws per datum), ``value`` (nats per datum, in the data's
        units), ``value_bias`` against ``reference``, ``value_variance`` of one evaluation; for each group of parameters
        ``bias_G`` (length of the mean gradient's difference from the truth, relative to the truth) with ``noise_G``
        (what that would be without any bias), ``variance_G`` (summed over coordinates, for one evaluation) and
        ``snr_G`` (``|mean| / sd``, averaged over coordinates); ``snr_floor``, what ``snr_G`` would be on average for a
        gradient that is noise alone; ``seconds`` and ``megabytes`` per step.

        ``snr_G`` is biased upwards, since ``|mean|`` is: a value near ``snr_floor`` shows no signal, and more draws
        lower the floor. A column in ``_error`` is a standard error; that of ``snr_G`` is a jackknife over ten batches
        of draws, which near the floor is up to 1.5 times too large.
        """
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("estimator")

    def __str__(self) -> str:
        head = [f"{'estimator':<34}{'value, nats per datum':>24}{'bias':>26}"]
        head += [f"{f'SNR {group}':>18}" for group in self.groups] + [f"{'ms':>8}{'MB':>8}"]
        lines = ["".join(head)]
        for row in self.rows:
            cells = [f"{row['estimator']:<34}{_pm(row, 'value'):>24}{_pm(row, 'value_bias'):>26}"]
            cells += [f"{_pm(row, f'snr_{group}'):>18}" for group in self.groups]
            cells += [f"{1e3 * row['seconds']:>8.1f}{row['megabytes']:>8.1f}"]
            lines.append("".join(cells))
        lines.append(f"{self.draws} draws of each on the same {self.data} data, with the same noise; ± standard error")
        lines.append("bias is against a closed form or a long run of what the estimator is meant to estimate")
        floor = f"for noise alone it is {snr_floor(self.draws):.3g} with {self.draws} draws"
        lines.append(f"SNR is |mean| / sd, averaged over coordinates: {floor}, and a value near that shows no signal")
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Write a picture: the value, its bias, and each group's signal-to-noise ratio and gradient variance."""
        from matplotlib.ticker import LogLocator, NullFormatter

        from ..drawing import panels, tidy

        names = [row["estimator"] for row in self.rows][::-1]
        shown = {"value, nats per datum": "value"}
        shown |= {f"SNR of the gradient, {group} (dashed: noise alone)": f"snr_{group}" for group in self.groups}
        shown |= {"bias of the value": "value_bias"}
        shown |= {f"variance of the gradient, {group}": f"variance_{group}" for group in self.groups}
        figure, every = panels(len(shown), 1 + len(self.groups), 3.4, 0.9 + 0.22 * len(names), sharey=True)
        for axes, (title, column) in zip(every, shown.items(), strict=True):
            tidy(axes, title)
            values, errors = zip(*((row[column], row[f"{column}_error"]) for row in self.rows[::-1]), strict=True)
            axes.errorbar(values, names, xerr=errors, fmt="o", markersize=4, capsize=2)
            if column == "value_bias":
                axes.axvline(0, color="grey", linewidth=0.8)
            elif column.startswith("snr_"):
                axes.axvline(snr_floor(self.draws), color="grey", linewidth=0.8, linestyle="--")
            if column != "value_bias" and min(values) > 0:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter(NullFormatter())
        path = Path(path)
        with whole_file(path if path.suffix else path.with_suffix(".png")) as part:
            figure.savefig(part)


def snr_floor(draws: int) -> float:
    """The mean of ``|mean| / sd`` over ``draws`` normal numbers of mean 0: ``sqrt(2 / (pi draws))`` to first order."""
    return math.sqrt(2 / (math.pi * draws))


def _pm(row: dict[str, Any], name: str) -> str:
    return str(Number(row[name], row[f"{name}_error"]))


def compare_estimators(
    variant: Variant,
    x: Any,
    estimators: Sequence[str | ELBO] | Mapping[str, str | ELBO] = DEFAULT,
    draws: int = 1000,
    *,
    seed: int = 0,
    progress: bool = False,
) -> EstimatorComparison:
    """Draw each estimator's value and gradient again and again, at frozen parameters, in eval mode.

    Replicate r of every estimator has the same seed. Bias is against a closed form for a linear-Gaussian pair and a
    target that has one, else against a long run of the target's plain gradient, without the estimator's code.

    Args:
        variant: A pair whose guide has a density; a copy is used.
        x: The batch [rows, *x_shape], in the data's units.
        estimators: Names, with options (``"dreg:num_particles=64"``), or ELBOs of Pyro's or your own; a dictionary to
            call them otherwise.
        draws: Replicates of each.
        seed: Of all draws; the caller's random streams are left as they were.
        progress: Show time left.

    Raises:
        ValueError: If the guide is a point mass, a name is unknown, or there are fewer than 20 draws.
    """
    needs_density(variant)
    if draws < 2 * BATCHES:
        raise ValueError(f"draws must be at least {2 * BATCHES}, two for each batch of the errors, got {draws!r}")
    named = estimators if isinstance(estimators, Mapping) else {_label(each): each for each in estimators}
    losses = {name: estimator_of(loss) if isinstance(loss, str) else loss for name, loss in named.items()}
    variant = frozen(variant)
    y = variant.in_model_units(tensor_of(x))
    truths: dict[Any, Truth] = {}
    rows = []
    with Progress("estimators", draws * len(losses), shown=progress, unit="draw") as bar:
        for index, (name, loss) in enumerate(losses.items()):
            moments = _Moments(variant, draws)
            for count, replicate in enumerate(replicates(variant, loss, (y, len(y)), draws, seed), 1):
                moments.add(replicate)
                bar.advance(index * draws + count, name, line=count == draws)
            target, options = target_of(loss), tuple(getattr(loss, option, None) for option in OPTIONS)
            if (target, options) not in truths:
                unused = stream_seed(seed, draws)  # the first stream that no replicate has
                truths[target, options] = truth(variant, y, len(y), loss, target, seed=unused, draws=LONG * draws)
            rows.append(
                {"estimator": name, "target": target, "K": loss.num_particles}
                | moments.row(truths[target, options], len(y))
                | {"megabytes": _megabytes(variant, loss, y)}
            )
    return EstimatorComparison(rows, list(parameters(variant)), len(y), draws)


def _label(loss: str | ELBO) -> str:
    """A name for an estimator."""
    if isinstance(loss, str):
        return loss
    return repr(loss) if "object at" not in repr(loss) else type(loss).__name__


def _megabytes(variant: Variant, loss: ELBO, y: Tensor) -> float:
    """What the tensors of a value and its gradient take at most; no gradients stand there before."""
    for half in variant[:2]:
        half.zero_grad()
    with seeded(0):
        return peak_bytes(lambda: loss_and_grads(variant, loss, (y, len(y)))) / 1e6


class _Moments:
    """Sums over replicates, batch by batch, so that gradients need not be kept."""

    def __init__(self, variant: Variant, draws: int) -> None:
        self.spans, self.draws, self.shift = spans(variant), draws, float(log_jacobian(variant))
        self.dtype = next(variant.model.parameters()).dtype
        self.values: list[float] = []
        self.seconds: list[float] = []
        self.sums = [[torch.zeros(()).double(), torch.zeros(()).double()] for _ in range(BATCHES)]

    def add(self, replicate: Replicate) -> None:
        batch = self.sums[len(self.values) * BATCHES // self.draws]
        batch[0] = batch[0] + replicate.gradient
        batch[1] = batch[1] + replicate.gradient.square()
        self.values.append(replicate.value)
        self.seconds.append(replicate.seconds)

    def row(self, expected: Truth, data: int) -> dict[str, Any]:
        """Columns of the table."""
        values = self.shift - torch.tensor(self.values).double() / data
        value, error = float(values.mean()), float(values.std() / math.sqrt(self.draws))
        bias_error = math.hypot(error, expected.value_error / data)
        row: dict[str, Any] = {"value": value, "value_error": error}
        row["value_bias"] = value - (self.shift - expected.value / data)
        row |= {"value_bias_error": bias_error, "value_variance": float(values.var())}
        row |= {"reference": "closed form" if expected.exact else "long run", "snr_floor": snr_floor(self.draws)}
        for group, span in self.spans.items():
            rounding = torch.finfo(self.dtype).eps * abs(expected.value)
            row |= self._gradient(group, expected.gradient[span], expected.gradient_error[span], span, rounding**2)
        return row | {"seconds": median(self.seconds)}

    def _gradient(
        self, group: str, expected: Tensor, expected_error: Tensor, span: slice, nothing: float
    ) -> dict[str, float]:
        count = torch.arange(self.draws).mul(BATCHES).div(self.draws, rounding_mode="floor").bincount()[:, None]
        first = torch.stack([first[span] for first, _ in self.sums])
        second = torch.stack([second[span] for _, second in self.sums])
        mean = first.sum(0) / self.draws
        variance = _variance(mean, second.sum(0) / self.draws, self.draws)
        variances = _variance(first / count, second / count, count)
        length = expected.norm().clamp_min(torch.finfo(expected.dtype).tiny)
        noise = (variance / self.draws + expected_error.square()).sum().sqrt()
        others, left = (first.sum(0) - first) / (self.draws - count), (second.sum(0) - second) / (self.draws - count)
        ratios = _ratio(others, _variance(others, left, self.draws - count), nothing)  # each without one batch
        return {
            f"bias_{group}": float((mean - expected).norm() / length),
            f"noise_{group}": float(noise / length),
            f"variance_{group}": float(variance.sum()),
            f"variance_{group}_error": float(variances.sum(1).std() / math.sqrt(BATCHES)),
            f"snr_{group}": float(_ratio(mean, variance, nothing)),
            f"snr_{group}_error": float(ratios.std(correction=0) * math.sqrt(BATCHES - 1)),
        }


def _variance(mean: Tensor, square: Tensor, count: Tensor | float) -> Tensor:
    return (square - mean.square()).clamp_min(0) * count / (count - 1)


def _ratio(mean: Tensor, variance: Tensor, nothing: float) -> Tensor:
    """Signal over noise, averaged over the coordinates that have any noise but that of rounding."""
    moving = variance > nothing
    ratio = torch.where(moving, mean.abs() / torch.where(moving, variance, 1.0).sqrt(), 0.0)
    return ratio.sum(-1) / moving.sum(-1).clamp_min(1)
