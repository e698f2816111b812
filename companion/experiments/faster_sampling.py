"""The experiments of the chapter on faster sampling: quality against calls of the network."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from companion.data import density
from companion.evaluation import energy_distance
from companion.experiments.vae import Row
from companion.models.ddpm import DDPM, linear_schedule
from companion.models.faster_sampling import ConsistencyModel, ProgressiveDistillation
from companion.nets.time_mlp import TimeMLP
from companion.presets import splits
from companion.samplers import ancestral, ddim, dpm_solver, euler, heun, predictor_corrector
from companion.training import Settings, fit

Model = TypeVar("Model", bound=nn.Module)

# Calls of the network in n steps of each; the last step of Heun's method, and of the corrector's, takes one.
SAMPLERS: dict[str, tuple[Callable[..., Tensor], Callable[[int], int]]] = {
    "ancestral": (ancestral, lambda n: n),
    "ancestral, forward variance": (partial(ancestral, variance="forward"), lambda n: n),
    "predictor-corrector": (predictor_corrector, lambda n: 2 * n - 1),
    "Euler": (euler, lambda n: n),
    "DDIM": (ddim, lambda n: n),
    "Heun": (heun, lambda n: 2 * n - 1),
    "DPM-Solver++(2M)": (dpm_solver, lambda n: n),
}


def _steps(calls: Callable[[int], int], budget: int) -> int:
    """The most steps for which a sampler does not call the network more often."""
    return max(n for n in range(1, budget + 1) if calls(n) <= budget)


def sampler_digits(
    samplers: Sequence[str] = tuple(SAMPLERS),
    budgets: Sequence[int] = (5, 10, 20, 50, 100),
    images: int = 300,
    seed: int = 0,
    device: str = "cpu",
) -> list[Row]:
    """One diffusion of digits, the package's "ddpm", through every sampler, from the same noise with the same labels.

    Returns:
        For each "sampler" and budget: "calls" of the network for a sample, and "distance", the energy distance of the
        samples to the test digits, in the unit of a pixel's intensity. The first row is what as
        many training digits have, without any call.
    """
    # Where it is imported, the zoo imports the experiments.
    from companion.zoo import pretrained

    model = cast(DDPM, pretrained("ddpm")).to(device)
    train, _, test = splits("mnist6k")
    reference, label = test.intensities(), test.labels[:images].to(device)
    floor = energy_distance(train.intensities()[:images], reference)
    rows: list[Row] = [{"sampler": "training digits", "calls": 0, "distance": floor}]
    for name in samplers:
        sampler, calls = SAMPLERS[name]
        for budget in budgets:
            steps, generator = _steps(calls, budget), torch.Generator(device).manual_seed(seed)
            parts = [
                model.sample(len(part), generator, part, steps=steps, sampler=sampler) for part in label.split(100)
            ]
            distance = energy_distance(torch.cat(parts).cpu(), reference)
            rows.append({"sampler": name, "calls": calls(steps), "distance": distance})
    return rows


def few_steps_plane(
    densities: Sequence[str] = ("moons", "eight_gaussians", "checkerboard"),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 2000,
    draws: int = 4000,
    device: str = "cpu",
) -> list[Row]:
    """A diffusion of 8,000 points in the plane, its samplers, its students, and models of one or two steps.

    Args:
        steps: of the training of the diffusion and of each consistency model; each student has an eighth of them.
        draws: samples for each distance.

    Returns:
        For each "method": "calls" of the network for a sample, and "distance", the energy distance of the samples to as
        many points of the density. The first of each density and seed is that of another so many points.
    """
    rows: list[Row] = []
    for name in densities:
        truth = density(name)
        for seed in seeds:
            torch.manual_seed(seed)
            x, reference, other = (truth.sample((n,)) for n in (8000, draws, draws))
            drawn = [("data", 0, other), *_few_steps(x, seed, steps, draws, device)]
            for method, calls, samples in drawn:
                distance = energy_distance(samples.cpu(), reference)
                rows.append({"density": name, "seed": seed, "method": method, "calls": calls, "distance": distance})
    return rows


def _few_steps(x: Tensor, seed: int, steps: int, draws: int, device: str) -> Iterator[tuple[str, int, Tensor]]:
    """Method, calls, samples."""

    def trained(model: Model, **settings) -> Model:
        fit(model, x, Settings(batch_size=256, seed=seed, **settings), device=device, progress=False)
        return model

    def draw(model: DDPM | ProgressiveDistillation | ConsistencyModel, **options) -> Tensor:
        return model.sample(draws, torch.Generator(device).manual_seed(seed), **options)

    teacher = DDPM(_network(), (2,), linear_schedule(100, 1e-3, 0.2), predicts="v", variance="forward")
    teacher = trained(teacher, steps=steps, learning_rate=2e-3, ema_decay=0.995)
    for method in ("ancestral, forward variance", "DDIM", "Heun", "DPM-Solver++(2M)"):
        sampler, calls = SAMPLERS[method]
        for budget in (1, 2, 4, 10, 20, 100):
            n = _steps(calls, budget)
            # Heun's method calls an odd number of times.
            if budget in (1, calls(n)) or budget >= 10:
                yield method, calls(n), draw(teacher, steps=n, sampler=sampler)
    student = ProgressiveDistillation(teacher, 16)
    while True:
        student = trained(student, steps=max(1, steps // 8), ema_decay=0.99)
        yield "progressive distillation", student.steps, draw(student)
        if student.steps == 1:
            break
        student = student.halved()
    for method, guide in (("consistency distillation", teacher), ("consistency training", None)):
        model = trained(ConsistencyModel(_network(), (2,), guide, **CONSISTENCY), steps=steps, **CONSISTENCY_SETTINGS)
        for n in (1, 2):
            yield method, n, draw(model, steps=n)


def _network() -> TimeMLP:
    return TimeMLP(2, 128, 3)


# Of data with a standard deviation of about 1.5, and levels within those of the teacher.
CONSISTENCY: dict[str, Any] = dict(sigma_min=0.035, sigma_max=20.0, sigma_data=1.5)
CONSISTENCY_SETTINGS: dict[str, Any] = dict(learning_rate=1e-3, ema_decay=0.99)
