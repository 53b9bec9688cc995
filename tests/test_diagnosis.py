"""diagnose: the verdicts follow from the numbers, and the page, the numbers and the draws need no other file."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import VARIANTS, Variant, bounds, convert, ex_post, pair, prepare, save
from ppl_vae.cli import main
from ppl_vae.diagnosis import Diagnosis, diagnose, diagnosis_page, write_diagnosis
from ppl_vae.diagnosis.code_usage import collapse
from ppl_vae.diagnosis.grades import interval_reach, wilson
from ppl_vae.diagnosis.inference_data import import_arviz
from ppl_vae.diagnosis.verdicts import judge_weights
from ppl_vae.evaluation.pareto import k_threshold
from ppl_vae.guides import FullRank, Laplace, PointMass
from ppl_vae.models import DiscretizedNormal, Gaussian, LinearGaussian, StudentT
from ppl_vae.verification.exact_pair import linear_pair

X_DIM, Z_DIM = 3, 2
SMALL: dict[str, Any] = {"num_particles": 60, "simulations": 60}


def problem(rows: int = 60, stretch: float = 1.0) -> tuple[Variant, Tensor]:
    """The linear-Gaussian model with its exact posterior, covariance times ``stretch``, and data drawn from it."""
    model = LinearGaussian(torch.randn(X_DIM, Z_DIM), torch.randn(X_DIM), torch.tensor(0.5))
    decoder = nn.Linear(Z_DIM, X_DIM)
    decoder.weight.data, decoder.bias.data = model.loading.clone(), model.loc.clone()
    variant = pair((X_DIM,), Z_DIM, likelihood=Gaussian(0.5), guide=FullRank, encoder=nn.Identity(), decoder=decoder)
    zero = model.posterior(torch.zeros(1, X_DIM))
    factor = torch.linalg.cholesky(stretch * zero.covariance_matrix[0])
    loc, log_diagonal, below = variant.guide.heads
    for head in variant.guide.heads:
        head.weight.data.zero_()
    loc.weight.data, loc.bias.data = (model.posterior(torch.eye(X_DIM)).loc - zero.loc).mT, zero.loc[0]
    log_diagonal.bias.data, below.bias.data = factor.diagonal().log(), factor[1:, 0].clone()
    return variant, torch.randn(rows, Z_DIM) @ model.loading.mT + model.loc + 0.5 * torch.randn(rows, X_DIM)


def answers(found: Diagnosis) -> dict[str, bool]:
    return {verdict.title: verdict.good for verdict in found.verdicts}


def test_all_verdicts_on_an_exact_guide_of_the_right_model_are_good() -> None:
    variant, x = problem(200)

    found = diagnose(variant, x, num_particles=60, simulations=300)

    assert set(answers(found).values()) == {True}
    text = diagnosis_page(found)
    assert re.findall(r'<td class="(?:good|look|bad)">(\w+)</td>', text) == ["good"] * 6
    assert "No datum has a finite tail index" in text  # weights are equal: -inf


def test_verdicts_on_a_narrow_guide_say_what_is_wrong_and_what_to_do() -> None:
    variant, x = problem(stretch=0.1)

    found = diagnose(variant, x, num_particles=400, simulations=300)

    verdict = found.verdicts[0]
    share = int((found.bounds.k_hat > k_threshold(400)).sum())
    assert not verdict.good
    assert f"{share} of 60 data ({100 * share / 60:.1f} %," in verdict.text
    assert "raise K" in verdict.text
    assert "widen q" in verdict.text
    assert "too narrow" in found.verdicts[2].text


@pytest.mark.parametrize(
    ("high", "rows", "grade"), [(0, 100, "good"), (1, 100, "good"), (6, 100, "look"), (30, 100, "bad"), (0, 8, "look")]
)
def test_weights_are_graded_by_the_interval_of_the_share_of_high_k_hats(high: int, rows: int, grade: str) -> None:
    """By Wilson's intervals: 0 of 100 reaches 4 %, 1 of 100 reaches 5 %, 6 of 100 begins at 3 %, 0 of 8 reaches 1/3."""
    k_hat = torch.tensor([2.0] * high + [0.0] * (rows - high))

    verdict = judge_weights(bounds(*problem(rows), 60)._replace(k_hat=k_hat), 60)

    assert verdict.grade == grade
    assert verdict.figure.value == high / rows
    assert verdict.figure.error > 0  # type: ignore[operator]


