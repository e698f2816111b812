"""The experiments of the chapter on generative adversarial networks."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, Normal

from companion.data import density
from companion.evaluation import mode_coverage
from companion.experiments.vae import Row
from companion.models.gan import GAN
from companion.training import Settings, fit

# The losses, then the techniques of Salimans et al. (2016), each added to the non-saturating loss. The weight of the
# gradient penalty is the one that Gulrajani et al. (2017) use in the plane.
VARIANTS: dict[str, dict] = {
    "minimax": dict(loss="minimax"),
    "non-saturating": dict(),
    "hinge": dict(loss="hinge"),
    "hinge, spectral norm": dict(loss="hinge", spectral_norm=True),
    "Wasserstein, gradient penalty": dict(loss="wasserstein", gradient_penalty=0.1),
    "+ feature matching": dict(feature_matching=2),
    "+ minibatch discrimination": dict(minibatch_discrimination=8),
    "+ one-sided label smoothing": dict(label_smoothing=0.1),
    "+ historical averaging": dict(historical_averaging=1e-4),
    "+ virtual batch norm": dict(virtual_batch_norm=True),
}


def gan_modes(
    steps: int = 4000,
    variants: Sequence[str] = tuple(VARIANTS),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    device: str = "cpu",
) -> list[Row]:
    """Modes found on a 5 × 5 grid of narrow Gaussians, for each loss, each technique and each seed.

    The same networks, optimiser and number of steps for all.

    Returns:
        For each: "modes", of 25, and "high_quality", the share of samples within three standard deviations of a mode,
        both of 2,500 samples; see `mode_coverage`.
    """
    return _modes("grid25", 0.5, 128, steps, variants, seeds, device)


def gan_collapse(
    steps: int = 1500,
    variants: Sequence[str] = tuple(VARIANTS),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    device: str = "cpu",
) -> list[Row]:
    """The same on a ring of eight Gaussians, with the momentum at which the plain game collapses, Adam's usual 0.9.

    Returns rows as `gan_modes` does, with "modes" of 8.
    """
    return _modes("eight_gaussians", 0.9, 64, steps, variants, seeds, device)


def _modes(
    name: str, momentum: float, hidden: int, steps: int, variants: Sequence[str], seeds: Sequence[int], device: str
) -> list[Row]:
    mixture = cast(MixtureSameFamily, density(name))  # both names are of mixtures of Gaussians
    components = cast("Independent[Normal]", mixture.component_distribution).base_dist
    centres, scale = components.loc, components.scale[0, 0].item()

    def batch(n: int, generator: torch.Generator) -> Tensor:
        chosen = centres[torch.randint(len(centres), (n,), generator=generator)]
        return chosen + scale * torch.randn(n, 2, generator=generator)

    rows: list[Row] = []
    for variant in variants:
        for seed in seeds:
            torch.manual_seed(seed)
            model = GAN((2,), latent_dim=2, hidden=hidden, **VARIANTS[variant])
            settings = Settings(steps=steps, betas=(momentum, 0.999), seed=seed, log_every=steps)
            fit(model, batch, settings, device=device, progress=False)
            found = mode_coverage(model.cpu().sample(2500, torch.Generator().manual_seed(seed)), centres, scale)
            row = {"modes": found.modes, "high_quality": found.high_quality}
            rows.append({"variant": variant, "seed": seed, **row})
    return rows
