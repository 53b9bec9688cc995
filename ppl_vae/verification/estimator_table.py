"""Which estimator is best for a pair? Bias, variance, time and memory of estimators at the same fixed parameters."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from ..elbo import estimator as estimator_of
from ..estimate import Number, standard_error
from ..files import whole_file
from ..progress import Progress
from ..streams import seeded, stream_seed
from ..variant import Variant, log_jacobian, needs_density
from .memory import peak_bytes
from .moments import Moments, jackknife_error, signal_to_noise, snr_floor
from .repeated_draws import Replicate, frozen, loss_and_grads, parameters, replicates, spans
from .targets import Estimand, Truth, estimand_of, truth

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["DEFAULT", "EstimatorComparison", "compare_estimators"]

DEFAULT = ("trace", "mean_field", "stl", "iwae", "dreg", "miwae", "piwae", "ciwae", "renyi")
BATCHES = 10  # batches of replicates; the spread between them gives the error of a variance and of a ratio
LONG = 4  # a long run has LONG times as many replicates as an estimator


@dataclass(frozen=True)
class EstimatorComparison:
    """The table that ``compare_estimators`` returns.

    Attributes:
        rows: One dictionary per estimator, with the columns of ``table``.
        groups: The groups of parameters whose gradients were compared.
        data: Number of data in the batch.
        draws: Replicates of each estimator.
    """

    rows: list[dict[str, Any]]
    groups: list[str]
    data: int
    draws: int

    @property
    def table(self) -> "pd.DataFrame":
        """One row per estimator.

        Columns of the value, in nats per datum and in the data's units:

        * ``target``: name of the bound that is estimated; ``K``: draws per datum.
        * ``value``: mean over the replicates.
        * ``value_bias``: difference from the truth; ``reference`` says whether the truth is a closed form or a long
          run.
        * ``value_variance``: variance of one evaluation.

        Columns of the gradient, for each group G of parameters:

        * ``bias_G``: length of the mean gradient's difference from the truth, relative to the length of the truth.
        * ``noise_G``: the size that ``bias_G`` would have for an estimator without bias, because of noise.
        * ``variance_G``: variance of one evaluation, summed over coordinates.
        * ``snr_G``: signal-to-noise ratio ``|mean| / sd``, averaged over coordinates. It is biased upwards, because
          ``|mean|`` is.
        * ``snr_floor``: the average ``snr_G`` of a gradient that is noise alone. An ``snr_G`` near it shows no signal.
          More draws lower it.

        ``seconds`` and ``megabytes`` are the time and the peak memory of one value and its gradient. A column that ends
        in ``_error`` is a standard error. The error of ``snr_G`` is a jackknife over ten batches of draws, and near the
        floor it is up to 1.5 times too large.
        """
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("estimator")

    def __str__(self) -> str:
        head = f"{'estimator':<34}{'value, nats per datum':>24}{'bias':>26}"
        head += "".join(f"{f'SNR {group}':>18}" for group in self.groups)
        head += f"{'ms':>8}{'MB':>8}"
        floor = f"for noise alone it is {snr_floor(self.draws):.3g} with {self.draws} draws"
        notes = [
            f"{self.draws} draws of each on the same {self.data} data, with the same noise; ± standard error",
            "bias is the difference from a closed form or a long run of the bound that is to be estimated",
            f"SNR is |mean| / sd, averaged over coordinates: {floor}, and a value near that shows no signal",
        ]
        return "\n".join([head, *(self._line(row) for row in self.rows), *notes])

    def _line(self, row: dict[str, Any]) -> str:
        line = f"{row['estimator']:<34}{_with_error(row, 'value'):>24}{_with_error(row, 'value_bias'):>26}"
        line += "".join(f"{_with_error(row, f'snr_{group}'):>18}" for group in self.groups)
        return line + f"{1e3 * row['seconds']:>8.1f}{row['megabytes']:>8.1f}"

    def plot(self, path: str | Path) -> None:
        """Write a picture of the value, its bias, and each group's signal-to-noise ratio and gradient variance."""
        from ..drawing import panels, tidy

        titles = {"value": "value, nats per datum"}
        titles |= {f"snr_{group}": f"SNR of the gradient, {group} (dashed: noise alone)" for group in self.groups}
        titles |= {"value_bias": "bias of the value"}
        titles |= {f"variance_{group}": f"variance of the gradient, {group}" for group in self.groups}
        height = 0.9 + 0.22 * len(self.rows)
        figure, every = panels(len(titles), 1 + len(self.groups), 3.4, height, sharey=True)
        for axes, (column, title) in zip(every, titles.items(), strict=True):
            tidy(axes, title)
            self._draw(axes, column)
        path = Path(path)
        with whole_file(path if path.suffix else path.with_suffix(".png")) as part:
            figure.savefig(part)

    def _draw(self, axes: "Axes", column: str) -> None:
        """Draw one column with its errors, the first estimator at the top."""
        rows = self.rows[::-1]
        names = [row["estimator"] for row in rows]
        values = [row[column] for row in rows]
        errors = [row[f"{column}_error"] for row in rows]
        axes.errorbar(values, names, xerr=errors, fmt="o", markersize=4, capsize=2)
        if column == "value_bias":
            axes.axvline(0, color="grey", linewidth=0.8)
            return
        if column.startswith("snr_"):
            axes.axvline(snr_floor(self.draws), color="grey", linewidth=0.8, linestyle="--")
        if min(values) > 0:
            from ..drawing import plain_ticks

            axes.set_xscale("log")
            plain_ticks(axes, "x")