def test_the_interval_of_a_share_has_a_positive_width() -> None:
    """The ends are the roots p of ``(p - s)**2 = 4 p (1 - p) / n``. For s = 0 they are 0 and 4 / (n + 4)."""
    assert wilson(0, 60) == pytest.approx((0, 4 / 64))
    assert wilson(60, 60) == pytest.approx((60 / 64, 1))
    for p in wilson(7, 50):
        assert (p - 7 / 50) ** 2 == pytest.approx(4 * p * (1 - p) / 50)


def test_the_reach_of_an_interval_is_that_of_student_s_t_and_at_least_2() -> None:
    assert interval_reach(2) == pytest.approx(12.706, abs=1e-3)
    assert interval_reach(1000) == 2


def test_an_exact_sigma_of_an_autoencoder_is_judged_right() -> None:
    """Residuals at z ~ p(z | x) have the variance of the noise. Twice the covariance would add k / D = 1 / 2."""
    torch.manual_seed(0)
    model = LinearGaussian(2 * torch.randn(6, 3), torch.zeros(6), torch.tensor(0.5))
    x = torch.randn(200, 3) @ model.loading.mT + 0.5 * torch.randn(200, 6)

    found = diagnose(convert(linear_pair(model)), x, **SMALL)

    ratio = found.noise.ratio
    assert ratio.value is not None
    assert ratio.error is not None
    assert abs(ratio.value - 1) < 4 * ratio.error
    assert abs(ratio.value - 1.5**0.5) > 10 * ratio.error
    assert answers(found)["Is the noise as wide as the residuals?"] is True


def test_a_scale_at_its_floor_is_named_with_the_remedy() -> None:
    """Data in volts: x is a hundredth of the floor of sigma, so no code is used."""
    torch.manual_seed(0)
    variant, x = VARIANTS["sigma_vae"]((X_DIM,), Z_DIM), 1e-5 * torch.randn(50, X_DIM)
    variant.model.likelihood.set_scale(0.003)  # type: ignore[operator]
    for parameter in variant.model.decoder.parameters():
        parameter.data.zero_()

    by_title = {verdict.title: verdict.text for verdict in diagnose(variant, x, **SMALL).verdicts}

    for title in ("Do the codes carry information?", "Is the noise as wide as the residuals?"):
        assert "sigma stands at its floor 0.0025" in by_title[title]
        assert "scale='standardize'" in by_title[title]
        assert "smaller z_dim" not in by_title[title]


class Classes(nn.Module):
    """Four classes per coordinate, which have neither a mean nor a variance."""

    outputs = 4

    def forward(self, *logits: Tensor) -> dist.Categorical:
        return dist.Categorical(logits=torch.stack(logits, -1))


def test_the_noise_of_classes_without_a_mean_is_left_out() -> None:
    found = diagnose(pair((X_DIM,), Z_DIM, likelihood=Classes()), torch.randint(4, (20, X_DIM)).double(), **SMALL)

    left = [verdict for verdict in found.verdicts if verdict.grade == "left out"]
    assert "Is the noise as wide as the residuals?" in [verdict.title for verdict in left]
    assert "nan" not in json.dumps(found.as_dict())


@pytest.mark.parametrize("likelihood", [DiscretizedNormal(8), StudentT(1.5)])
def test_an_autoencoder_of_any_likelihood_is_diagnosed(likelihood: nn.Module) -> None:
    levels = getattr(likelihood, "levels", 2)
    x = torch.randint(levels, (20, X_DIM)) / (levels - 1)

    found = diagnose(VARIANTS["ae"]((X_DIM,), Z_DIM, likelihood=likelihood), x, **SMALL)

    assert found.bounds.elbo.isfinite().all()


