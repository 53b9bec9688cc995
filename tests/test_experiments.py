"""The experiments on studies: their numbers, their claims, and that the committed verdicts follow from the rows."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr, ttest_1samp  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from ppl_vae import VARIANTS, Variant, evaluate, ex_post, fit, prepare
from ppl_vae.data.data_set import Data
from ppl_vae.data.public import found_at, public_set
from ppl_vae.estimate import Number
from ppl_vae.evaluation.features import Features, principal_components
from ppl_vae.experiments import (
    balance,
    conversion,
    deterministic,
    elbo_estimators,
    structured,
    unrestricted,
    weight_decay,
)
from ppl_vae.models import Mixture
from ppl_vae.studies import Result, judged
from ppl_vae.studies.evidence import Evidence
from ppl_vae.studies.experiment import SCALES, _run, verdicts_of, wide
from ppl_vae.studies.measures import of_codes, of_noise, of_samples, rank_correlation

RESULTS = Path(__file__).resolve().parents[1] / "experiments" / "results"
PAGES = {"deterministic": deterministic, "balance": balance, "conversion": conversion}
LATER = {  # their contestants are tried in tests of their own
    "weight_decay": weight_decay,
    "unrestricted": unrestricted,
    "elbo_estimators": elbo_estimators,
    "structured": structured,
}
every_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
every_result = pytest.mark.parametrize("page", [*PAGES.values(), *LATER.values()], ids=[*PAGES, *LATER])


# The pages.


@every_page
def test_an_experiment_runs_on_digits(page: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smoke scale has every contestant, here with one seed. Its verdicts follow from the rows of its file."""
    scale = replace(SCALES["smoke"], seeds=1)
    _run(page.EXPERIMENT, scale, 1, None, tmp_path / "study", tmp_path, quiet=True)
    out = capsys.readouterr().out
    name = page.EXPERIMENT.name
    found = json.loads((tmp_path / f"{name}.json").read_text())

    assert {row["data"] for row in found["rows"]} == {"digits"}
    assert [row.get("reason") for row in found["rows"] if row.get("reason")] == []
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    verdicts = [verdict.verdict for verdict in verdicts_of(tmp_path / f"{name}.json")]
    assert verdicts == [verdict["verdict"] for verdict in found["verdicts"]] != []
    assert all(line in out for line in (page.EXPERIMENT.question, "1 seed", f"{name}.json"))


@every_result
def test_the_committed_verdicts_follow_from_the_committed_rows(page: ModuleType) -> None:
    path = RESULTS / f"{page.EXPERIMENT.name}.json"
    found = json.loads(path.read_text())
    again = [(verdict.name, verdict.text, verdict.verdict, verdict.figure) for verdict in verdicts_of(path)]

    assert again == [(one["name"], one["text"], one["verdict"], one["figure"]) for one in found["verdicts"]]
    assert found["scale"]["name"] == "reduced"
    assert {row["seed"] for row in found["rows"]} == set(range(5))


@every_result
def test_a_committed_verdict_is_that_of_students_test(page: ModuleType) -> None:
    """The verdicts are computed again from the differences, with SciPy's t test and Holm's correction by hand."""
    found = json.loads((RESULTS / f"{page.EXPERIMENT.name}.json").read_text())
    families: dict[str, list[tuple[float, dict[str, Any], dict[str, Any]]]] = {}
    for claim, verdict in zip(found["claims"], found["verdicts"], strict=True):
        values = np.array(list(claim["differences"].values()))
        margin = claim["margin"]
        shifted = values if margin is None else margin - abs(values.mean()) + (values - values.mean())
        spread = shifted.std(ddof=1)
        p = float(ttest_1samp(shifted, 0.0).pvalue) if spread > 0 else float(shifted.mean() == 0)
        families.setdefault(claim["family"] or claim["name"], []).append((p, claim, verdict))

    for members in families.values():
        highest = 0.0
        for place, (p, claim, verdict) in enumerate(sorted(members, key=lambda member: member[0])):
            highest = max(highest, min(1.0, (len(members) - place) * p))
            values = np.array(list(claim["differences"].values()))
            statistic = values.mean() if claim["margin"] is None else claim["margin"] - abs(values.mean())
            is_decided = highest < 0.05 and abs(statistic) > 2 * (claim["error_over_data"] or 0.0)
            wanted = ("held" if statistic > 0 else "reversed") if is_decided else "undecided"
            assert (verdict["verdict"], verdict["name"]) == (wanted, claim["name"])
            assert math.isclose(verdict["p"], highest, rel_tol=1e-6, abs_tol=1e-12)


