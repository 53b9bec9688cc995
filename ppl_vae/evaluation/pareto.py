"""Pareto smoothed importance sampling, which shows whether an average of weights can be trusted."""

import math

import torch
from torch import Tensor

__all__ = ["effective_sample_size", "k_threshold", "log_mean_error", "psis"]

FEWEST = 5  # the fewest draws that a tail is fitted to
NUMBERS = 2**22  # a fit has at most this many numbers at once, and further rows come later
ROUNDING = 64  # log weights count as equal if they differ by at most this many units in the last place


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """The effective sample size ``(sum w)**2 / sum w**2``, [...], from 1 to ``draws``, of log weights [..., draws].

    References:
        Kong, A Note on Importance Sampling Using Standardized Weights, 1992.
    """
    return (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()


def log_mean_error(log_weights: Tensor) -> Tensor:
    """The standard error of the log of the mean weight, ``sqrt(1 / ess - 1 / draws)``, [...], by the delta method."""
    draws = log_weights.shape[-1]
    return (1 / effective_sample_size(log_weights) - 1 / draws).clamp_min(0).sqrt()


def k_threshold(draws: int) -> float:
    """The tail index above which an average of ``draws`` weights cannot be trusted, ``min(1 - 1 / log10(draws), 0.7)``.

    Raises:
        ValueError: If ``draws`` is below 2.

    References:
        Vehtari et al., Pareto Smoothed Importance Sampling, 2024, section 3.2. https://jmlr.org/papers/v25/19-556.html
    """
    if draws < 2:
        raise ValueError(f"k_threshold is for 2 draws or more, got {draws!r}: one weight has no tail")
    return min(1 - 1 / math.log10(draws), 0.7)


@torch.no_grad()
def psis(log_weights: Tensor, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """Replace the largest weights by order statistics of a generalised Pareto distribution that is fitted to them.

    The tail has ``ceil(min(draws / 5, 3 sqrt(draws)))`` draws, except draws that are equal to the largest draw below
    the tail and draws whose weights underflow. This is the rule of arviz 0.23, with the same numbers. The R packages
    loo and posterior use the same length. ``arviz_stats`` (arviz 1) differs in four ways. It takes log likelihoods,
    which have the other sign. It rounds the length down, so that its k-hat of 226 draws is our k-hat of the largest
    225. It keeps draws that are equal to the cutoff or underflow. It returns NaN if the first quartile of the tail is
    its minimum, as in a tail of five draws.

    Args:
        log_weights: Log p(x, z) - log q(z | x), [..., draws]. The sign matters: for leave-one-out it is minus the log
            likelihood.
        normalize: Whether the smoothed weights sum to one. Without it ``logsumexp - log(draws)`` estimates log p(x).

    Returns:
        The smoothed log weights [..., draws], and the shape k-hat of their tail [...]. Moments below ``1 / k-hat``
        exist. Above ``k_threshold(draws)`` neither an average nor its standard error can be trusted. k-hat is -inf
        where the weights are equal (an exact guide). It is inf where no tail can be fitted: if the tail has fewer than
        5 draws, which is so for 20 draws or fewer in all, or if weights are not finite.

    Raises:
        ValueError: If there is no draw.

    References:
        Vehtari et al., Pareto Smoothed Importance Sampling, 2024, algorithm 1. https://jmlr.org/papers/v25/19-556.html
        Zhang and Stephens, A New and Efficient Estimation Method for the Generalized Pareto Distribution, 2009.
    """
    draws = log_weights.shape[-1] if log_weights.ndim else 0
    if draws == 0:
        raise ValueError(f"psis wants [..., draws], at least one draw, got shape {list(log_weights.shape)}")
    rows = log_weights.reshape(-1, draws)
    largest = rows.amax(-1, keepdim=True)
    length = math.ceil(min(draws / 5, 3 * math.sqrt(draws)))
    at_once = max(1, NUMBERS // (draws + _grid(length) * length))
    parts = [_smooth(part, length) for part in (rows - largest).double().split(at_once)]
    smoothed, k_hat = (torch.cat(part).to(rows) for part in zip(*parts, strict=True))
    rounding = ROUNDING * torch.finfo(rows.dtype).eps * largest.abs().clamp_min(1)
    equal = ((rows - largest).abs() <= rounding).all(-1) & (draws > 1)
    smoothed = smoothed - smoothed.logsumexp(-1, keepdim=True) if normalize else smoothed + largest
    return smoothed.reshape(log_weights.shape), k_hat.masked_fill(equal, -math.inf).reshape(log_weights.shape[:-1])


def _grid(length: int) -> int:
    """The number of grid points of the profile likelihood for a tail of ``length`` draws."""
    return 30 + math.isqrt(length)


def _smooth(rows: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Smooth at most ``length`` of the largest log weights [rows, draws], the largest of which is 0.

    Returns:
        The smoothed log weights [rows, draws], and k-hat [rows].
    """
    info = torch.finfo(rows.dtype)
    ordered, order = rows.topk(min(length + 1, rows.shape[-1]))
    cutoff = ordered[:, -1:].clamp_min(math.log(info.tiny)).exp()
    excess = ordered[:, :length].exp() - cutoff
    inside = excess > 0
    count = inside.sum(-1, keepdim=True).clamp_min(FEWEST)  # the fit of a shorter tail is not used
    k_hat, scale = _fit(excess.where(inside, 0), count)
    fitted = inside & (inside.sum(-1, keepdim=True) >= FEWEST) & k_hat.isfinite()
    survival = (torch.arange(length).to(rows) + 0.5) / count  # the largest draw comes first
    quantile = torch.where(k_hat.abs() < info.eps, -survival.log(), torch.expm1(-k_hat * survival.log()) / k_hat)
    tail = (scale * quantile + cutoff).log().clamp_max(0)  # no weight may exceed the largest that was drawn
    smoothed = rows.scatter(-1, order[:, :length], tail.where(fitted, ordered[:, :length]))
    return smoothed, k_hat.squeeze(-1).masked_fill(~fitted.any(-1), math.inf)


def _fit(excess: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the shape and scale, [rows, 1] each, of the first ``count`` numbers of ``excess`` [rows, length], descending.

    ``b = -shape / scale`` is the posterior mean on a grid, weighed by the profile likelihood (Zhang and Stephens). The
    shape is then moved towards one half by a prior that counts as ten draws (Vehtari et al., appendix C).
    """
    size = 30 + count.sqrt().floor()
    index = torch.arange(_grid(excess.shape[1])).to(excess) + 0.5
    position = count - (count / 4 + 0.5).floor().long()
    quartile = excess.gather(-1, position.clamp_max(excess.shape[1] - 1))
    grid = 1 / excess[:, :1] + (1 - (size / index).sqrt()) / (3 * quartile)
    shape = torch.log1p(-grid.unsqueeze(-1) * excess.unsqueeze(1)).sum(-1) / count  # beyond the tail: log1p(0) = 0
    profile = count * ((-grid / shape).log() - shape - 1)
    weights = profile.masked_fill(index > size, -math.inf).softmax(-1)
    weights = weights.masked_fill(weights < 10 * torch.finfo(excess.dtype).eps, 0)
    b = (grid.masked_fill(weights == 0, 0) * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    shape = torch.log1p(-b * excess).sum(-1, keepdim=True) / count
    return (count * shape + 5) / (count + 10), -shape / b
