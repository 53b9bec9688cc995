"""compare_estimators is held against a linear-Gaussian pair, where every column of the table is known."""

import copy
import json
import math
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor
from typer.testing import CliRunner

from ppl_vae import VARIANTS, Variant, compare_estimators, prepare, save
from ppl_vae.cli import app
from ppl_vae.models import LinearGaussian, Scale
from ppl_vae.streams import seeded
from ppl_vae.verification.exact_pair import as_linear_gaussian, gaussian_guide, linear_pair
from ppl_vae.verification.memory import peak_bytes
from ppl_vae.verification.repeated_draws import frozen, parameters, replicates, spans

EXACT = LinearGaussian(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.0]]), torch.ones(3), torch.tensor(0.5))
DRAWS = 200


def problem(shift: float = 0.3) -> tuple[Variant, Tensor]:
    """The columns are orthogonal, so that the mean-field guide is the posterior at shift 0; in double precision."""
    model = LinearGaussian(*(part.double() for part in EXACT))
    variant = linear_pair(model, shift=shift)
    return variant, torch.randn(16, 3)


def test_the_value_of_each_row_is_its_bound_and_its_bias_is_within_its_error() -> None:
    variant, x = problem()
    q, model = gaussian_guide(variant, x), as_linear_gaussian(variant)
    assert q is not None
    assert model is not None

    table = compare_estimators(variant, x, ["trace", "stl", "iwae", "dreg:num_particles=2"], 120).table

    exact = model.bound(x, q).mean().item()
    assert abs(table.value["trace"] - exact) < 5 * table.value_error["trace"]
    assert table.value_bias["trace"] == pytest.approx(table.value["trace"] - exact, abs=1e-10)
    assert list(table.reference) == ["closed form", "closed form", "long run", "long run"]
    assert (table.value_bias.abs() < 5 * table.value_bias_error).all()
    rising = [*table.value[["trace", "dreg:num_particles=2", "iwae"]], model.log_evidence(x).mean().item()]
    assert rising == sorted(rising)
    for group in ("encoder", "decoder", "sigma"):
        assert (table[f"bias_{group}"] < 5 * table[f"noise_{group}"]).all()


def test_a_biased_estimator_shows_beside_the_noise() -> None:
    class Doubled(Trace_ELBO):
        """An estimator with twice the gradient."""

        def loss_and_grads(self, model: object, guide: object, *args: object) -> float:
            loss = super().loss_and_grads(model, guide, *args)
            super().loss_and_grads(model, guide, *args)
            return float(loss)

    row = compare_estimators(*problem(), [Doubled()], 100).rows[0]

    assert row["bias_encoder"] == pytest.approx(1.0, abs=5 * row["noise_encoder"])
    assert row["bias_encoder"] > 5 * row["noise_encoder"]


def test_moments_are_those_of_the_replicates() -> None:
    variant, x = problem()
    cold = frozen(variant)
    found = list(replicates(cold, Trace_ELBO(), (x, len(x)), 60, 0))
    gradients = torch.stack([replicate.gradient for replicate in found])

    row = compare_estimators(variant, x, [Trace_ELBO()], 60).rows[0]

    assert row["value"] == pytest.approx(-sum(r.value for r in found) / 60 / len(x), rel=1e-12)
    for group, span in spans(cold).items():
        some = gradients[:, span]
        assert row[f"variance_{group}"] == pytest.approx(float(some.var(0).sum()), rel=1e-9)
        ratio = some.mean(0).abs() / some.std(0)
        assert row[f"snr_{group}"] == pytest.approx(float(ratio.mean()), rel=1e-9)