@every_page
def test_all_contestants_of_a_table_share_data_nets_and_steps(page: ModuleType) -> None:
    """Only the arguments that an arm is about differ: the share of an autoencoder's epochs, and the width of a code."""
    data = public_set("digits", None, rows=60, test_rows=30)
    assert data is not None
    cells = page.EXPERIMENT.cells(SCALES["reduced"], data)

    shared = [{name: value for name, value in cell.training.items() if name != "share"} for cell in cells]
    assert all(training == {"epochs": 20, "batch_size": 32} for training in shared)
    assert {cell.judging for cell in cells} == {SCALES["reduced"].judging}
    assert {cell.seed for cell in cells} == set(range(5))
    assert not any({"encoder", "decoder", "width", "lr"} & cell.contestant.options.keys() for cell in cells)
    assert {cell.z_dim for cell in cells} <= {page.Z_DIM, balance.WIDE}


def test_the_wide_networks_are_those_of_the_paper() -> None:
    """1024 channels before the code, and half of them in each layer of the decoder."""
    variant = wide((1, 32, 32), 16, variant="rae_sn")
    y = torch.rand(2, 1, 32, 32)

    channels = [layer.out_channels for layer in variant.guide.encoder if hasattr(layer, "out_channels")]
    assert channels == [128, 256, 512, 1024]
    assert variant.model.x_given_z(variant.guide.posterior(y).mean).mean.shape == y.shape


# Claims from rows.


def rows_of(table: dict[str, list[float]], errors: float | None = None) -> list[dict[str, Any]]:
    """Rows of two contestants on one data set, a value per seed."""
    return [
        {"data": "d", "variant": name, "seed": seed, "F": value, "F_error": errors}
        for name, values in table.items()
        for seed, value in enumerate(values)
    ]


def test_a_claim_pairs_the_seeds_that_both_have() -> None:
    rows = [
        *rows_of({"a": [3.0, 5.0, 4.0], "b": [1.0, 2.0, 3.0]}, 0.3),
        {"data": "d", "variant": "b", "seed": 7, "F": 9.0},
    ]

    claim = Evidence(rows).claim("X", "a is above b", "d", ("a", "F"), ("b", "F"))

    assert claim.differences == {0: 2.0, 1: 3.0, 2: 1.0}
    assert claim.error_over_data is not None
    assert math.isclose(claim.error_over_data, math.hypot(0.3, 0.3))


def test_a_claim_of_no_worse_has_a_factor_and_one_of_equality_a_margin() -> None:
    evidence = Evidence(rows_of({"a": [10.0, 10.0], "b": [10.5, 10.7]}))

    no_worse = evidence.claim("X", "b is at most 10 % above a", "d", ("a", "F"), ("b", "F"), factor=1.1)
    equal = evidence.claim("X", "they differ little", "d", ("a", "F"), ("b", "F"), share=0.1)

    assert [round(value, 12) for value in no_worse.differences.values()] == [0.5, 0.3]
    assert equal.margin == 1.0


def test_the_best_weight_of_the_sweep_is_that_of_the_best_mean() -> None:
    table = {balance.weighted(beta): [float(beta != 0.1), 2.0] for beta in balance.BETAS}

    assert balance.best_of_sweep(Evidence(rows_of(table)), "d", "F", up=False) == "beta 0.1"


def test_the_knee_is_the_difference_of_two_slopes() -> None:
    """KL(q(z) || p(z)) falls by 3 nats in the half decade below sigma**2 = .0316, and by 1 nat in the one above."""
    rows = [
        {"data": "d", "variant": "learned", "seed": 0, "sigma_last": math.sqrt(math.sqrt(0.001)), "aggregate_kl": 4.0},
        {"data": "d", "variant": "beta 0.01", "seed": 0, "aggregate_kl": 7.0},
        {"data": "d", "variant": "beta 0.1", "seed": 0, "aggregate_kl": 3.0},
    ]

    assert math.isclose(balance.knees(Evidence(rows), "d")[0], (3.0 - 1.0) / (0.5 * math.log(10)))


def test_the_epochs_to_a_bound_are_counted_from_one() -> None:
    assert [conversion.epochs_to(3.0, losses) for losses in ([3.0], [5.0, 2.0, 4.0], [5.0, 4.0])] == [1, 2, 3]


# Further numbers of a result.


def result_of(variant: Variant, data: Data, **options: Any) -> Result:
    trained = fit(variant, data, epochs=2, progress=False, **options)
    mixture = ex_post.fit(variant, data, 2)
    return Result("it", trained, mixture, evaluate(variant, data, 8, train=data.resident, ex_post=mixture))


@pytest.fixture(scope="module")
def digits() -> Data:
    return prepare("digits", scale="unit", limit=120)


