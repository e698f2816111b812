"""Three models whose density is exact and whose maximum likelihood needs no tricks.

They are the floors that every later model has to beat: independent pixels, a mixture of Gaussians, and
probabilistic PCA.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MultivariateNormal, Normal

from companion.models.questions import Loss
from companion.validate import require_binary, require_events, require_positive_int


class IndependentPixels(nn.Module):
    """Binary pixels, each with a probability of its own: p(x) = Π_d Bernoulli(x_d; μ_d).

    Args:
        event_shape: the shape of one image, such as (1, 28, 28).

    >>> import torch
    >>> from companion.models import IndependentPixels
    >>> model = IndependentPixels((1, 2, 2))
    >>> x = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    >>> model.log_prob(x)  # four fair coins: -4 log 2
    tensor([-2.7726], grad_fn=<SumBackward1>)
    """

    levels = 2

    def __init__(self, event_shape: tuple[int, ...]):
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.logits = nn.Parameter(torch.zeros(self.event_shape))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, " batch *event"], pseudo_count: float = 1.0) -> "IndependentPixels":
        """Set each pixel's probability to its mean over the data.

        `pseudo_count` imagined images of each kind, all white and all black, are added: without them a pixel
        that is black in all of the data has probability zero, and one test image that differs has an infinite
        loss.

        Raises ValueError or TypeError for a wrong shape or dtype, values other than 0 and 1, and for a
        `pseudo_count` that is not positive.
        """
        self._require(x)
        if not pseudo_count > 0:
            raise ValueError(f"pseudo_count must be positive, got {pseudo_count}")
        on = x.sum(0) + pseudo_count
        self.logits.copy_(torch.log(on) - torch.log(len(x) + 2 * pseudo_count - on))
        return self

    def log_prob(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """log p(x) in nats. Raises ValueError or TypeError as `fit`."""
        self._require(x)
        # log μ^x (1-μ)^(1-x) with μ = σ(logit)
        return (x * self.logits - F.softplus(self.logits)).flatten(1).sum(1)

    def loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """-log p(x), nats. Raises as `log_prob`."""
        return _negative_log_likelihood(self.log_prob(x))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """Every pixel drawn on its own. Raises ValueError unless n is a positive integer."""
        require_positive_int(n, "n")
        return torch.bernoulli(self.logits.sigmoid().expand(n, *self.event_shape), generator=generator)

    def _require(self, x: Tensor) -> None:
        require_events(x, self.event_shape)
        require_binary(x)


class GaussianMixture(nn.Module):
    """p(x) = Σ_k π_k N(x; μ_k, diag σ²_k): the simplest latent-variable model, z the component.

    Args:
        components: K.
        dim: d_x.

    Raises ValueError unless both are positive integers.

    >>> import torch
    >>> from companion.models import GaussianMixture
    >>> _ = torch.manual_seed(0)
    >>> model = GaussianMixture(components=3, dim=2)
    >>> model.log_prob(torch.zeros(5, 2)).shape, model.sample(4).shape
    (torch.Size([5]), torch.Size([4, 2]))
    """

    def __init__(self, components: int, dim: int):
        super().__init__()
        require_positive_int(components, "components")
        require_positive_int(dim, "dim")
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, dim))
        self.log_scales = nn.Parameter(torch.zeros(components, dim))

    @torch.no_grad()
    def start_at(self, x: Float[Tensor, " batch dim"], generator: torch.Generator | None = None) -> "GaussianMixture":
        """Put the means on different data points and give all components the width that would tile the data.

        Raises TypeError or ValueError for a wrong shape, dtype or NaN, and for fewer points than components.
        """
        k, dim = self.means.shape
        require_events(x, (dim,))
        if len(x) < k:
            raise ValueError(f"x must hold at least {k} points, one for each component, got {len(x)}")
        self.means.copy_(x[torch.randperm(len(x), generator=generator)[:k]])
        self.log_scales.copy_(torch.log(x.std(0) / k ** (1 / dim)).expand(k, dim))
        return self

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for component indices z of any shape."""
        return Independent(Normal(self.means[z], self.log_scales[z].exp()), 1)

    def encode(self, x: Float[Tensor, " batch dim"]) -> Categorical:
        """The posterior p(z|x), which here is exact. Raises as `log_prob`."""
        return Categorical(logits=self._log_joint(x))

    def log_prob(self, x: Float[Tensor, " batch dim"]) -> Float[Tensor, " batch"]:
        """log p(x) = log Σ_z p(x,z) in nats. Raises ValueError or TypeError for a wrong shape, dtype or NaN."""
        return self._log_joint(x).logsumexp(-1)

    def loss(self, x: Float[Tensor, " batch dim"]) -> Loss:
        """-log p(x), nats. Raises as `log_prob`."""
        return _negative_log_likelihood(self.log_prob(x))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n dim"]:
        """z by the weights π, then x from its Gaussian. Raises ValueError unless n is a positive integer."""
        require_positive_int(n, "n")
        z = torch.multinomial(self.logits.softmax(0), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, device=z.device, dtype=self.means.dtype)
        return self.means[z] + self.log_scales[z].exp() * noise

    def _log_joint(self, x: Tensor) -> Float[Tensor, " batch components"]:
        require_events(x, self.means.shape[1:])
        every_component = torch.arange(len(self.logits), device=x.device)
        return self.logits.log_softmax(0) + self.decode(every_component).log_prob(x[:, None])


