"""The model whose answers are known exactly: every estimator and every variant can be held against it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

__all__ = ["LinearGaussian"]


class LinearGaussian(NamedTuple):
    """``z ~ Normal(0, I)``, then ``x ~ Normal(loading z + loc, sigma**2 I)``: probabilistic principal components.

    Attributes:
        loading: W, [x_dim, z_dim].
        loc: b, [x_dim].
        sigma: Standard deviation of the noise, shape [].

    Example:
        >>> import torch
        >>> model = LinearGaussian(torch.tensor([[2.0], [1.0]]), torch.zeros(2), torch.tensor(0.5))
        >>> x = torch.ones(3, 2)
        >>> q = model.posterior(x)
        >>> torch.allclose(model.bound(x, q), model.log_evidence(x))
        True

    References:
        Tipping and Bishop, Probabilistic Principal Component Analysis, 1999, eq. 4 to 8. Lucas et al., Don't Blame the
        ELBO!, 2019. https://arxiv.org/abs/1911.02469
    """

    loading: Tensor
    loc: Tensor
    sigma: Tensor

    @classmethod
    def maximum_likelihood(cls, x: Tensor, z_dim: int) -> "LinearGaussian":
        """The best fit to x [rows, x_dim] (Tipping and Bishop, eq. 7 and 8).

        ``sigma**2`` is the mean of the discarded eigenvalues of the (biased) covariance, and column i of the loading
        has length ``sqrt(eigenvalue_i - sigma**2)`` along eigenvector i.
        """
        if not 0 < z_dim < x.shape[1]:
            raise ValueError(f"z_dim must be from 1 to {x.shape[1] - 1}, one less than x has columns, got {z_dim}")
        loc = x.mean(0)
        eigenvalues, vectors = torch.linalg.eigh((x - loc).mT @ (x - loc) / len(x))
        eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
        variance = eigenvalues[z_dim:].mean()
        loading = vectors[:, :z_dim] * (eigenvalues[:z_dim] - variance).clamp_min(0).sqrt()
        return cls(loading, loc, variance.sqrt())

    def log_evidence(self, x: Tensor) -> Tensor:
        """Log p(x) for x [rows, x_dim], in nats: [rows]."""
        covariance = self.loading @ self.loading.mT + self.sigma**2 * torch.eye(len(self.loc)).to(self.loc)
        return MultivariateNormal(self.loc, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """p(z | x): ``Normal(M^-1 W^T (x - b), sigma**2 M^-1)``, ``M = W^T W + sigma**2 I``."""
        m = self._m()
        loc = torch.linalg.solve(m, self.loading.mT @ (x - self.loc).mT).mT
        return MultivariateNormal(loc, self.sigma**2 * torch.linalg.inv(m))

    def mean_field_posterior(self, x: Tensor) -> MultivariateNormal:
        """The best guide with independent coordinates: the exact mean, variances ``sigma**2 / M_jj``."""
        return MultivariateNormal(self.posterior(x).loc, torch.diag(self.sigma**2 / self._m().diagonal()))

    def bound(self, x: Tensor, guide: MultivariateNormal) -> Tensor:
        """``E_q log p(x | z) - KL(q || p(z))`` in closed form, in nats: [rows].

        Args:
            x: [rows, x_dim].
            guide: Any Gaussian q(z | x), batch shape [rows] or [].
        """
        d = len(self.loc)
        square = (x - self.loc - guide.loc @ self.loading.mT).square().sum(-1)
        square = square + (self.loading.mT @ self.loading * guide.covariance_matrix).sum((-2, -1))
        prior = MultivariateNormal(torch.zeros_like(guide.loc), torch.eye(guide.loc.shape[-1]).to(guide.loc))
        log_constant = d / 2 * math.log(2 * math.pi) + d * self.sigma.log()
        return -log_constant - square / (2 * self.sigma**2) - kl_divergence(guide, prior)

    def gap(self, x: Tensor, guide: MultivariateNormal) -> Tensor:
        """``KL(q(z | x) || p(z | x))``, what the bound lacks of log p(x), in nats: [rows]."""
        return kl_divergence(guide, self.posterior(x))

    def _m(self) -> Tensor:
        return self.loading.mT @ self.loading + self.sigma**2 * torch.eye(self.loading.shape[1]).to(self.loading)
