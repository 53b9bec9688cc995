"""The experiment on L2: its data sets, its claims from rows, and the variance of the gradient with shared noise."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_vae.estimate import exponent
from ppl_vae.experiments import weight_decay as page
from ppl_vae.models import LinearGaussian
from ppl_vae.streams import seeded
from ppl_vae.studies import judged
from ppl_vae.studies.evidence import Evidence
from ppl_vae.studies.experiment import _run, verdicts_of

SMOKE = page.SCALES["smoke"]
SEEDS = range(5)


# The cells.


def test_every_size_has_the_same_held_out_rows_and_is_the_beginning_of_the_next() -> None:
    sets = page.sets(SMOKE, None)

    assert [data.name for data in sets] == ["digits 25", "digits 50"]
    assert [len(data.resident) for data in sets] == [25, 50]
    for small, large in itertools.pairwise(sets):
        assert torch.equal(small.resident, large.resident[: len(small.resident)])
        assert torch.equal(small.test, large.test)
        assert small.scale is large.scale


@pytest.mark.parametrize("scale", page.SCALES.values(), ids=page.SCALES)
def test_every_size_has_the_same_number_of_steps(scale: Any) -> None:
    """Of whole batches, with the same networks and no held-out epoch to choose."""
    batch, steps = scale.batch_size, set()
    data = page.sets(SMOKE, None)[0]
    for rows in page.SIZES[scale.name]:
        some = replace(data, name=f"it {rows}", train=torch.zeros(rows, 1, 8, 8), labels=None)
        cells = page.cells(scale, some)
        steps |= {cell.training["epochs"] * rows / batch for cell in cells}
        assert rows % batch == 0
        assert {cell.training["validation"] for cell in cells} == {None}
        assert {cell.name for cell in cells} == set(page.ON_ALL_SIZES if rows == scale.rows else page.ARMS)
    assert len(steps) == 1


def test_the_weight_decay_is_that_of_the_prior_in_a_loss_per_datum() -> None:
    """250 data and sd 0.1: ``w / 0.01`` nats per data set are ``0.4 w`` nats per datum."""
    made = page.contestants(250)

    found = {name: made[name].training["optimizer"] for name in page.DECAYED}

    assert {name: one.keywords["weight_decay"] for name, one in found.items()} == dict.fromkeys(
        page.DECAYED, pytest.approx(0.4)
    )
    assert made["both, sd 0.1"].options == {"tau": 0.1, "layers": page.PLACES["both"], "width": page.WIDTH}


def test_the_experiment_runs_on_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smoke scale has every arm on every size. Its verdicts follow from the rows of its file."""
    _run(page.EXPERIMENT, SMOKE, 1, None, tmp_path / "study", tmp_path, quiet=True)
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "weight_decay.json").read_text())

    assert {row["data"] for row in found["rows"]} == {"digits 25", "digits 50", page.SHARED_NOISE}
    assert [row.get("reason") for row in found["rows"] if row.get("reason")] == []
    assert (tmp_path / "weight_decay.png").read_bytes().startswith(b"\x89PNG")
    verdicts = [verdict.verdict for verdict in verdicts_of(tmp_path / "weight_decay.json")]
    assert verdicts == [verdict["verdict"] for verdict in found["verdicts"]] != []
    assert {one["name"] for one in found["verdicts"]} == {f"L2.{number}" for number in range(1, 8)}
    assert page.EXPERIMENT.question in out
    for row in found["rows"]:
        if row["data"] != page.SHARED_NOISE:
            assert math.isclose(row["gap"], row["train_bound"] - row["bound"], abs_tol=1e-4)


# Claims from rows.


def rows_with(data: str, **arms: dict[str, float]) -> list[dict[str, Any]]:
    """Rows of arms on one data set, whose numbers differ a little between seeds."""
    return [
        {"data": data, "variant": name, "seed": seed, **{column: value + 0.01 * seed for column, value in own.items()}}
        for name, own in arms.items()
        for seed in SEEDS
    ]


def verdict_of(rows: list[dict[str, Any]], words: str) -> str:
    (found,) = [verdict for verdict in judged(page.claims(Evidence(rows))) if words in verdict.text]
    return found.verdict


def jittered(rows: list[dict[str, Any]], arm: str) -> list[dict[str, Any]]:
    """The rows with a small difference between seeds in one arm, because differences without spread decide nothing."""
    spread = [0.001, -0.002, 0.0, 0.002, -0.001]
    return [
        {name: value + spread[row["seed"]] if isinstance(value, float) else value for name, value in row.items()}
        if row["variant"] == arm
        else row
        for row in rows
    ]


@pytest.mark.parametrize(("few", "many", "wanted"), [(9.0, 1.0, "held"), (-9.0, 3.0, "reversed")])
def test_l2_helps_with_few_data_and_gains_little_with_more(few: float, many: float, wanted: str) -> None:
    arm = "decoder, sd 0.1"
    rows = [
        *rows_with("d 250", **{page.NONE: {"bound": 0.0}, arm: {"bound": few}}),
        *rows_with("d 4000", **{page.NONE: {"bound": 0.0}, arm: {"bound": many}}),
    ]
    rows = jittered(rows, arm)

    assert verdict_of(rows, f"d 250: {arm} improves the held-out bound") == wanted
    assert verdict_of(rows, f"d 4000: {arm} gains less than 2 nats") == wanted
    assert verdict_of(rows, f"{arm} gains more in the held-out bound on d 250 than on d 4000") == wanted