def _with_error(row: dict[str, Any], column: str) -> str:
    return str(Number(row[column], row[f"{column}_error"]))


def compare_estimators(
    variant: Variant,
    x: Any,
    estimators: Sequence[str | ELBO] | Mapping[str, str | ELBO] = DEFAULT,
    draws: int = 1000,
    *,
    seed: int = 0,
    progress: bool = False,
) -> EstimatorComparison:
    """Draw the value and the gradient of each estimator many times, at fixed parameters and in eval mode.

    Replicate r of every estimator has the same seed, so that all estimators use the same random numbers. The bias is
    the difference from a closed form, if the pair is linear-Gaussian and the target has a closed form. Otherwise it is
    the difference from a long run of the target's plain gradient, which uses no code of the estimator.

    Args:
        variant: A pair whose guide has a density. It is copied, and not changed.
        x: The batch [rows, *x_shape], in the data's units.
        estimators: Names with options (``"dreg:num_particles=64"``), ELBOs of Pyro, or ELBOs of your own. The keys of a
            dictionary are used as names in the table.
        draws: Replicates of each estimator.
        seed: Seed of all draws. The caller's random streams are left as they were.
        progress: Whether to show the time left.

    Raises:
        ValueError: If the guide is a point mass, a name or a target is unknown, an estimator lacks an option of its
            target, or there are fewer than 20 draws.
    """
    needs_density(variant)
    if draws < 2 * BATCHES:
        wanted = f"at least {2 * BATCHES}, two in each of the {BATCHES} batches that give the errors"
        raise ValueError(f"draws must be {wanted}, got {draws!r}")
    named = estimators if isinstance(estimators, Mapping) else {_label(each): each for each in estimators}
    losses = {name: estimator_of(loss) if isinstance(loss, str) else loss for name, loss in named.items()}
    estimands = {name: estimand_of(loss) for name, loss in losses.items()}
    variant = frozen(variant)
    y = variant.admit(x)
    truths: dict[Estimand, Truth] = {}
    rows = []
    with Progress("estimators", draws * len(losses), shown=progress, unit="draw") as bar:
        for index, (name, loss) in enumerate(losses.items()):
            drawn = _Drawn(draws)
            for count, replicate in enumerate(replicates(variant, loss, (y, len(y)), draws, seed), 1):
                drawn.add(replicate)
                bar.advance(index * draws + count, name, line=count == draws)
            estimand = estimands[name]
            if estimand not in truths:
                unused = stream_seed(seed, draws)  # the first stream that no replicate has
                truths[estimand] = truth(variant, y, len(y), estimand, seed=unused, draws=LONG * draws)
            row = {"estimator": name, "target": estimand.target, "K": loss.num_particles}
            row |= _columns(variant, drawn, truths[estimand], len(y))
            rows.append(row | {"megabytes": _megabytes(variant, loss, y)})
    return EstimatorComparison(rows, list(parameters(variant)), len(y), draws)


