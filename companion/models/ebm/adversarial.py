"""Maximum likelihood as a game: the energy against a network that draws samples in place of a Markov chain."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.models.ebm.ebm import one_each, score_of
from companion.models.flows.flow import Flow
from companion.models.questions import Loss, Player
from companion.validate import require_events, require_positive_int


class AdversarialEBM(nn.Module):
    """p(x) = e^{-E(x)} / Z, learned with a flow q that is drawn from in place of p.

    By Jensen's inequality, for every density q,

        log Z = log E_q[e^{-E(x̃)} / q(x̃)] ≥ E_q[-E(x̃)] + H(q),    and the gap is KL(q‖p),

    so that the mean negative log-likelihood is a maximum over q, and learning a game:

        min over E, max over q of    E_data[E(x)] - E_q[E(x̃)] + H(q)

    The energy's gradient is that of contrastive divergence with samples of q for the chains' (Kim and Bengio 2016), and
    the sampler's best answer is q = p. Its entropy is the difficulty: with generators of no density it is only
    approximated, there as by Grathwohl et al. (2021), while here q is a flow and log q is exact. For a q that is not p,
    the value is below the negative log-likelihood: it flatters the model.

    Args:
        network: E, (batch, *event) to (batch,).
        sampler: q, a flow without labels and with a Gaussian base; it defines the shape of an example.
        sampler_updates: of q for each one of E.

    Raises ValueError for an argument that means nothing.
    """

    def __init__(self, network: nn.Module, sampler: Flow, sampler_updates: int = 1):
        super().__init__()
        require_positive_int(sampler_updates, "sampler_updates")
        if sampler.base != "gaussian" or sampler.classes is not None:
            raise ValueError(
                "sampler must have a Gaussian base and no classes, got "
                f"base={sampler.base!r}, classes={sampler.classes!r}"
            )
        self.network, self.sampler, self.sampler_updates = network, sampler, sampler_updates
        self.event_shape = sampler.event_shape

    def players(self) -> dict[str, Player]:
        """The sampler, `sampler_updates` times in a step, then the energy."""
        return {
            "sampler": Player(list(self.sampler.parameters()), self.sampler_loss, self.sampler_updates),
            "energy": Player(list(self.network.parameters()), self.energy_loss),
        }

    def forward(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """E(x) as the network has it, x unseen. ValueError where that is not one number for each example."""
        return one_each(self.network(x), x)

    def energy(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """E(x), without autocast. Raises TypeError or ValueError for a wrong shape or dtype, and for NaN."""
        require_events(x, self.event_shape)
        with torch.autocast(x.device.type, enabled=False):
            return self(x)

    def unnormalised_log_prob(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """-E(x) = log p(x) + log Z. Raises as `energy`."""
        return -self.energy(x)

    def score(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch *event"]:
        """s(x) = -∇E(x), to be differentiated again unless gradients are off. Raises as `energy`."""
        require_events(x, self.event_shape)
        return score_of(self, x)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """Draws of q, the model's as far as q is p; chains from there lead to p itself.

        Raises ValueError unless n is a positive integer.
        """
        require_positive_int(n, "n")
        return self._draw(n, generator)[0]

    @torch.no_grad()
    def log_weights(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
        """log w = -E(x̃) - log q(x̃) of n draws of q. Its mean estimates the bound E_q[-E] + H(q) on log Z, and
        the logarithm of the mean of w is a tighter one (Burda et al. 2016), both in nats.

        Raises ValueError for an n that means nothing.
        """
        require_positive_int(n, "n")
        x, log_q = self._draw(n, generator)
        return -self.energy(x) - log_q

    def energy_loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """E(x) - E(x̃) - log q(x̃), the sampler held fixed: its mean is at most that of -log p(x).

        Raises as `energy`.
        """
        require_events(x, self.event_shape)
        with torch.no_grad():
            samples, log_q = self._draw(len(x))
        data, fake = self(torch.cat([x, samples])).chunk(2)
        parts = {"data": data, "samples": -fake, "entropy": -log_q}
        return Loss.of(parts, "game value")

    def sampler_loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """E(x̃) + log q(x̃), whose mean is KL(q‖p) - log Z, on as many draws of q as there are examples.

        Raises as `energy`.
        """
        require_events(x, self.event_shape)
        samples, log_q = self._draw(len(x))
        parts = {"energy": self(samples), "negative entropy": log_q}
        return Loss.of(parts, "game value")

    def _draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Float[Tensor, " n"]]:
        """x̃ = f(z) and log q(x̃) = log p(z) - log|det ∂f/∂z|, both differentiable in the flow."""
        like = next(self.sampler.parameters())
        z = torch.randn(n, self.sampler.dims, generator=generator, device=like.device, dtype=like.dtype)
        x, log_det = self.sampler.generate(z)
        return x, self.sampler.base_log_prob(z) - log_det