def test_the_smallest_set_is_found_by_its_number_and_not_by_its_place() -> None:
    arm = "AdamW"
    sets = [rows_with(f"d {size}", **{page.NONE: {"bound": 0.0}, arm: {"bound": 1.0}}) for size in (1000, 250)]
    texts = [claim.text for claim in page.claims(Evidence([row for rows in sets for row in rows]))]

    assert f"d 250: {arm} improves the held-out bound" in texts
    assert f"d 1000: {arm} gains less than 2 nats" in texts


def test_codes_shrink_under_l2_on_the_heads_and_grow_under_l2_on_the_decoder() -> None:
    none = {"code_size": 1.0, "active_units": 9.0, "frechet_prior": 10.0}
    heads, decoder = {"code_size": 0.5, "active_units": 7.0}, {"code_size": 1.4, "frechet_prior": 10.5}
    arms = {page.NONE: none, "heads, sd 0.1": heads, "decoder, sd 0.1": decoder, "decoder, sd 0.31": decoder}
    rows = jittered(rows_with("d 250", **arms), page.NONE)

    assert verdict_of(rows, "L2 on the heads, sd 0.1, makes the means of the codes smaller") == "held"
    assert verdict_of(rows, "L2 on the heads, sd 0.1, lowers the number of active units") == "held"
    assert verdict_of(rows, "L2 on the decoder, sd 0.1, makes the means of the codes larger") == "held"
    assert verdict_of(rows, "sd 0.31 on the decoder changes the distance of samples by at most 10 %") == "held"


# One noise vector for a batch.


def small_model() -> tuple[LinearGaussian, Tensor]:
    with seeded(2):
        x = torch.randn(3, 4, dtype=torch.float64) + 0.3
        model = LinearGaussian(
            torch.randn(4, 2, dtype=torch.float64), torch.zeros(4).double(), torch.tensor(0.7).double()
        )
    return model, x


def gradient(model: LinearGaussian, x: Tensor, z: Tensor) -> Tensor:
    """The gradient of log p(x | z) for the loading by automatic differentiation, for one datum."""
    loading = model.loading.clone().requires_grad_()
    value = torch.distributions.Normal(model.loc + loading @ z, model.sigma).log_prob(x).sum()
    return torch.autograd.grad(value, loading)[0]


def nodes(dimensions: int) -> list[tuple[Tensor, float]]:
    """Nodes and weights that integrate polynomials of degree five in each standard normal exactly."""
    places, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    return [
        (torch.tensor([places[index] for index in chosen]), math.prod(weights[index] for index in chosen))
        for chosen in itertools.product(range(3), repeat=dimensions)
    ]


def moments(values: list[tuple[Tensor, float]]) -> tuple[Tensor, float]:
    """The mean, and the variance summed over the entries, of tensors with weights."""
    mean = torch.stack([weight * value for value, weight in values]).sum(0)
    return mean, sum(weight * float((value - mean).square().sum()) for value, weight in values)


@pytest.mark.parametrize("shared", [True, False])
def test_the_variance_of_a_batch_of_two_is_that_of_its_integrals(shared: bool) -> None:
    """Every ordered batch of two of three data is integrated over its noise. Both kinds of noise have one mean."""
    model, x = small_model()
    q = model.mean_field_posterior(x)
    spread = q.variance[0].sqrt()
    apart, common = map(float, page.noise_variances(model, x))

    variances = []
    for pair in itertools.product(range(3), repeat=2):
        values = []
        for noise, weight in nodes(2 if shared else 4):
            each = [noise, noise] if shared else [noise[:2], noise[2:]]
            found = [gradient(model, x[row], q.loc[row] + spread * e) for row, e in zip(pair, each, strict=True)]
            values.append((torch.stack(found).mean(0), weight))
        mean, variance = moments(values)
        variances.append(variance)
        own = [moments([(gradient(model, x[row], q.loc[row] + spread * e), w) for e, w in nodes(2)])[0] for row in pair]
        assert torch.allclose(mean, torch.stack(own).mean(0), rtol=0, atol=1e-10)

    wanted = common + (apart - common) / 2 if shared else apart / 2
    assert sum(variances) / 9 == pytest.approx(wanted, rel=1e-10)


def test_the_variance_falls_as_one_over_b_with_own_noise_and_has_a_floor_with_shared_noise() -> None:
    rows = page.exact(replace(SMOKE, seeds=3))
    slopes = {name: [row["slope"] for row in rows if row["variant"] == name] for name in ("own", "shared")}

    assert slopes["own"] == [pytest.approx(-1, abs=1e-12)] * 3
    assert all(-0.9 < found < 0 for found in slopes["shared"])
    model, x = small_model()
    apart, common = map(float, page.noise_variances(model, x))
    assert 0 < common < apart
    large = (10**9, 10**10)
    assert exponent([common + (apart - common) / batch for batch in large], large) == pytest.approx(0, abs=1e-6)


def test_the_slope_is_that_of_a_power() -> None:
    assert exponent([3.0, 3.0 * 2**-0.4, 3.0 * 8**-0.4], [1, 2, 8]) == pytest.approx(-0.4, abs=1e-12)
