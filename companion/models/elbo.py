"""A model that is trained by raising its evidence lower bound, and the bound of a linear-Gaussian model."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal, kl_divergence

from companion.models.generative_problem import ProbabilisticPCA
from companion.models.questions import Loss
from companion.validate import require_binary, require_events, require_positive_int


class BernoulliMixture(nn.Module):
    """Binary images from one of K prototypes: p(x) = Σ_k π_k Π_d Bernoulli(x_d; μ_kd).

    Args:
        components: K.
        event_shape: the shape of one image, such as (1, 28, 28).
        generator: draws the random start, prototypes near grey.

    Raises ValueError unless components is a positive integer.

    >>> import torch
    >>> from companion.models import BernoulliMixture
    >>> _ = torch.manual_seed(0)
    >>> model = BernoulliMixture(3, (1, 2, 2))
    >>> x = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    >>> bool((model.elbo(x) <= model.log_prob(x) + 1e-6).all())
    True
    """

    levels = 2

    def __init__(self, components: int, event_shape: tuple[int, ...], generator: torch.Generator | None = None):
        super().__init__()
        require_positive_int(components, "components")
        self.event_shape = tuple(event_shape)
        start = 0.1 * torch.randn(components, *self.event_shape, generator=generator)
        self.pixel_logits = nn.Parameter(start)
        self.log_weights = nn.Parameter(torch.full((components,), -math.log(components)))

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for component indices z of any shape."""
        return Independent(Bernoulli(logits=self.pixel_logits[z]), len(self.event_shape))

    def encode(self, x: Float[Tensor, " batch *event"]) -> Categorical:
        """The posterior p(z|x), which here is exact. Raises as `log_prob`."""
        return Categorical(logits=self._log_joint(x))

    def log_prob(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """log p(x) = log Σ_z p(x,z) in nats. Raises ValueError or TypeError for a wrong shape, dtype or value."""
        return self._log_joint(x).logsumexp(-1)

    def elbo(self, x: Float[Tensor, " batch *event"], q: Categorical | None = None) -> Float[Tensor, " batch"]:
        """E_q[log p(x,z)] + H(q) in nats, for any q over components; for the exact posterior where none is given.

        Raises as `log_prob`.
        """
        q = self.encode(x) if q is None else q
        return (q.probs * self._log_joint(x)).sum(-1) + q.entropy()

    def loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """-log p(x), nats. Raises as `log_prob`."""
        negative = -self.log_prob(x)
        return Loss(negative, {"negative log-likelihood": negative}, "nats")

    @torch.no_grad()
    def em_step(self, x: Float[Tensor, " batch *event"], pseudo_count: float = 0.0) -> Float[Tensor, " batch"]:
        """Raise the bound twice: q becomes the posterior (E), then the parameters their maximiser (M).

        `pseudo_count` imagined images of each kind, all white and all black, are added to each component; with
        none, the step is maximum likelihood and log p never falls.

        Returns log p(x) from before the step, (batch,), nats.

        Raises ValueError for a negative `pseudo_count`, and when a component has lost all its data and nothing
        is imagined for it.
        """
        if not pseudo_count >= 0:
            raise ValueError(f"pseudo_count must not be negative, got {pseudo_count}")
        log_joint = self._log_joint(x)
        q = log_joint.softmax(-1)
        size = q.sum(0)
        if pseudo_count == 0 and not size.all():
            empty = int((size == 0).nonzero()[0])
            raise ValueError(f"component {empty} has no data left; use fewer components or a positive pseudo_count")
        on = q.T @ x.flatten(1) + pseudo_count
        off = q.T @ (1 - x.flatten(1)) + pseudo_count
        # The logits live in [-30, 30], a probability of 1e-13: a pixel that never changes within a component
        # would have an infinite one. The bound is concave in each logit, so the clamped value is the maximiser.
        logits = (on.log() - off.log()).clamp(-30, 30)
        self.pixel_logits.copy_(logits.view_as(self.pixel_logits))
        self.log_weights.copy_(torch.log(size / len(x)))
        return log_joint.logsumexp(-1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """z by the weights π, then every pixel on its own. Raises ValueError unless n is a positive integer."""
        require_positive_int(n, "n")
        z = torch.multinomial(self.log_weights.softmax(0), n, replacement=True, generator=generator)
        return torch.bernoulli(self.pixel_logits[z].sigmoid(), generator=generator)

    def _log_joint(self, x: Tensor) -> Float[Tensor, " batch components"]:
        require_events(x, self.event_shape)
        require_binary(x)
        # Σ_d log Bernoulli(x_d; σ(a_kd)) = x·a_k - Σ_d softplus(a_kd): one matrix product for all components.
        logits = self.pixel_logits.flatten(1)
        log_likelihood = x.flatten(1) @ logits.T - F.softplus(logits).sum(1)
        return self.log_weights.log_softmax(0) + log_likelihood


def linear_gaussian_elbo(model: ProbabilisticPCA, x: Float[Tensor, " batch dim"], q: Normal) -> Float[Tensor, " batch"]:
    """The evidence lower bound of probabilistic PCA for q(z|x) = N(m, diag v), in closed form, in nats.

    Args:
        q: a Normal with mean and scale of shape (batch, latent).

    Raises TypeError or ValueError for an x or a mean of q of a wrong shape or dtype, and for NaN.
    """
    require_events(x, model.weight.shape[:1])
    require_events(q.mean, model.weight.shape[1:], "q.mean")
    at_mean = model.decode(q.mean).log_prob(x)
    # E_q‖x - μ - Wz‖² exceeds its value at the mean by Σ_j v_j ‖w_j‖².
    spread = q.variance @ model.weight.square().sum(0) * (-2 * model.log_scale).exp() / 2
    prior = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))
    return at_mean - spread - kl_divergence(q, prior).sum(-1)


def mean_field(model: ProbabilisticPCA, x: Float[Tensor, " batch dim"]) -> Normal:
    """The diagonal Gaussian with the highest bound: the posterior's mean, variances 1/Λ_jj. Raises as `encode` does."""
    mean = model.encode(x).mean
    return Normal(mean, model.posterior_precision().diagonal().rsqrt().expand_as(mean))