def test_the_numbers_are_those_of_the_parts() -> None:
    """Bounds and codes are those of the same seed, and the errors of the ladder follow from them."""
    variant, x = problem(stretch=1.5)

    found = diagnose(variant, x, seed=4, **SMALL)
    alone = bounds(variant, x, 60, seed=4)

    assert all(torch.equal(a, b) for a, b in zip(found.bounds[:6], alone[:6], strict=True))
    assert found.collapse == collapse(variant, x, seed=4)
    first, second = found.ladder
    assert first.value.value == float(alone.elbo.mean())
    assert first.monte_carlo == pytest.approx(float(alone.elbo_error.square().sum().sqrt()) / len(x))
    assert first.value.value < second.value.value  # type: ignore[operator]


def test_the_ex_post_mixture_is_judged_by_the_same_draws() -> None:
    variant, x = problem(200, stretch=1.5)
    mixture = ex_post.fit(variant, x, 2)

    found = diagnose(variant, x, ex_post=mixture, **SMALL)

    assert found.ex_post is not None
    assert list(found.checks) == ["p(z)", "the ex-post mixture"]
    assert [rung.text.partition(":")[0] for rung in found.ladder[2:]] == ["the ex-post mixture as p(z)"] * 2
    z_score = (found.ex_post.elbo - found.bounds.elbo).mean() / found.bounds.elbo.std()
    assert z_score.abs() < 0.5  # the mixture was fitted to draws of a standard normal


def test_annealing_is_run_on_some_of_the_data_if_it_is_asked_for() -> None:
    variant, x = problem(30, stretch=1.5)

    found = diagnose(variant, x, temperatures=2, **SMALL)

    assert found.annealed is not None
    assert found.annealed.annealed is not None
    assert [rung.title for rung in found.ladder][-3:] == ["ELBO", "importance-weighted", "annealed"]
    assert found.ladder[-1].text == (
        "only 20 of the data, drawn at random; 16 chains, which are fewer than K, so it can be below the weighted bound"
    )


def test_a_point_mass_is_judged_with_a_laplace_proposal_and_says_so() -> None:
    torch.manual_seed(0)
    variant, x = VARIANTS["rae"]((X_DIM,), Z_DIM), torch.randn(20, X_DIM)

    found = diagnose(variant, x, **SMALL)

    proposal = variant._replace(guide=Laplace(variant.guide, variant.model))
    assert torch.equal(found.bounds.elbo, bounds(proposal, x, 60).elbo)
    assert found.name == "rae"
    assert "a proposal that nobody trained" in diagnosis_page(found)


def test_a_point_mass_in_single_precision_has_a_symmetric_proposal() -> None:
    """A product of Jacobians with small and large entries is symmetric only up to rounding, and torch refuses that."""
    torch.manual_seed(0)
    decoder = nn.Linear(8, 64)
    decoder.weight.data *= 3000 ** torch.rand(8)
    point = pair((64,), 8, likelihood=Gaussian(0.1), guide=PointMass, encoder=nn.Identity(), decoder=decoder)
    point.model.float()
    point.guide.float()

    precision = Laplace(point.guide, point.model).posterior(torch.randn(10, 64).float()).precision_matrix

    assert precision.isfinite().all()


@pytest.mark.parametrize(("name", "shape"), [("bernoulli_vae", (1, 4, 4)), ("sigma_vae", (1,)), ("wae_mmd", (X_DIM,))])
def test_every_kind_of_data_gets_a_page(name: str, shape: tuple[int, ...]) -> None:
    x = torch.randint(2, (12, *shape)).double()

    text = diagnosis_page(diagnose(VARIANTS[name](shape, Z_DIM), x, **SMALL))

    assert text.count("<section>") == 5
    assert ('<td class="none">left out</td>' in text) == (name == "bernoulli_vae")
    assert ("p(z) had no part in the training" in text) == (name == "wae_mmd")
    assert "{{" not in text
    assert "nan" not in re.sub(r'src="[^"]*"', "", text)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    variant, x = problem(30, stretch=0.3)
    return write_diagnosis(diagnose(variant, x, **SMALL), tmp_path_factory.mktemp("run")).parent


def test_three_files_are_written_and_nothing_else(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == ["diagnosis.html", "diagnosis.json", "draws.nc"]


def test_the_page_needs_no_other_file(written: Path) -> None:
    text = (written / "diagnosis.html").read_text()

    linked = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert linked
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in linked)
    assert "<style>" in text


