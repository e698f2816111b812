"""The experiments of the chapter on hierarchical VAEs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.experiments.vae import Row
from companion.models.hvae import HVAE
from companion.models.vae import VAE
from companion.nets import mlp
from companion.presets import find, fixed, splits, training_data
from companion.training import Settings, fit

# As many weights as the VAE of the quick preset, to a few in a thousand. One level with the ladder's batch
# normalisation and warm-up tells what these bring without a hierarchy.
MODELS: dict[str, Callable[[], VAE | HVAE]] = {
    "VAE": VAE,
    "one level": lambda: HVAE(latent_dims=(20,), hidden=(511,), warm_up=500),
    "ladder": lambda: HVAE(latent_dims=(20, 10), hidden=(488, 64), warm_up=500),
    "bottom-up": lambda: HVAE(latent_dims=(20, 10), hidden=(507, 64), warm_up=500, inference="bottom-up"),
}

CURES: dict[str, dict] = {
    "none": dict(batch_norm=False),
    "warm-up": dict(batch_norm=False, warm_up=500),
    "free bits": dict(batch_norm=False, free_bits=1.0),
    "batch norm": dict(),
    "batch norm, warm-up": dict(warm_up=500),
}


def _fit_digits(model: nn.Module, steps: int, seed: int, device: str) -> int | None:
    """Train as the VAE's quick preset does. Returns the best step."""
    preset = find("vae", "quick")
    train, validation, _ = splits(preset.data)
    settings = replace(preset.settings, steps=steps, seed=seed, checkpoint_every=None)
    held_out = fixed(validation, preset.binarised)
    data = training_data(train, preset.binarised)
    return fit(model, data, settings, validation=held_out, device=device, progress=False).best_step


def _test_digits(device: str) -> Tensor:
    preset = find("vae", "quick")
    return fixed(splits(preset.data)[2], preset.binarised).to(device)


def hvae_digits(
    steps: int = 2000, seeds: Sequence[int] = (0, 1, 2), importance_samples: int = 500, device: str = "cpu"
) -> list[Row]:
    """Two levels of latents against one, with as many weights and steps, on digits. Models as in MODELS.

    All trained alike, with early stopping on the validation digits.

    Returns:
        For each model and seed: its number of "parameters"; "negative_elbo" and, with importance weights,
        "negative_bound", means over the test digits in nats; "gain", by how much the latter is lower than the VAE's
        of the same seed, and "gain_error", the standard error of this mean of paired differences; "best_step".
    """
    x = _test_digits(device)
    rows: list[Row] = []
    for seed in seeds:
        bounds: dict[str, Tensor] = {}
        for name, make in MODELS.items():
            torch.manual_seed(seed)
            model = make()
            best_step = _fit_digits(model, steps, seed, device)
            torch.manual_seed(seed)
            with torch.no_grad():
                elbo = model.elbo(x).mean().item()
            bounds[name] = torch.cat([model.importance_bound(part, importance_samples) for part in x.split(100)])
            gain = bounds[name] - bounds["VAE"]
            row = {"negative_elbo": -elbo, "negative_bound": -bounds[name].mean().item()}
            row |= {"gain": gain.mean().item(), "gain_error": gain.std().item() / len(x) ** 0.5}
            parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
            rows.append({"model": name, "seed": seed, "parameters": parameters, **row, "best_step": best_step})
    return rows


def hvae_collapse(
    steps: int = 2000,
    cures: Sequence[str] = tuple(CURES),
    inferences: Sequence[Literal["bottom-up", "ladder"]] = ("bottom-up", "ladder"),
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
) -> list[Row]:
    """What each of three levels of latents comes to say about a digit, for each way to infer and each cure.

    Returns:
        For each, and each seed: "level_1" to "level_3", the mean cost of each level on the test digits in nats, and
        "negative_elbo".
    """
    x = _test_digits(device)
    rows: list[Row] = []
    for inference in inferences:
        for cure in cures:
            for seed in seeds:
                torch.manual_seed(seed)
                model = HVAE(latent_dims=(20, 10, 5), hidden=(480, 64, 32), inference=inference, **CURES[cure])
                _fit_digits(model, steps, seed, device)
                torch.manual_seed(seed)
                with torch.no_grad():
                    levels = model.divergences(x).mean(0).tolist()
                    row = {f"level_{number}": cost for number, cost in enumerate(levels, start=1)}
                    row["negative_elbo"] = -model.elbo(x).mean().item()
                rows.append({"inference": inference, "cure": cure, "seed": seed, **row})
    return rows


def manifold(n: int, seed: int) -> Float[Tensor, "n 20"]:
    """Points of a curved surface of three dimensions in a space of twenty, with noise of standard deviation 0.1.

    The surface is the image of a normal latent under a random network, which is the same for every seed.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = mlp([3, 64, 20], nn.Tanh)
        with torch.no_grad():
            network.get_parameter("0.weight").normal_()
            network.get_parameter("2.weight").normal_(std=0.25)
        torch.manual_seed(seed)
        with torch.no_grad():
            return network(torch.randn(n, 3)) + 0.1 * torch.randn(n, 20)


def latent_dimension(
    steps: int = 3000,
    latent_dims: Sequence[int] = (1, 2, 3, 4, 6, 10),
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
) -> list[Row]:
    """The VAE's bound against the number of its latents, on data of which three numbers are all there is to know.

    Returns:
        For each number of latents and each seed: "negative_elbo" on fresh points, in nats; "active", the number of
        latents that say more than 0.01 nats; "noise", the learned standard deviation of the decoder.
    """
    x, fresh = manifold(20_000, seed=1), manifold(5000, seed=2).to(device)
    rows: list[Row] = []
    for latent_dim in latent_dims:
        for seed in seeds:
            torch.manual_seed(seed)
            model = VAE((20,), latent_dim, hidden=128, likelihood="gaussian", decoder_scale="learned")
            settings = Settings(steps=steps, batch_size=256, learning_rate=2e-3, seed=seed)
            fit(model, x, settings, device=device, progress=False)
            torch.manual_seed(seed)
            with torch.no_grad():
                q = model.encode(fresh)
                kl = 0.5 * (q.variance + q.mean.square() - 1 - q.variance.log()).mean(0)
                row = {"negative_elbo": -model.elbo(fresh).mean().item(), "active": int((kl > 0.01).sum())}
            row["noise"] = model.log_scale.exp().item()
            rows.append({"latent_dim": latent_dim, "seed": seed, **row})
    return rows
