"""The Frechet distance of two samples in a feature space, with its error; called FID only with Inception's features."""

import torch
from torch import Tensor

__all__ = ["frechet", "frechet_with_error", "nearest"]

BLOCKS = 10


def frechet(a: Tensor, b: Tensor) -> Tensor:
    """``|m_a - m_b|**2 + tr(S_a + S_b - 2 (S_a S_b)**(1/2))`` of samples [n, d] and [m, d], shape [].

    The root's trace is that of ``S_a**(1/2) S_b S_a**(1/2)``, a symmetric eigenproblem: no complex part to drop. The
    estimate is biased upwards by about ``(2 d + (d**2 + d) / 2) / n`` in whitened units, so that only values at equal
    n compare, and the distance of real data from real data belongs beside them.

    References:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017, eq. 6. https://arxiv.org/abs/1706.08500
    """
    a, b = a.double(), b.double()
    values, vectors = torch.linalg.eigh(torch.cov(a.mT).reshape(a.shape[1], -1))
    root = vectors * values.clamp_min(0).sqrt()
    cov_b = torch.cov(b.mT).reshape(b.shape[1], -1)
    cross = torch.linalg.eigvalsh(root.mT @ cov_b @ root).clamp_min(0).sqrt().sum()
    return (a.mean(0) - b.mean(0)).square().sum() + values.clamp_min(0).sum() + cov_b.trace() - 2 * cross


def frechet_with_error(a: Tensor, b: Tensor) -> tuple[float, float | None]:
    """The distance, and its standard error by leaving out a tenth of both samples at a time (the jackknife)."""
    blocks = min(BLOCKS, len(a), len(b))
    if blocks < 3:  # a block left out would leave a single datum
        return float(frechet(a, b)), None
    keep = torch.arange(max(len(a), len(b))) % blocks
    left = torch.stack([frechet(a[keep[: len(a)] != i], b[keep[: len(b)] != i]) for i in range(blocks)])
    error = ((blocks - 1) * (left - left.mean()).square().mean()).sqrt()
    return float(frechet(a, b)), float(error)


def nearest(a: Tensor, b: Tensor, rows: int = 500) -> Tensor:
    """The Euclidean distance of each row of a [n, ...] to the closest row of b [m, ...]: [n].

    A product finds the closest few fast, differences measure them: a copy is at distance 0, not at rounding.
    """
    a, b, found = a.flatten(1), b.flatten(1), []
    for chunk in a.split(rows):
        few = torch.cdist(chunk, b).topk(min(5, len(b)), largest=False).indices
        found.append((chunk.unsqueeze(1) - b[few]).norm(dim=-1).amin(1))
    return torch.cat(found)
