"""The experiments of the chapter on variational autoencoders."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from companion.data import factors
from companion.evaluation import mutual_information_gap
from companion.models.questions import Code
from companion.presets import find, fixed, splits, training_data
from companion.training import Settings, fit

Row = dict[str, float | int | str | None]


def vae_beta(
    steps: int = 1500,
    betas: Sequence[float] = (0.1, 0.25, 0.5, 1, 2, 4, 10),
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
) -> list[Row]:
    """Rate against distortion of the VAE on digits, for each weight of the KL term and each seed.

    Trained as its quick preset, with early stopping on its own loss.

    Returns:
        For each: "rate", E KL(q(z|x)‖p(z)), "distortion", -E log p(x|z), and their sum "negative_elbo", on the test
        digits in nats; "best_step" of the training.
    """
    from companion.models.vae import VAE

    preset = find("vae", "quick")
    train, validation, test = splits(preset.data)
    x = fixed(test, preset.binarised).to(device)
    rows: list[Row] = []
    for beta in betas:
        for seed in seeds:
            torch.manual_seed(seed)
            model = VAE(beta=beta)
            fitted = fit(
                model,
                training_data(train, preset.binarised),
                replace(preset.settings, steps=steps, seed=seed, checkpoint_every=None),
                validation=fixed(validation, preset.binarised),
                device=device,
                progress=False,
            )
            rate, distortion = _rate_and_distortion(model, x)
            row = {"rate": rate, "distortion": distortion, "negative_elbo": rate + distortion}
            rows.append({"beta": beta, "seed": seed, **row, "best_step": fitted.best_step})
    return rows


def vae_disentanglement(
    steps: int = 3000,
    betas: Sequence[float] = (1, 4, 16),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    device: str = "cpu",
) -> list[Row]:
    """How far the code of a β-VAE keeps known factors apart, for each weight of the KL term and each seed.

    Six latents, four factors, 512 pictures, all of them seen in training.

    Returns:
        For each: "gap", the mutual information gap of the encoder's means; "rate", E KL(q(z|x)‖p(z)), and "distortion",
        -E log p(x|z), in nats; "active", the number of latents that say more than 0.01 nats.
    """
    from companion.models.vae import VAE

    data = factors()
    x = data.binary().to(device)
    rows: list[Row] = []
    for beta in betas:
        for seed in seeds:
            torch.manual_seed(seed)
            model = VAE(latent_dim=6, hidden=256, beta=beta)
            settings = Settings(steps=steps, learning_rate=2e-3, seed=seed)
            fit(model, x, settings, device=device, progress=False)
            rate, distortion = _rate_and_distortion(model, x)
            with torch.no_grad():
                q = model.encode(x)
            kl = kl_divergence(q.base_dist, Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))).mean(0)
            row = {"gap": mutual_information_gap(q.mean.cpu(), data.values), "rate": rate, "distortion": distortion}
            rows.append({"beta": beta, "seed": seed, **row, "active": int((kl > 0.01).sum())})
    return rows


@torch.no_grad()
def _rate_and_distortion(model: Code, x: Tensor) -> tuple[float, float]:
    q = model.encode(x)
    prior = Independent(Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean)), 1)
    rate, distortion = kl_divergence(q, prior), -model.decode(q.sample()).log_prob(x)
    return rate.mean().item(), distortion.mean().item()