def test_a_rank_correlation_is_spearmans() -> None:
    a, b = torch.randn(4, 30).double(), torch.randint(3, (4, 30)).double()

    found = rank_correlation(a, b)

    wanted = [spearmanr(a[row].numpy(), b[row].numpy()).statistic for row in range(4)]
    assert torch.allclose(found, torch.tensor(wanted).double(), atol=1e-12)


def test_the_distances_of_an_experiment_are_those_of_evaluate(digits: Data) -> None:
    """In the other space, and with one Gaussian on the codes, they are what ``evaluate`` says there."""
    torch.manual_seed(0)
    result = result_of(VARIANTS["sigma_vae"](digits.x_shape, 3), digits)
    y = result.variant.in_model_units(digits.resident)
    pixels = Features("a few pixels", lambda x: x.flatten(1)[:, 20:26])
    one = ex_post.fit(result.variant, digits, 1)
    found = of_samples(result, pixels)

    there = {"train": digits.resident, "num_particles": 8}
    in_pixels = evaluate(result.variant, digits, ex_post=one, features=pixels, **there)
    in_components = evaluate(result.variant, digits, ex_post=result.mixture, features=principal_components(y), **there)
    assert found["frechet_one"] == in_pixels["frechet_ex_post"]
    for name in ("floor", "prior", "ex_post", "reconstructions", "interpolations"):
        assert found[f"pca_frechet_{name}"] == in_components[f"frechet_{name}"]
    assert "pca_frechet_prior" not in of_samples(result, principal_components(y))


class Known(torch.nn.Module):
    """A guide whose q(z | x) is the same for all data."""

    has_density = True

    def posterior(self, x: Tensor) -> Any:
        import pyro.distributions as dist

        return dist.Normal(torch.full((len(x), 2), 0.5), 0.7).to_event(1)


def test_the_aggregate_kl_is_that_of_two_gaussians(digits: Data) -> None:
    """With q(z | x) = q(z) for all x and the mixture equal to q(z), it is KL(q(z) || p(z)) up to its error."""
    variant = VARIANTS["sigma_vae"](digits.x_shape, 2)._replace(guide=Known())  # type: ignore[arg-type]
    mixture = Mixture.of(torch.ones(1), torch.full((1, 2), 0.5), 0.49 * torch.eye(2)[None])
    many = Data("many", digits.train, digits.test.repeat(100, 1, 1, 1), None, None, digits.scale)

    class Fitted:
        def __init__(self) -> None:
            self.variant, self.data = variant, many

    found = of_codes(Result("it", Fitted(), mixture, None), principal_components(digits.train))["aggregate_kl"]  # type: ignore[arg-type]

    exact = 2 * (0.5 * (0.49 + 0.25 - 1) - math.log(0.7))
    assert found.value is not None
    assert found.error is not None
    assert abs(found.value - exact) < 4 * found.error
    assert found.error < 0.02


def test_a_rank_correlation_needs_a_sigma_of_each_pixel(digits: Data) -> None:
    one = result_of(VARIANTS["sigma_vae"](digits.x_shape, 2), digits)
    many = result_of(VARIANTS["heteroscedastic_vae"](digits.x_shape, 2, stage=0.0), digits)
    none = result_of(VARIANTS["ae"](digits.x_shape, 2), digits)
    space = principal_components(digits.train)

    assert of_noise(one, space)["sigma_rank_correlation"] == Number(None, reason="one sigma")
    assert of_noise(many, space)["sigma_rank_correlation"].value is not None
    assert of_noise(none, space)["sigma_rank_correlation"].reason == "MAP"


# A user's copies of the public sets.


def test_a_copy_of_a_public_set_is_found_and_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 20), dtype=np.uint8)
    np.savez(tmp_path / "freyfaces.npz", x=images)
    monkeypatch.setenv("PPL_VAE_DATA", str(tmp_path))

    data = public_set("frey_faces", None, rows=30, test_rows=5)

    assert found_at("mnist", tmp_path) is None
    assert public_set("mnist", None, rows=5, test_rows=5) is None
    assert data is not None
    assert (data.name, list(data.resident.shape), len(data.test)) == ("frey_faces", [30, 1, 28, 20], 5)
    held_out = {row.numpy().tobytes() for row in data.test}
    assert held_out & {row.numpy().tobytes() for row in data.resident} == set()
    assert float(data.scale(data.test).max()) <= 1.0


def test_without_a_data_folder_there_is_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PPL_VAE_DATA", raising=False)

    assert found_at("mnist", None) is None


def test_the_same_seed_cuts_the_same_rows() -> None:
    one, other = (public_set("digits", None, rows=40, test_rows=20) for _ in range(2))

    assert one is not None
    assert other is not None
    assert one.digest == other.digest
    assert judged([]) == []
