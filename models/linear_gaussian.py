"""A linear Gaussian model, whose evidence, posterior and bounds are known exactly. It checks the estimators."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

__all__ = ["LinearGaussian"]


class LinearGaussian(NamedTuple):
    """Probabilistic PCA: ``z ~ Normal(0, I)``, then ``x ~ Normal(loading z + loc, sigma**2 I)``.

    Attributes:
        loading: The matrix W, [x_dim, z_dim].
        loc: The vector b, [x_dim].
        sigma: The standard deviation of the noise, shape [].

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
        """The maximum likelihood fit to x [rows, x_dim] (Tipping and Bishop, eq. 7 and 8).

        ``sigma**2`` is the mean of the discarded eigenvalues of the (biased) covariance. Column i of the loading has
        the direction of eigenvector i and the length ``sqrt(eigenvalue_i - sigma**2)``.

        Raises:
            ValueError: If ``z_dim`` is not between 1 and ``x_dim - 1``.
        """
        if not 0 < z_dim < x.shape[1]:
            raise ValueError(f"z_dim must be from 1 to {x.shape[1] - 1}, one less than x has columns, got {z_dim}")
        loc = x.mean(0)
        covariance = (x - loc).mT @ (x - loc) / len(x)
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)  # the largest first
        variance = eigenvalues[z_dim:].mean()
        loading = vectors[:, :z_dim] * (eigenvalues[:z_dim] - variance).clamp_min(0).sqrt()
        return cls(loading, loc, variance.sqrt())

    def log_evidence(self, x: Tensor) -> Tensor:
        """The log evidence log p(x) per datum, [rows], in nats, for x [rows, x_dim]."""
        covariance = self.loading @ self.loading.mT + self.sigma**2 * torch.eye(len(self.loc)).to(self.loc)
        return MultivariateNormal(self.loc, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """The posterior p(z | x) = ``Normal(M^-1 W^T (x - b), sigma**2 M^-1)`` with ``M = W^T W + sigma**2 I``."""
        m = self._m()
        loc = torch.linalg.solve(m, self.loading.mT @ (x - self.loc).mT).mT
        return MultivariateNormal(loc, self.sigma**2 * torch.linalg.inv(m))

    def mean_field_posterior(self, x: Tensor) -> MultivariateNormal:
        """The best guide with independent coordinates: it has the exact mean, and variances ``sigma**2 / M_jj``."""
        return MultivariateNormal(self.posterior(x).loc, torch.diag(self.sigma**2 / self._m().diagonal()))

    def bound(self, x: Tensor, guide: MultivariateNormal) -> Tensor:
        """The bound ``E_q log p(x | z) - KL(q || p(z))`` per datum, [rows], in nats and in closed form.

        Args:
            x: Data [rows, x_dim].
            guide: Any Gaussian q(z | x), of batch shape [rows] or [].
        """
        d = len(self.loc)
        square = (x - self.loc - guide.loc @ self.loading.mT).square().sum(-1)
        square = square + (self.loading.mT @ self.loading * guide.covariance_matrix).sum((-2, -1))
        prior = MultivariateNormal(torch.zeros_like(guide.loc), torch.eye(guide.loc.shape[-1]).to(guide.loc))
        log_constant = d / 2 * math.log(2 * math.pi) + d * self.sigma.log()
        return -log_constant - square / (2 * self.sigma**2) - kl_divergence(guide, prior)

    def gap(self, x: Tensor, guide: MultivariateNormal) -> Tensor:
        """The gap ``KL(q(z | x) || p(z | x))`` between log p(x) and the bound per datum, [rows], in nats."""
        return kl_divergence(guide, self.posterior(x))

    def _m(self) -> Tensor:
        """``M = W^T W + sigma**2 I``, [z_dim, z_dim]."""
        return self.loading.mT @ self.loading + self.sigma**2 * torch.eye(self.loading.shape[1]).to(self.loading)
