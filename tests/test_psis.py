"""psis: the numbers of both lines of arviz, and the tail indices that are known by hand."""

import math
import warnings

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from ppl_vae.diagnosis.inference_data import import_arviz
from ppl_vae.evaluation import pareto as module
from ppl_vae.evaluation.pareto import effective_sample_size, k_threshold, psis

OF_ARVIZ_0 = hasattr(import_arviz(), "psislw")  # arviz 1 keeps its function in arviz_stats


def reference(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Smoothed log weights, which sum to one, and k-hat by the installed arviz."""
    if OF_ARVIZ_0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it divides by zero where a tail is short
            smoothed, k_hat = import_arviz().psislw(log_weights.clone().numpy())
    else:
        from arviz_stats.base import array_stats

        smoothed, k_hat = array_stats.psislw(-log_weights.numpy())  # arviz 1 wants log likelihoods
    return torch.as_tensor(smoothed), torch.as_tensor(k_hat)


def same_tail(draws: int) -> int:
    """Of how many draws, the largest, our tail is as long as that of the installed arviz is of ``draws``.

    arviz 0.23 rounds min(draws / 5, 3 sqrt(draws)) up, as we do, and arviz 1 rounds it down.
    """
    if OF_ARVIZ_0:
        return draws
    return draws - draws % 5 if draws <= 225 else math.isqrt(9 * draws) ** 2 // 9


def gaussian(variance: float, rows: int, draws: int) -> Tensor:
    """Log weights of draws of Normal(0, variance) for Normal(0, 1)."""
    z = math.sqrt(variance) * torch.randn(rows, draws)
    return Normal(0.0, 1.0).log_prob(z) - Normal(0.0, math.sqrt(variance)).log_prob(z)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


# The same numbers as the reference.


@pytest.mark.parametrize("draws", [30, 113, 226, 2000])
def test_weights_and_tail_are_those_of_arviz(draws: int) -> None:
    """Of the draws whose tail is as long; the smallest draws take no part in the fit."""
    kinds = [
        torch.randn(3, draws),
        5 * torch.randn(3, draws) - 1e4,
        -1.3 * torch.rand(3, draws).log(),  # a heavy tail
        -torch.randn(3, draws).square(),  # a bounded one
        torch.randn(3, draws).masked_fill(torch.rand(3, draws) < 0.3, -math.inf),
    ]
    log_weights = torch.stack(kinds).sort(descending=True).values
    expected, expected_k = reference(log_weights)
    kept = same_tail(draws)

    smoothed, k_hat = psis(log_weights[..., :kept])

    assert k_hat.shape == (5, 3)
    assert torch.allclose(k_hat, expected_k, rtol=1e-10, atol=1e-10)
    assert torch.allclose(smoothed, expected[..., :kept].log_softmax(-1), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("underflow", [False, True])
def test_draws_that_are_not_above_the_cutoff_are_no_part_of_the_tail(underflow: bool) -> None:
    """Of 20 in a tail, 8 tie with the cutoff, or have weights below the smallest double: 12 of 60 are the same tail."""
    log_weights = (3 * torch.randn(5, 100)).sort(descending=True).values
    if underflow:
        log_weights[:, 12:] = log_weights[:, :1] - torch.linspace(710, 900, 88)
    else:
        log_weights[:, 12:20] = log_weights[:, 20:21]
    lowest = log_weights[:, :1] + math.log(torch.finfo(torch.float64).tiny)
    expected, expected_k = reference(log_weights[:, :60].maximum(lowest))

    smoothed, k_hat = psis(log_weights)

    assert torch.allclose(k_hat, expected_k, rtol=1e-10, atol=1e-10)
    assert torch.allclose(smoothed[:, :12].log_softmax(-1), expected[:, :12].log_softmax(-1), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("draws", "tied"), [(25, 1), (100, 7)])
def test_a_tail_whose_first_quartile_is_its_minimum_is_fitted_where_arviz_1_declines(draws: int, tied: int) -> None:
    """As of any five draws, and of twenty whose lowest seven are tied: arviz 1 gives NaN, and arviz 0.23 a number."""
    log_weights = (3 * torch.randn(5, draws)).sort(descending=True).values
    tail = draws // 5
    log_weights[:, tail - tied : tail] = log_weights[:, tail - tied, None]
    expected_k = reference(log_weights)[1]

    k_hat = psis(log_weights)[1]

    assert k_hat.isfinite().all()
    assert torch.equal(expected_k.isnan(), torch.full((5,), not OF_ARVIZ_0))
    assert torch.allclose(k_hat, expected_k.where(expected_k.isfinite(), k_hat), rtol=1e-10, atol=1e-10)


def test_rows_taken_in_turn_are_rows_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log_weights = 3 * torch.randn(13, 4, 150)
    whole = psis(log_weights)
    monkeypatch.setattr(module, "NUMBERS", 5000)

    for part, expected in zip(psis(log_weights), whole, strict=True):
        assert torch.equal(part, expected)


def test_smoothing_moves_the_tail_alone_and_none_above_the_largest() -> None:
    log_weights = 3 * torch.randn(50, 400)
    smoothed, _ = psis(log_weights, normalize=False)
    tail = math.ceil(3 * math.sqrt(400))
    order = log_weights.argsort(-1, descending=True)
    before, after = log_weights.gather(-1, order), smoothed.gather(-1, order)

    assert torch.allclose(after[:, tail:], before[:, tail:], rtol=0, atol=1e-12)
    assert (after[:, :tail] != before[:, :tail]).any(-1).all()
    assert (after.diff(dim=-1) <= 1e-12).all()  # in the same order
    assert (smoothed.amax(-1) <= log_weights.amax(-1) + 1e-12).all()
    assert torch.allclose(psis(log_weights)[0].exp().sum(-1), torch.ones(50))


def test_a_constant_moves_weights_by_itself_and_the_tail_by_nothing() -> None:
    log_weights = 2 * torch.randn(5, 300)
    for normalize, shift in ((True, 0.0), (False, 50.0)):
        (here, k_here), (there, k_there) = (psis(w, normalize=normalize) for w in (log_weights, log_weights + 50))
        assert torch.allclose(there, here + shift, rtol=0, atol=1e-10)
        assert torch.allclose(k_there, k_here, rtol=0, atol=1e-10)


def test_single_precision_stays_and_is_fitted_in_double() -> None:
    log_weights = (2 * torch.randn(5, 300)).float() - 1000
    smoothed, k_hat = psis(log_weights)
    expected, expected_k = psis(log_weights.double())

    assert smoothed.dtype == k_hat.dtype == torch.float32
    assert torch.allclose(k_hat.double(), expected_k, rtol=0, atol=1e-6)
    assert torch.allclose(smoothed.double(), expected, rtol=1e-6)


# Tail indices known by hand.


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9, 1.3])
def test_pareto_weights_have_the_index_they_were_drawn_with(k: float) -> None:
    """``w = u**-k`` is a Pareto law, and so is its excess over any level; the prior pulls to one half by ten draws."""
    log_weights = -k * torch.rand(200, 4000).log()
    found, error = mean_and_error(psis(log_weights)[1])
    tail = math.ceil(3 * math.sqrt(4000))
    pulled = (tail * k + 5) / (tail + 10)

    assert found == pytest.approx(pulled, abs=4 * error)
    assert error < 0.02


@pytest.mark.parametrize("variance", [0.25, 0.5, 0.81])
def test_a_gaussian_narrower_than_its_target_by_r_has_a_tail_of_one_minus_r(variance: float) -> None:
    """In the limit. Where |z| is s deviations, log w has the hazard of the normal: index ``(1 - r) s / hazard``."""
    draws = 20_000
    found, error = mean_and_error(psis(gaussian(variance, 60, draws))[1])
    tail, limit = math.ceil(3 * math.sqrt(draws)), 1 - variance
    share = tail / draws
    s = -Normal(0.0, 1.0).icdf(torch.tensor(share / 2))
    threshold = limit * float(s * share / (2 * Normal(0.0, 1.0).log_prob(s).exp()))  # where the tail begins

    assert threshold - 4 * error < found < (tail * limit + 5) / (tail + 10) + 4 * error
    assert error < 0.015


@pytest.mark.parametrize("correlation", [-0.9, 0.6, 0.3])
def test_the_best_mean_field_guide_of_two_codes_has_a_tail_of_their_correlation(correlation: float) -> None:
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]])
    target = MultivariateNormal(torch.zeros(2), covariance)
    guide = MultivariateNormal(torch.zeros(2), precision_matrix=torch.linalg.inv(covariance).diagonal().diag())
    z = guide.sample((20, 20_000))
    found, error = mean_and_error(psis(target.log_prob(z) - guide.log_prob(z))[1])

    assert 0.8 * abs(correlation) < found < abs(correlation) + 4 * error  # from below, by the logarithm of draws


def test_the_wrong_sign_would_call_a_heavy_tail_light() -> None:
    log_weights = gaussian(0.25, 20, 4000)
    threshold = k_threshold(4000)

    assert psis(log_weights)[1].mean() > threshold - 0.1
    assert psis(-log_weights)[1].max() < 0.2  # reciprocals are bounded by one


@pytest.mark.parametrize("variance", [1.0, 1.3, 4.0])
def test_a_guide_as_wide_as_its_target_has_bounded_weights(variance: float) -> None:
    k_hat = psis(gaussian(variance, 20, 4000))[1]
    assert (k_hat.isneginf() if variance == 1 else k_hat < 0.1).all()


# Where there is no tail.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, -3e3, 1e4])
def test_equal_weights_have_no_tail_whatever_their_rounding(level: float, dtype: torch.dtype) -> None:
    log_weights = torch.full((3, 100), level, dtype=dtype)
    jitter = torch.finfo(dtype).eps * max(1.0, abs(level)) * torch.randint(-8, 9, (3, 100))

    for equal in (log_weights, log_weights + jitter.to(dtype)):
        smoothed, k_hat = psis(equal)
        assert k_hat.isneginf().all()
        assert torch.allclose(smoothed.exp(), torch.full_like(smoothed, 0.01), rtol=0.02)  # 8 units at 1e4
    assert not psis(log_weights + 0.1 * torch.randn(3, 100).to(dtype))[1].isneginf().any()


@pytest.mark.parametrize("draws", [1, 2, 5, 19, 20])
def test_twenty_draws_have_no_tail_to_fit(draws: int) -> None:
    log_weights = torch.randn(4, draws)
    smoothed, k_hat = psis(log_weights)
    assert k_hat.isposinf().all()
    assert torch.allclose(smoothed, log_weights.log_softmax(-1))
    assert psis(torch.randn(4, 21))[1].isfinite().all()  # the tail is rounded up


@pytest.mark.parametrize("level", [-math.inf, math.nan, math.inf])
def test_a_row_that_is_not_finite_is_not_trusted_and_spoils_no_other(level: float) -> None:
    log_weights = torch.randn(3, 50)
    alone = psis(log_weights[:2])
    log_weights[2] = level
    smoothed, k_hat = psis(log_weights)

    assert k_hat[2] == math.inf
    assert torch.equal(k_hat[:2], alone[1])
    assert torch.equal(smoothed[:2], alone[0])


def test_weights_that_are_flat_at_the_top_are_left_as_they_are() -> None:
    log_weights = -(torch.randn(6, 1000).abs() ** 20)
    smoothed, k_hat = psis(log_weights, normalize=False)
    assert k_hat.isposinf().all()
    assert torch.allclose(smoothed, log_weights)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_no_draws_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least one draw, got shape \["):
        psis(torch.zeros(shape))


# What else is said of weights.


def test_the_effective_sample_size_counts_equal_weights() -> None:
    counts = torch.tensor([1, 7, 200])
    log_weights = torch.full((3, 200), -math.inf)
    for row, count in zip(log_weights, counts, strict=True):
        row[:count] = -1e4
    assert torch.allclose(effective_sample_size(log_weights), counts.double())
    w = torch.rand(4, 30)
    assert torch.allclose(effective_sample_size(w.log()), w.sum(-1).square() / w.square().sum(-1))


def test_the_threshold_rises_with_draws_to_seven_tenths() -> None:
    found = [k_threshold(draws) for draws in (100, 320, 1000, 2200, 10_000)]
    assert [round(k, 2) for k in found] == [0.5, 0.6, 0.67, 0.7, 0.7]
    assert found[-1] == 0.7
    with pytest.raises(ValueError, match="2 draws or more, got 1"):
        k_threshold(1)
