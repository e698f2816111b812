"""Energy-based models, p(x) = e^{-E(x)} / Z, with Z = ∫ e^{-E(x)} dx unknown (LeCun et al. 2006)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.models.ebm.laplacian import as_leaf
from companion.models.ebm.objectives import Objective
from companion.models.flows.flow import require_shape
from companion.models.questions import Loss
from companion.samplers import langevin, mala
from companion.validate import require_events, require_positive_int


class EBM(nn.Module):
    """A network for E, and an objective that needs no Z.

        model = EBM(EnergyMLP(2), (2,), ScoreMatching())
        fit(model, x, Settings(steps=1000))
        log_z = log_normaliser(model.energy)    # by quadrature: in the plane only

    The objective is called with the model and x, and may have parameters and buffers of its own.

    Args:
        network: (batch, *event) to (batch,), of each example alone.
        event_shape: the shape of one example.
        objective: one of `companion.models.ebm`'s: contrastive divergence, noise contrast, or score matching.
        box: where `sample`, and an objective with chains, draws their starts: uniformly between these two numbers in
            each coordinate. Nothing keeps a chain inside.
        step_size, steps: of the chains of `sample`.
        adjusted: `sample` by MALA, whose law tends to the model's; otherwise by unadjusted Langevin dynamics.

    Raises ValueError for an argument that means nothing.

    >>> import torch
    >>> from companion.models import EBM
    >>> from companion.models.ebm import ScoreMatching
    >>> from companion.nets.energy import EnergyMLP
    >>> model = EBM(EnergyMLP(2, (8,)), (2,), ScoreMatching())
    >>> x = torch.zeros(3, 2)
    >>> model.energy(x).shape, model.score(x).shape, model.loss(x).unit
    (torch.Size([3]), torch.Size([3, 2]), 'Fisher divergence')
    """

    _like: Tensor

    def __init__(
        self,
        network: nn.Module,
        event_shape: tuple[int, ...],
        objective: Objective,
        box: tuple[float, float] = (-4.0, 4.0),
        step_size: float = 0.05,
        steps: int = 500,
        adjusted: bool = True,
    ):
        super().__init__()
        require_shape(event_shape)
        if not box[0] < box[1]:
            raise ValueError(f"box must be (low, high) with low below high, got {box!r}")
        require_positive_int(steps, "steps")
        self.network, self.event_shape, self.box = network, tuple(event_shape), box
        self.step_size, self.steps, self.adjusted = step_size, steps, adjusted
        # Where and in what precision to draw: not all networks have parameters.
        like = next(network.parameters(), torch.empty(0))
        self.register_buffer("_like", like.detach().new_empty(0), persistent=False)
        self.objective = objective
        objective.prepare(self)

    def forward(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """E(x) as the network has it, x unseen: for objectives and chains, which look at their x themselves.

        Raises ValueError for a network that does not answer with one number for each example.
        """
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
        """s(x) = ∇ log p(x) = -∇E(x), to be differentiated again unless gradients are off. Raises as `energy`."""
        require_events(x, self.event_shape)
        return score_of(self, x)

    def loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """That of the objective. Raises as `energy` and as the objective does."""
        require_events(x, self.event_shape)
        return self.objective(self, x)

    @torch.no_grad()
    def noise(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """Uniform in the box."""
        return self._like.new_empty(n, *self.event_shape).uniform_(*self.box, generator=generator)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """The ends of n chains that start uniformly in the box: samples of the model as far as these have mixed.

        Raises ValueError for an n that means nothing, and FloatingPointError when a chain is lost.
        """
        require_positive_int(n, "n")
        move = mala if self.adjusted else langevin
        start = self.noise(n, generator)
        return move(self.energy, start, self.step_size, self.steps, generator=generator, keep=False).last


def one_each(energy: Tensor, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
    """The energies in the type of x: under autocast a network answers in bfloat16. ValueError for a wrong shape."""
    if energy.shape != x.shape[:1]:
        raise ValueError(
            f"network must map (batch, *event) to (batch,), but made {tuple(energy.shape)} of {tuple(x.shape)}"
        )
    return energy.to(x.dtype)


def score_of(energy: Callable[[Tensor], Tensor], x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch *event"]:
    """-∇E(x) without autocast, to be differentiated again unless gradients are off."""
    again = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        leaf = as_leaf(x) if again else x.detach().requires_grad_()
        [gradient] = torch.autograd.grad(energy(leaf).sum(), leaf, create_graph=again)
    return -gradient
