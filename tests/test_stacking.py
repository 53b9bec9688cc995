"""paired and stack: closed forms, and the conditions that hold at the optimum and nowhere else."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from ppl_vae.evaluation.stacking import log_mixture, paired, stack


def slope(log_densities: Tensor, weights: Tensor) -> Tensor:
    """Derivatives of the log score, ``mean_n p_m / mixture``: at the optimum 1 where w > 0, at most 1 elsewhere."""
    return (log_densities - log_mixture(log_densities, weights)).exp().mean(1)


# Differences.


def test_the_error_over_data_is_that_of_the_paired_difference() -> None:
    """Data differ by tens of nats, fits by a few: the means' own errors say nothing about them."""
    common = 30 * torch.randn(400)
    a, b = common + 0.5 + torch.randn(400), common + torch.randn(400)
    found = paired(a, b)

    assert found.difference == pytest.approx(float((a - b).mean()))
    assert found.error_over_data == pytest.approx(float((a - b).std()) / 20)
    assert found.error_over_seeds is None
    unpaired = math.hypot(float(a.std()), float(b.std())) / 20
    assert found.error_over_data < 0.1 * unpaired
    assert paired(b, a).difference == -found.difference


def test_the_two_errors_answer_two_questions() -> None:
    """Effects of a seed and of a datum, added up: each error is that of its own, over sqrt(count)."""
    seeds, rows = 2000, 3000
    effect, datum = 0.7 * torch.randn(seeds, 1), 2.0 * torch.randn(rows)
    found = paired(effect + datum, torch.zeros(seeds, rows))

    assert found.error_over_seeds == pytest.approx(0.7 / math.sqrt(seeds), rel=0.07)
    assert found.error_over_data == pytest.approx(2.0 / math.sqrt(rows), rel=0.06)
    assert paired(datum[None], torch.zeros(1, rows)).error_over_seeds is None
    assert paired(datum.expand(3, -1), torch.zeros(3, rows)).error_over_seeds == 0


def test_errors_are_those_of_repetition() -> None:
    found = [paired(1 + torch.randn(4, 1) + torch.randn(4, 50), torch.zeros(4, 50)) for _ in range(400)]
    differences = torch.tensor([one.difference for one in found])
    errors = torch.tensor([one.error_over_seeds for one in found])

    assert differences.std() == pytest.approx(float(errors.square().mean().sqrt()), rel=0.12)