class ProbabilisticPCA(nn.Module):
    """z ~ N(0, I), x | z ~ N(Wz + μ, σ²I), with everything in closed form (Tipping and Bishop 1999).

    Args:
        dim: d_x.
        latent_dim: d_z, smaller than d_x.

    Raises ValueError unless both are positive integers, and latent_dim the smaller.

    >>> import torch
    >>> from companion.models import ProbabilisticPCA
    >>> model = ProbabilisticPCA(dim=3, latent_dim=1)
    >>> model.log_prob(torch.zeros(2, 3)).shape
    torch.Size([2])
    >>> model.encode(torch.zeros(2, 3)).mean.shape
    torch.Size([2, 1])
    """

    def __init__(self, dim: int, latent_dim: int):
        super().__init__()
        require_positive_int(dim, "dim")
        require_positive_int(latent_dim, "latent_dim")
        if latent_dim >= dim:
            raise ValueError(f"latent_dim must be smaller than dim = {dim}, got {latent_dim}")
        self.weight = nn.Parameter(torch.randn(dim, latent_dim) / math.sqrt(latent_dim))
        self.mean = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, " batch dim"]) -> "ProbabilisticPCA":
        """The maximum-likelihood parameters, by one eigendecomposition (Tipping and Bishop 1999, eqs. 7-8).

        Raises ValueError when the data leave no variance for the noise.
        """
        dim, latent_dim = self.weight.shape
        require_events(x, (dim,))
        mean = x.mean(0)
        centred = (x - mean).double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
        variance = values[: dim - latent_dim].mean()
        if variance <= values[-1] * torch.finfo(values.dtype).eps * dim:
            raise ValueError(f"x has only {latent_dim} directions of variance or fewer: nothing is left for the noise")
        top = (values[dim - latent_dim :] - variance).clamp(min=0)  # negative by rounding only
        self.weight.copy_(vectors[:, dim - latent_dim :] * top.sqrt())
        self.mean.copy_(mean)
        self.log_scale.copy_(variance.log() / 2)
        return self

    def decode(self, z: Float[Tensor, " batch latent"]) -> Distribution:
        """p(x|z). Raises TypeError or ValueError for a z of a wrong shape or dtype, and for NaN."""
        require_events(z, self.weight.shape[1:], "z")
        return Independent(Normal(z @ self.weight.T + self.mean, self.log_scale.exp()), 1)

    def posterior_precision(self) -> Float[Tensor, " latent latent"]:
        """Λ = I + WᵀW/σ², the same for every x."""
        identity = torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)
        return identity + self.weight.T @ self.weight * (-2 * self.log_scale).exp()

    def encode(self, x: Float[Tensor, " batch dim"]) -> MultivariateNormal:
        """The posterior p(z|x), which here is exact. Raises as `log_prob`."""
        require_events(x, self.weight.shape[:1])
        precision = self.posterior_precision()
        pull = (x - self.mean) @ self.weight * (-2 * self.log_scale).exp()
        return MultivariateNormal(torch.linalg.solve(precision, pull.T).T, precision_matrix=precision)

    def log_prob(self, x: Float[Tensor, " batch dim"]) -> Float[Tensor, " batch"]:
        """log N(x; μ, WWᵀ + σ²I) in nats, at the cost of a d_z × d_z factorisation instead of d_x × d_x.

        Raises TypeError or ValueError for a wrong shape, dtype or NaN.
        """
        dim, _ = self.weight.shape
        require_events(x, (dim,))
        centred, scale = (x - self.mean) / self.log_scale.exp(), self.log_scale.exp()
        factor = torch.linalg.cholesky(self.posterior_precision())
        # Woodbury: Σ⁻¹ = (I - WΛ⁻¹Wᵀ/σ²)/σ², and det Σ = σ^(2 d_x) det Λ.
        explained = torch.linalg.solve_triangular(factor, self.weight.T @ centred.T / scale, upper=False)
        quadratic = centred.square().sum(1) - explained.square().sum(0)
        log_det = 2 * dim * self.log_scale + 2 * factor.diagonal().log().sum()
        return -0.5 * (quadratic + log_det + dim * math.log(2 * math.pi))

    def loss(self, x: Float[Tensor, " batch dim"]) -> Loss:
        """-log p(x), nats. Raises as `log_prob`."""
        return _negative_log_likelihood(self.log_prob(x))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n dim"]:
        """z from the prior, then x from p(x|z) with its noise. Raises ValueError unless n is a positive integer."""
        require_positive_int(n, "n")
        dim, latent_dim = self.weight.shape
        device, dtype = self.weight.device, self.weight.dtype
        z, noise = (torch.randn(n, size, generator=generator, device=device, dtype=dtype) for size in (latent_dim, dim))
        return z @ self.weight.T + self.mean + self.log_scale.exp() * noise


def _negative_log_likelihood(log_prob: Float[Tensor, " batch"]) -> Loss:
    return Loss(-log_prob, {"negative log-likelihood": -log_prob}, "nats")
