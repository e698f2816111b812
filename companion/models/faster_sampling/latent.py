"""Latent diffusion (Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models").

model = LatentDiffusion(vae, DDPM(TimeMLP(20), (20,), linear_schedule(), predicts="v"))
model.fit_scale(x)
fit(model, x, settings)
"""

import copy
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.models.ddpm import DDPM
from companion.models.questions import Code, Loss


class LatentDiffusion(nn.Module):
    """A diffusion of the codes of a trained autoencoder: p(x) = ∫ p(x|z) p(z) dz with a DDPM for the prior p(z).

    The diffusion sees (z - m)/s, of mean 0 and about unit variance; s is one number for all coordinates, as their
    proportions are the autoencoder's business (Rombach et al. 2022, app. G). `fit_scale` measures both.

    Args:
        autoencoder: has `encode(x)`, a Gaussian q(z|x), and `decode(z)`, p(x|z): a `VAE`. A frozen copy of it is kept.
        diffusion: of events with the shape of a code; for any real numbers, without `levels`.

    Raises TypeError or ValueError for an autoencoder or a diffusion that does not fit.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, autoencoder: nn.Module, diffusion: DDPM):
        super().__init__()
        if not isinstance(autoencoder, Code):
            raise TypeError(
                f"autoencoder must have encode(x) and decode(z) that return distributions, as a VAE has, got "
                f"{type(autoencoder).__name__}"
            )
        if not isinstance(diffusion, DDPM):
            raise TypeError(f"diffusion must be a DDPM, got {type(diffusion).__name__}")
        if diffusion.levels is not None:
            raise ValueError(f"diffusion must have levels=None, as codes are real numbers, got {diffusion.levels}")
        self.autoencoder = copy.deepcopy(autoencoder).eval().requires_grad_(False)
        self.diffusion = diffusion
        self.event_shape = getattr(autoencoder, "event_shape", None)
        self.levels = getattr(autoencoder, "levels", None)
        self.register_buffer("mean", torch.zeros(diffusion.event_shape))
        self.register_buffer("scale", torch.tensor(math.nan))

    def train(self, mode: bool = True) -> "LatentDiffusion":
        """The autoencoder stays in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    @torch.no_grad()
    def fit_scale(self, x: Float[Tensor, " batch *event"]) -> None:
        """m is the mean of z ~ q(z|x) over the examples, and s² the variance about it, over the coordinates too.

        Raises as the autoencoder does, and ValueError for codes of another shape than the diffusion's events.
        """
        q = self._encode(x)
        variance = (q.variance.mean(0) + q.mean.var(0, correction=0)).mean()
        self.mean.copy_(q.mean.mean(0))
        self.scale.copy_(variance.sqrt())

    def loss(self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None) -> Loss:
        """The diffusion's, of a draw of z ~ q(z|x). Its unit says that it is about codes.

        Raises TypeError or ValueError as the autoencoder and the diffusion do, RuntimeError before `fit_scale`.
        """
        with torch.no_grad():
            z = self._standardised(_draw(self._encode(x)))
        value, parts, unit = self.diffusion.loss(z, label)
        return Loss(value, parts, f"{unit}, of codes")

    @torch.no_grad()
    def elbo(
        self,
        x: Float[Tensor, " batch *event"],
        label: Int[Tensor, " batch"] | None = None,
        terms: int | None = 100,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """A lower bound on log p(x), nats, with one draw of z ~ q(z|x):

            log p(x) ≥ E log p(x|z) + H(q(z|x)) + E L(z),    L(z) = DDPM.elbo((z - m)/s) - dim(z) log s.

        Args:
            terms: of the diffusion's bound; see `DDPM.elbo`.
            generator: on the device of x.

        Raises as `loss`.
        """
        q = self._encode(x)
        z = _draw(q, generator)
        prior = self.diffusion.elbo(self._standardised(z), label, terms, generator)
        prior = prior - self.diffusion.dims * self.scale.log()
        return self.autoencoder.decode(z).log_prob(x) + q.entropy() + prior

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, **kwargs) -> Float[Tensor, " n *event"]:
        """The decoder's mean at codes that the diffusion draws, with its own arguments: see `DDPM.sample`.

        Raises as there, RuntimeError before `fit_scale`.
        """
        self._require_scale()
        z = self.diffusion.sample(n, generator, **kwargs)
        return self.autoencoder.decode(self.mean + self.scale * z).mean

    def _encode(self, x: Tensor) -> torch.distributions.Distribution:
        q = self.autoencoder.encode(x)
        if tuple(q.event_shape) != self.diffusion.event_shape:
            raise ValueError(
                f"diffusion must be of events with the shape of a code, {tuple(q.event_shape)}, got "
                f"{self.diffusion.event_shape}"
            )
        return q

    def _standardised(self, z: Tensor) -> Tensor:
        self._require_scale()
        return (z - self.mean) / self.scale

    def _require_scale(self) -> None:
        if self.scale.isnan():
            raise RuntimeError("the scale of the codes is not known: call fit_scale(x) with the training data first")


def _draw(q: torch.distributions.Distribution, generator: torch.Generator | None = None) -> Tensor:
    """Of a Gaussian, with a generator, which the distributions of torch do not take."""
    return q.mean + q.stddev * torch.empty_like(q.mean).normal_(generator=generator)