@pytest.mark.parametrize("draws", [40, 27])
def test_the_error_of_a_ratio_is_its_jackknife_over_ten_batches(draws: int) -> None:
    """The ratio is computed again without each tenth of the draws, also where the tenths differ in size."""
    variant, x = problem()
    cold = frozen(variant)
    found = torch.stack([each.gradient for each in replicates(cold, Trace_ELBO(), (x, len(x)), draws, 0)])
    row = compare_estimators(variant, x, [Trace_ELBO()], draws).rows[0]

    batch = torch.tensor([index * 10 // draws for index in range(draws)])
    for group, span in spans(cold).items():
        kept = [found[batch != left][:, span] for left in range(10)]
        ratios = torch.stack([(some.mean(0).abs() / some.std(0)).mean() for some in kept])
        error = (0.9 * (ratios - ratios.mean()).square().sum()).sqrt()
        assert row[f"snr_{group}_error"] == pytest.approx(error.item(), rel=1e-7)
        variances = torch.stack([found[batch == one][:, span].var(0).sum() for one in range(10)])
        assert row[f"variance_{group}_error"] == pytest.approx(float(variances.std() / math.sqrt(10)), rel=1e-7)


def test_a_gradient_without_a_signal_stands_at_the_floor_which_is_printed() -> None:
    """At the exact posterior the guide's gradient is noise alone."""
    compared = compare_estimators(*problem(shift=0.0), ["trace"], DRAWS)
    row = compared.rows[0]

    assert row["snr_floor"] == pytest.approx(math.sqrt(2 / math.pi / DRAWS))
    assert abs(row["snr_encoder"] - row["snr_floor"]) < 4 * row["snr_encoder_error"]
    assert row["snr_encoder_error"] < row["snr_floor"]
    assert f"for noise alone it is 0.0564 with {DRAWS} draws" in str(compared)


def test_the_stated_error_of_a_variance_is_its_spread_over_seeds() -> None:
    variant, x = problem()
    rows = [compare_estimators(variant, x, ["trace"], 60, seed=seed).rows[0] for seed in range(8)]

    spread = torch.tensor([row["variance_encoder"] for row in rows]).std()
    stated = torch.tensor([row["variance_encoder_error"] for row in rows]).mean()
    assert 0.3 < stated / spread < 3  # chi-square of 7 and of 9 degrees of freedom: beyond, one in a thousand


def test_at_the_exact_posterior_sticking_the_landing_has_no_variance_and_trace_has() -> None:
    table = compare_estimators(*problem(shift=0.0), ["trace", "stl"], 20).table

    assert table.variance_encoder["stl"] < 1e-20
    assert table.variance_encoder["trace"] > 1
    assert table.snr_encoder["stl"] == 0.0  # noise of rounding is none


def test_every_estimator_has_the_same_random_numbers() -> None:
    variant, x = problem()
    table = compare_estimators(variant, x, ["trace", "stl", Trace_ELBO()], 20).table

    assert table.value["trace"] == pytest.approx(table.value["stl"], abs=1e-12)
    assert table.value["trace"] == pytest.approx(table.value["Trace_ELBO"], abs=1e-12)


def test_the_value_is_in_the_units_of_the_data() -> None:
    variant, x = problem()
    scaled = copy.deepcopy(variant)
    scaled.model.scale = Scale((3,), width=10.0)

    one, ten = (compare_estimators(v, y, ["trace"], 20).rows[0] for v, y in ((variant, x), (scaled, 10 * x)))

    assert ten["value"] == pytest.approx(one["value"] - 3 * math.log(10), abs=1e-10)
    assert ten["value_bias"] == pytest.approx(one["value_bias"], abs=1e-10)


def test_nothing_is_left_behind() -> None:
    variant = VARIANTS["optimal_sigma_vae"]((3,), 2)
    variant.model.train()
    before = copy.deepcopy(variant.model.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    compare_estimators(variant, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), ["iwae"], 20)

    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in variant.model.state_dict().items())
    assert all(parameter.grad is None for parameter in variant.model.parameters())
    assert variant.model.training
    assert dict(pyro.get_param_store().items()) == {}


def test_groups_are_every_trainable_parameter_once() -> None:
    variant = frozen(VARIANTS["sigma_vae"]((3,), 2))
    found = [parameter for group in parameters(variant).values() for parameter in group]
    everything = [parameter for half in variant[:2] for parameter in half.parameters()]

    assert {id(parameter) for parameter in found} == {id(parameter) for parameter in everything}
    assert len(found) == len(everything)


@pytest.mark.parametrize(
    ("estimators", "draws", "message"),
    [(["nope"], 20, "unknown estimator 'nope'"), (["trace"], 19, "draws must be at least 20")],
)
def test_bad_arguments_are_refused(estimators: list[str], draws: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_estimators(*problem(), estimators, draws)


def test_a_point_mass_has_nothing_to_estimate() -> None:
    with pytest.raises(ValueError, match="point-mass guide has no density"):
        compare_estimators(VARIANTS["rae"]((3,), 2), torch.randn(4, 3))


def test_renyi_of_pyro_is_compared_with_its_own_target() -> None:
    row = compare_estimators(*problem(), [RenyiELBO(alpha=0.0, num_particles=4, vectorize_particles=True)], DRAWS).rows[
        0
    ]

    assert row["target"] == "renyi"
    assert abs(row["value_bias"]) < 5 * row["value_bias_error"]


# Memory.


def test_the_peak_is_what_is_held_at_once() -> None:
    """Without a graph, a chain of ten products holds only the newest matrices; with a graph, it holds all of them."""
    weight = torch.randn(100, 100, requires_grad=True)

    def chain() -> Tensor:
        x = torch.randn(100, 100)
        for _ in range(10):
            x = x @ weight
        return x.sum()

    def quietly() -> None:
        with torch.no_grad():
            chain()

    matrix = 8 * 100 * 100
    assert peak_bytes(quietly) == 2 * matrix
    assert 11 * matrix <= peak_bytes(lambda: chain().backward()) <= 15 * matrix


def test_a_tensor_at_the_address_of_a_freed_one_counts() -> None:
    """Tensors that existed before count nothing, and those that take their place in memory count."""
    outside = [torch.ones(1000) for _ in range(50)]

    def replaced() -> list[Tensor]:
        while outside:
            outside.pop().sum()
        return [torch.ones(1000) for _ in range(50)]

    expected = sum(tensor.nbytes for tensor in outside)
    assert peak_bytes(replaced) == expected


# The command.


def test_the_command_writes_a_table_and_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = prepare("digits", limit=100)
    with seeded(0):
        save("run", VARIANTS["sigma_vae"](data.x_shape, 2), {"data": data.origin})

    ran = CliRunner().invoke(
        app, ["estimators", "stl", "dreg:num_particles=2", "--run", "run", "--draws", "20", "--json"]
    )

    assert ran.exit_code == 0, ran.output
    rows = json.loads(ran.stdout)["rows"]
    assert [(row["estimator"], row["K"]) for row in rows] == [("stl", 1), ("dreg:num_particles=2", 2)]
    assert (tmp_path / "run" / "estimators.csv").read_text().startswith("estimator,target,K,value,")
    assert (tmp_path / "run" / "estimators.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_run_the_command_lists_them() -> None:
    ran = CliRunner().invoke(app, ["estimators"])

    assert ran.exit_code == 0
    assert "dreg" in ran.stdout


def test_an_unknown_name_is_a_usage_error() -> None:
    ran = CliRunner().invoke(app, ["estimators", "nope"])

    assert ran.exit_code == 2
    assert "unknown estimator 'nope'" in ran.output