def _label(loss: str | ELBO) -> str:
    """A name for an estimator in the table."""
    if isinstance(loss, str):
        return loss
    return repr(loss) if "object at" not in repr(loss) else type(loss).__name__


def _megabytes(variant: Variant, loss: ELBO, y: Tensor) -> float:
    """The most memory in megabytes that the tensors of one value and its gradient hold at once."""
    variant.model.zero_grad()
    variant.guide.zero_grad()
    with seeded(0):
        return peak_bytes(lambda: loss_and_grads(variant, loss, (y, len(y)))) / 1e6


class _Drawn:
    """The replicates of one estimator. Their gradients are added up by batch, and are not kept one by one."""

    def __init__(self, draws: int) -> None:
        zero = torch.zeros(())
        self.draws = draws
        self.values: list[float] = []
        self.seconds: list[float] = []
        self.batches = [Moments(zero, zero, zero) for _ in range(BATCHES)]

    def add(self, replicate: Replicate) -> None:
        batch = len(self.values) * BATCHES // self.draws
        gradient = replicate.gradient
        self.batches[batch] += Moments(gradient.new_ones(1), gradient, gradient.square())
        self.values.append(replicate.value)
        self.seconds.append(replicate.seconds)

    def moments(self, span: slice) -> Moments:
        """Moments of a group's gradient in each batch, [BATCHES, parameters of the group]."""
        return Moments(
            torch.stack([batch.count for batch in self.batches]),
            torch.stack([batch.total[span] for batch in self.batches]),
            torch.stack([batch.square[span] for batch in self.batches]),
        )


def _columns(variant: Variant, drawn: _Drawn, expected: Truth, data: int) -> dict[str, Any]:
    """The columns of ``EstimatorComparison.table`` that are computed from the draws."""
    row = _value_columns(torch.tensor(drawn.values).double(), expected, data, float(log_jacobian(variant)))
    row |= {"reference": "closed form" if expected.exact else "long run", "snr_floor": snr_floor(drawn.draws)}
    rounding = torch.finfo(next(variant.model.parameters()).dtype).eps * abs(expected.value)
    for group, span in spans(variant).items():
        gradient, error = expected.gradient[span], expected.gradient_error[span]
        row |= _gradient_columns(group, drawn.moments(span), gradient, error, rounding)
    return row | {"seconds": median(drawn.seconds)}


def _value_columns(losses: Tensor, expected: Truth, data: int, shift: float) -> dict[str, Any]:
    """The value in nats per datum, from losses [draws] over the data; ``shift`` turns it into the data's units."""
    values = shift - losses / data
    value, error = float(values.mean()), float(standard_error(values))
    true_value, true_error = shift - expected.value / data, expected.value_error / data
    return {
        "value": value,
        "value_error": error,
        "value_bias": value - true_value,
        "value_bias_error": math.hypot(error, true_error),
        "value_variance": float(values.var()),
    }


def _gradient_columns(
    group: str, batches: Moments, expected: Tensor, expected_error: Tensor, rounding: float
) -> dict[str, float]:
    """Bias, variance and signal-to-noise ratio of a group's gradient, from the moments of each batch of draws."""
    every = batches.pooled()
    without_one_batch = every - batches
    length = expected.norm().clamp_min(torch.finfo(expected.dtype).tiny)
    bias = (every.mean - expected).norm()
    noise = (every.variance / every.count + expected_error.square()).sum().sqrt()
    ratios = signal_to_noise(without_one_batch, rounding)
    return {
        f"bias_{group}": float(bias / length),
        f"noise_{group}": float(noise / length),
        f"variance_{group}": float(every.variance.sum()),
        f"variance_{group}_error": float(standard_error(batches.variance.sum(-1))),
        f"snr_{group}": float(signal_to_noise(every, rounding)),
        f"snr_{group}_error": float(jackknife_error(ratios)),
    }
