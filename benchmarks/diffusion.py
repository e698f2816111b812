"""Diffusion: a training step and 50 steps of DDIM with U-Nets of about the same size, and what a step of a sampler
costs beside its network.

The number of parameters, printed beside each candidate, is about the same, the networks are not: that of
denoising-diffusion-pytorch has two blocks and attention at every level. All train with the same fused AdamW.
"""

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.flows import Candidate, likelihood_step, measure, step
from benchmarks.harness import compare, peer, stand_in_for_torchvision
from companion.models.ddpm import DDPM, linear_schedule
from companion.nets.unet import UNet
from companion.samplers.diffusion import ddim

IMAGE, BATCH, DRAWS, STEPS = (1, 32, 32), 16, 4, 50
CHANNELS, MULTIPLIERS = 32, (1, 2, 2)
# Of denoising-diffusion-pytorch, for as many parameters.
THEIR_CHANNELS = 28
CHAIN = 1000


class Null(nn.Module):
    """A network that costs nothing."""

    channels, out_dim, self_condition, random_or_learned_sinusoidal_cond = 1, 1, False, False

    def __init__(self):
        super().__init__()
        self.answer = torch.zeros(BATCH, *IMAGE)

    def forward(self, x: Tensor, t: Tensor, *_: object) -> Tensor:
        return self.answer


def denoising_diffusion() -> ModuleType | None:
    stand_in_for_torchvision()
    module = peer("denoising_diffusion_pytorch")
    if module is not None:
        whole = sys.modules["denoising_diffusion_pytorch.denoising_diffusion_pytorch"]
        whole.tqdm = partial(whole.tqdm, disable=True)
    return module


# The candidates, with minus a loss where the flows have log_prob


def ours(network: nn.Module) -> Candidate:
    model = DDPM(network, IMAGE, linear_schedule(CHAIN))
    return model, lambda x: -model.loss(x).value, lambda n: model.sample(n, steps=STEPS, sampler=ddim)


def of_diffusers(diffusers: ModuleType) -> Candidate:
    features = tuple(CHANNELS * m for m in MULTIPLIERS)
    network = diffusers.UNet2DModel(
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=features,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=features[-1],
        norm_num_groups=8,
    )
    forward, reverse = diffusers.DDPMScheduler(CHAIN), diffusers.DDIMScheduler(CHAIN, clip_sample=False)
    reverse.set_timesteps(STEPS)

    def objective(x: Tensor) -> Tensor:
        noise, t = torch.randn_like(x), torch.randint(CHAIN, (len(x),))
        return -F.mse_loss(network(forward.add_noise(x, noise, t), t).sample, noise)

    def sample(n: int) -> Tensor:
        return in_a_loop(reverse, lambda x, t: network(x, t).sample, torch.randn(n, *IMAGE))

    return network, objective, sample


@torch.no_grad()
def in_a_loop(scheduler: object, eps: Callable, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x, t), t, x).prev_sample
    return x


def of_denoising_diffusion(module: ModuleType) -> Candidate:
    network = module.Unet(THEIR_CHANNELS, dim_mults=MULTIPLIERS, channels=1)
    diffusion = gaussian_diffusion(module, network, STEPS)
    return diffusion, lambda x: -diffusion(x), lambda n: diffusion.ddim_sample((n, *IMAGE))


def gaussian_diffusion(module: ModuleType, network: nn.Module, steps: int) -> nn.Module:
    return module.GaussianDiffusion(
        network,
        image_size=IMAGE[1],
        timesteps=CHAIN,
        sampling_timesteps=steps,
        objective="pred_noise",
        beta_schedule="linear",
    )


def candidates() -> dict[str, Candidate]:
    found = {}
    if (diffusers := peer("diffusers")) is not None:
        found["diffusers"] = of_diffusers(diffusers)
    if (module := denoising_diffusion()) is not None:
        found["denoising-diffusion-pytorch"] = of_denoising_diffusion(module)
    return found | {"companion": ours(UNet(1, CHANNELS, MULTIPLIERS))}


# The workloads


def networks(training_repeats: int = 20, sampling_repeats: int = 3) -> list[dict]:
    found, x = candidates(), torch.rand(BATCH, *IMAGE)
    network, t = found["companion"][0].network, torch.rand(BATCH) * CHAIN

    def alone() -> Tensor:
        return network(x, t).square().mean()

    title = f"U-Net {CHANNELS} × {MULTIPLIERS}, {IMAGE[1]} × {IMAGE[2]}"
    floor = "the network alone", step(alone, network)
    training = measure(f"{title}, batch {BATCH}: training step", found, likelihood_step(x), floor, training_repeats)

    @torch.no_grad()
    def calls() -> None:
        for _ in range(STEPS):
            network(x[:DRAWS], t[:DRAWS])

    floor = f"the network alone, {STEPS} times", calls
    return [
        training,
        measure(
            f"{title}, batch {DRAWS}: DDIM, {STEPS} steps",
            found,
            lambda one: lambda: one[2](DRAWS),
            floor,
            sampling_repeats,
        ),
    ]


def overhead(repeats: int = 20) -> list[dict]:
    """Of samplers whose network costs nothing: all steps of ancestral sampling, and DDIM's."""
    diffusers, module, model = peer("diffusers"), denoising_diffusion(), DDPM(Null(), IMAGE, linear_schedule(CHAIN))
    start, zero, results = torch.randn(BATCH, *IMAGE), model.network.answer, []
    for title, steps, sampler, theirs in (
        ("ancestral", CHAIN, None, "DDPMScheduler"),
        ("DDIM", STEPS, ddim, "DDIMScheduler"),
    ):
        runs = {}
        if diffusers is not None:
            scheduler = getattr(diffusers, theirs)(CHAIN, clip_sample=False)
            scheduler.set_timesteps(steps)
            runs["diffusers"] = partial(in_a_loop, scheduler, lambda x, t: zero, start)
        if module is not None:
            diffusion = gaussian_diffusion(module, Null(), steps)
            loop = diffusion.ddim_sample if diffusion.is_ddim_sampling else diffusion.p_sample_loop
            runs["denoising-diffusion-pytorch"] = partial(loop, (BATCH, *IMAGE))
        runs["companion"] = partial(model.sample, BATCH, steps=steps, sampler=sampler)
        result = compare(f"No network, {title}, {steps} steps, batch {BATCH}", runs, repeats, 0)
        for row in result["rows"]:
            row["microseconds a step"] = 1e3 * row["milliseconds"] / steps
            print(f"  {row['candidate']:<44} {row['microseconds a step']:9.1f} μs a step")
        results.append(result)
    return results


def run() -> list[dict]:
    return [*networks(), *overhead()]