def test_the_numbers_are_json_of_the_standard(written: Path) -> None:
    found = json.loads(
        (written / "diagnosis.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )

    assert len(found["per_datum"]["elbo"]) == found["rows"] == 30
    assert found["K"] == 60
    assert {verdict["good"] for verdict in found["verdicts"]} <= {True, False}
    assert found["collapse"]["kl"].keys() == {"value", "error", "reason"}


def test_the_draws_are_read_by_arviz(written: Path) -> None:
    found = import_arviz().from_netcdf(str(written / "draws.nc"))

    assert found.posterior.z.shape == (1, 60, 30, Z_DIM)
    assert "not of the posterior" in found.posterior.attrs["draws_are"]


def test_the_same_seed_gives_the_same_numbers_and_leaves_everything_as_it_was() -> None:
    variant, x = problem(20)
    variant.model.train()
    before, stream = {name: t.clone() for name, t in variant.model.state_dict().items()}, torch.get_rng_state()

    one, same = diagnose(variant, x, **SMALL), diagnose(variant, x, **SMALL)

    assert one.as_dict() == same.as_dict()
    assert one.data.posterior.identical(same.data.posterior)
    assert variant.model.training
    assert all(torch.equal(t, before[name]) for name, t in variant.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        (torch.zeros(1, X_DIM), {}, "at least 2 data for its standard errors, got 1"),
        (torch.zeros(5, X_DIM), {"num_particles": 20}, "num_particles must be at least 25 for a tail index, got 20"),
        (torch.zeros(5, 7), {}, r"a datum has shape \[7\], the model wants \[3\]"),
        (torch.full((5, X_DIM), torch.nan), {}, "x holds nan in row 0"),
        (torch.zeros(5, X_DIM), {"simulations": 3}, "at least 50 simulations"),
    ],
)
def test_bad_input_is_answered_in_a_line(x: Tensor, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        diagnose(problem()[0], x, **{**SMALL, **settings})
    assert "\n" not in str(caught.value)


# The command.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A checkpoint of a variant for a small table, with the origin of the data."""
    x = torch.randn(60, X_DIM).numpy()
    table = tmp_path / "tiny.csv"
    table.write_text("\n".join(["a,b,c", *(",".join(map(str, row)) for row in x)]) + "\n")
    data = prepare(str(table))
    return save(tmp_path / "run", VARIANTS["sigma_vae"](data.x_shape, Z_DIM), {"data": data.origin})


@pytest.fixture
def ppl_vae(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    def call(*arguments: Any) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["ppl-vae", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


def test_the_command_writes_beside_the_checkpoint(run: Path, ppl_vae: Callable[..., Any]) -> None:
    code, out, err = ppl_vae("diagnose", run, "-K", 30, "--components", 1)

    assert code == 0, err
    assert f"page: {run / 'diagnosis.html'}" in out
    assert "Can the importance-weighted bound be trusted?" in out
    assert "s left" in err
    assert {"diagnosis.html", "diagnosis.json", "draws.nc"} <= {path.name for path in run.iterdir()}


def test_the_command_takes_a_named_run_prints_json_and_writes_elsewhere(
    run: Path, tmp_path: Path, ppl_vae: Callable[..., Any]
) -> None:
    code, out, err = ppl_vae(
        "diagnose", "--run", run, "-K", 30, "--rows", 5, "--json", "--quiet", "--out", tmp_path / "there"
    )

    assert (code, err) == (0, "")
    assert json.loads(out)["rows"] == 5
    assert not (run / "diagnosis.html").exists()
    assert (tmp_path / "there" / "diagnosis.html").exists()


@pytest.mark.parametrize(("arguments", "got"), [((), 0), (("a", "--run", "b"), 2)])
def test_one_run_is_wanted(arguments: tuple[str, ...], got: int, ppl_vae: Callable[..., Any]) -> None:
    code, _, err = ppl_vae("diagnose", *arguments)

    assert code == 2
    assert f"got {got}" in " ".join(err.split())


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path, ppl_vae: Callable[..., Any]) -> None:
    code, out, err = ppl_vae("diagnose", tmp_path)

    assert (code, out) == (1, "")
    assert f"{tmp_path} is no checkpoint" in err