@pytest.mark.parametrize(
    ("a", "b"), [((5,), (6,)), ((2, 5), (3, 5)), ((1,), (1,)), ((), ()), ((2, 3, 4), (2, 3, 4)), ((5,), (1, 5))]
)
def test_what_cannot_be_paired_is_refused(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wants \[rows\] or \[seeds, rows\], the same for both, .* got \["):
        paired(torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(9,), (2, 9)])
def test_a_bound_that_is_not_finite_is_refused_by_its_row(shape: tuple[int, ...], value: float) -> None:
    """Also where both are minus infinity, of which the difference is no number."""
    broken = torch.zeros(shape)
    broken[..., [2, 7]] = value
    for pair, name in (((broken, torch.zeros(shape)), "a"), ((torch.zeros(shape), broken), "b"), ((broken,) * 2, "a")):
        with pytest.raises(ValueError, match=f"finite bounds, and {name} has none for rows 2, 7: leave these rows out"):
            paired(*pair)


# Mixtures.


@pytest.mark.parametrize("floor", [-math.inf, -1e4])
@pytest.mark.parametrize("counts", [[30, 10], [5, 1, 94], [1, 1]])
def test_of_disjoint_supports_weights_are_the_proportions(counts: list[int], floor: float) -> None:
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    log_densities = torch.where(owner == torch.arange(len(counts))[:, None], torch.randn(len(owner)) - 1e3, floor)
    found = stack(log_densities)

    share = torch.tensor(counts) / sum(counts)
    assert torch.allclose(found.weights, share, rtol=0, atol=1e-9)
    entropy = -(share * share.log()).sum()
    assert found.log_density.mean() == pytest.approx(float((log_densities.amax(0)).mean() - entropy), abs=1e-8)


def test_of_two_models_that_trade_two_outcomes_the_weights_are_known() -> None:
    """p = (a, 1 - a), (b, 1 - b) on outcomes seen f and 1 - f times: the mixture hits f where it can."""
    a, b, f = 0.9, 0.2, 0.6
    seen = torch.tensor([1] * 60 + [0] * 40).bool()
    log_densities = torch.stack([torch.where(seen, p, 1 - p) for p in (torch.tensor(a), torch.tensor(b))]).log()
    assert stack(log_densities).weights[0] == pytest.approx((f - b) / (a - b), abs=1e-9)


def test_identical_models_share_and_cost_nothing() -> None:
    log_density = torch.randn(50) - 200
    found = stack(torch.stack([log_density, log_density, log_density]))
    assert found.weights.sum() == pytest.approx(1)
    assert torch.allclose(found.log_density, log_density)
    assert found.slack < 1e-9


def test_a_dominated_model_has_no_weight() -> None:
    log_density = torch.randn(80)
    found = stack(torch.stack([log_density - 0.01, log_density, log_density - torch.rand(80)]))
    assert torch.allclose(found.weights, torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-7)
    assert found.log_score[0] == pytest.approx(float(log_density.mean()), abs=1e-9)


@pytest.mark.parametrize("spread", [1e-3, 0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("models", [1, 2, 5, 15])
def test_the_conditions_of_an_optimum_hold(models: int, spread: float) -> None:
    """And so no other weights score better by more than ``slack``: the score is concave."""
    log_densities = spread * (torch.randn(models, 60) + 0.5 * torch.randn(models, 1)) - 1e3
    found = stack(log_densities)
    g = slope(log_densities, found.weights)

    assert found.weights.min() >= 0
    assert found.weights.sum() == pytest.approx(1, abs=1e-12)
    assert g.max() < 1 + 1e-9
    assert (found.weights * (g - 1)).abs().max() < 1e-9
    assert found.slack == pytest.approx(max(float(g.max()) - 1, 0.0), abs=1e-12)
    others = torch.distributions.Dirichlet(torch.full((models,), 0.3)).sample((200,)).clamp_min(1e-300)
    scores = torch.stack([log_mixture(log_densities, w).mean() for w in others])
    assert scores.max() <= found.log_score[0] + 1e-9


def test_the_conditions_fail_anywhere_else() -> None:
    """Equal weights, the best single model, weights by mean score: none is the optimum, and each is told from it."""
    log_densities = torch.stack(
        [Normal(loc, 0.5).log_prob(torch.cat([torch.randn(60) - 1, torch.randn(30) + 2])) for loc in (-1.0, 2.0, 0.0)]
    )
    found = stack(log_densities)
    means = log_densities.mean(1)
    for wrong in (torch.ones(3) / 3, torch.eye(3)[means.argmax()], (90 * means).softmax(0)):
        assert slope(log_densities, wrong).max() > 1.01
        assert log_mixture(log_densities, wrong).mean() < found.log_score[0] - 1e-3


def test_what_all_models_say_of_a_datum_changes_no_weight() -> None:
    log_densities, shift = 3 * torch.randn(4, 70), 1e4 * torch.randn(70)
    here, there = stack(log_densities), stack(log_densities + shift)

    assert torch.allclose(there.weights, here.weights, rtol=0, atol=1e-7)
    assert torch.allclose(there.log_density, here.log_density + shift, rtol=0, atol=1e-6)


def test_log_densities_far_below_what_can_be_exponentiated_are_stacked() -> None:
    log_densities = -1e4 + 50 * torch.randn(3, 40)
    found = stack(log_densities)
    assert found.log_density.isfinite().all()
    assert found.log_density.mean() > log_densities.mean(1).max()
    assert not log_densities.exp().any()  # what a mixture outside of log space would have added up


def test_the_score_is_the_mean_over_data_with_its_error() -> None:
    found = stack(torch.randn(3, 100))
    value, error = found.log_score
    assert value == pytest.approx(float(found.log_density.mean()))
    assert error == pytest.approx(float(found.log_density.std()) / 10)


def test_a_mixture_is_the_sum_of_its_parts() -> None:
    p, weights = torch.rand(3, 20), torch.tensor([0.2, 0.0, 0.8])
    assert torch.allclose(log_mixture(p.log(), weights), (weights @ p).log())


def test_single_precision_is_returned_as_it_came() -> None:
    found = stack(torch.randn(3, 50).float())
    assert found.weights.dtype == found.log_density.dtype == torch.float32


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_datum_without_a_finite_density_is_refused(wrong: float) -> None:
    log_densities = torch.randn(3, 20)
    log_densities[:, 4] = wrong
    with pytest.raises(
        ValueError, match=r"each with a finite density under some model.* got shape \[3, 20\] with none for row 4"
    ):
        stack(log_densities)


@pytest.mark.parametrize("shape", [(20,), (0, 20), (3, 1), (2, 3, 4)])
def test_what_is_no_table_of_models_by_rows_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wants \[models, rows\], 2 rows or more, .* got shape \["):
        stack(torch.randn(shape))


def test_lists_of_what_bounds_returns_are_taken() -> None:
    rows = [torch.randn(9), torch.randn(9)]

    assert torch.equal(stack(rows).weights, stack(torch.stack(rows)).weights)
    assert paired(rows[0].tolist(), rows[1].numpy()).difference == pytest.approx(paired(*rows).difference, abs=1e-6)
    assert str(paired(*rows)).startswith("a - b = ")
