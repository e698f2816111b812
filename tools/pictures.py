"""Draw the small pictures of the map of chapters, one SVG file for each: what they show is computed.

python tools/pictures.py
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from companion.data import density, load
from companion.models.ddpm.schedules import alpha_bars, linear_schedule

FOLDER = Path(__file__).resolve().parent.parent / "book" / "_static" / "chapters"
WIDTH, HEIGHT = 160, 90
# Colours that stand out from white and from black.
BLUE, ORANGE, GREY = "#2f86b5", "#d9822b", "#8a94a0"

PICTURES: dict[str, Callable[[], list[str]]] = {}


def picture(stem: str):
    return lambda draw: PICTURES.setdefault(stem, draw)


def dots(points: Tensor, colour: str, size: float = 1.8) -> str:
    """Points as one path of lines without length, whose round ends are the dots."""
    path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points.tolist())
    return f'<path d="{path}" stroke="{colour}" stroke-width="{size}" stroke-linecap="round"/>'


def line(points: Tensor, colour: str, width: float = 1.5, extra: str = "") -> str:
    path = "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points.tolist())
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"{extra}/>'


def pixels(image: Tensor, left: float, top: float, size: float, colour: str = BLUE) -> list[str]:
    """An image with intensities on [0, 1] as squares, in four steps of opacity."""
    parts = []
    for level in (1, 2, 3, 4):
        rows, columns = torch.where((image * 4.999).int() == level)
        path = "".join(
            f"M{left + c * size:.1f} {top + r * size:.1f}h{size:g}v{size:g}h-{size:g}z"
            for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
        )
        parts.append(f'<path d="{path}" fill="{colour}" opacity="{level / 4}"/>')
    return parts


def placed(points: Tensor, centre: tuple[float, float], scale: float) -> Tensor:
    """Coordinates of the plane as those of the picture, whose second axis points down."""
    return torch.stack((centre[0] + scale * points[..., 0], centre[1] - scale * points[..., 1]), dim=-1)


def curve(x: Tensor, y: Tensor, base: float, height: float) -> Tensor:
    """A function over the width of the picture."""
    across = 8 + (WIDTH - 16) * (x - x[0]) / (x[-1] - x[0])
    return torch.stack((across, base - height * y), dim=-1)


def ellipse(mean: Tensor, covariance: Tensor, radius: float) -> Tensor:
    angle = torch.linspace(0, 2 * math.pi, 40)
    circle = torch.stack((angle.cos(), angle.sin()), dim=-1)
    return mean + radius * circle @ torch.linalg.cholesky(covariance).mT


def two_peaks() -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(torch.tensor([0.35, 0.65])), Normal(torch.tensor([-1.6, 1.2]), 0.6))


@picture("01_generative_problem")
def samples_and_their_density() -> list[str]:
    target, x = two_peaks(), torch.linspace(-4, 4, 81)
    draws = target.sample((1000,))
    counts = torch.histc(draws, 32, -4, 4) / 1000 / 0.25
    edges = torch.linspace(-4, 4, 33)
    steps = torch.stack((edges[:-1], edges[1:]), 1).flatten(), counts.repeat_interleave(2)
    return [line(curve(*steps, 80, 150), GREY, 1), line(curve(x, target.log_prob(x).exp(), 80, 150), BLUE, 2)]


@picture("02_elbo")
def bounds_that_touch() -> list[str]:
    """The log-likelihood of a mixture's mean, and the bounds whose q is the posterior at two of its values."""
    x, theta = torch.tensor([-2.2, -1.8, 1.6, 2.0, 2.2]), torch.linspace(-4.5, 4.5, 121)
    joint = torch.stack((Normal(theta[:, None], 0.7).log_prob(x), Normal(0, 2.0).log_prob(x).expand(121, -1)), -1)
    evidence = joint.logsumexp(-1).sum(-1)

    def drawn(value: Tensor) -> Tensor:
        return curve(theta, (value - evidence.max()) / 4.5, 14, 66)

    parts = [line(drawn(evidence), BLUE, 2)]
    for at in (30, 74):
        q = joint[at].softmax(-1)
        bound = (q * (joint - q.log())).sum((-1, -2))
        parts.append(line(drawn(bound)[bound > evidence.max() - 5], ORANGE))
        parts.append(dots(drawn(evidence)[at][None], ORANGE, 5))
    return parts


@picture("03_vae")
def digit_code_digit() -> list[str]:
    """A digit, a Gaussian over its code, and a digit back from a mean code of eight principal components."""
    train = load("mnist6k").intensities().reshape(-1, 784)
    mean = train.mean(0)
    _, _, directions = torch.linalg.svd(train - mean, full_matrices=False)
    image = train[8]
    decoded = (mean + (image - mean) @ directions[:12].mT @ directions[:12]).clamp(0, 1)
    centre, covariance = torch.tensor([80.0, 45.0]), torch.tensor([[64.0, 30.0], [30.0, 100.0]])
    cloud = centre + torch.randn(60, 2) @ torch.linalg.cholesky(covariance).mT
    return [
        *pixels(image.reshape(28, 28), 4, 20, 1.8),
        line(ellipse(centre, covariance, 2.2), ORANGE, 1.5),
        dots(cloud, ORANGE, 1.6),
        *pixels(decoded.reshape(28, 28), 106, 20, 1.8),
    ]


@picture("04_hvae")
def a_ladder_of_latents() -> list[str]:
    parts = []
    for level, radius in enumerate((13, 10, 7.5, 5.5)):
        x = 22 + 39 * level
        parts.append(f'<circle cx="{x}" cy="45" r="{radius}" fill="none" stroke="{BLUE}" stroke-width="2"/>')
        for sign, colour in ((1, BLUE), (-1, ORANGE)) if level else ():
            bow = torch.linspace(0, 1, 12)
            points = torch.stack((x - 39 + 39 * bow, 45 + sign * (12 + 14 * (math.pi * bow).sin())), -1)
            tip = points[0] if sign < 0 else points[-1]
            parts += [line(points, colour), dots(tip[None], colour, 5)]
    return parts


@picture("05_gan")
def discriminator_between_two_densities() -> list[str]:
    x = torch.linspace(-4, 4, 81)
    data, model = two_peaks().log_prob(x), Normal(0.9, 1.0).log_prob(x)
    discriminator = (data - model).sigmoid()
    return [
        line(curve(x, discriminator, 82, 72), GREY, 1.5, ' stroke-dasharray="4 3"'),
        line(curve(x, data.exp(), 82, 150), BLUE, 2),
        line(curve(x, model.exp(), 82, 150), ORANGE, 2),
    ]


@picture("06_autoregressive")
def a_digit_pixel_by_pixel() -> list[str]:
    image = load("mnist6k").intensities()[8].reshape(28, 28).clone()
    # Every pixel up to this one is known; the rest are still dots.
    row, column = 15, 15
    rest = torch.cartesian_prod(torch.arange(28), torch.arange(28))
    rest = rest[rest[:, 0] * 28 + rest[:, 1] > row * 28 + column].flip(-1)
    image.flatten()[row * 28 + column :] = 0
    size, left, top = 3, 38, 3
    here = f'<rect x="{left + column * size}" y="{top + row * size}" width="{size}" height="{size}" fill="{ORANGE}"/>'
    return [*pixels(image, left, top, size), dots(torch.tensor([left, top]) + size * (rest + 0.5), GREY, 0.8), here]


@picture("07_flows")
def a_grid_bent() -> list[str]:
    """A grid, and where an affine coupling takes it: the first coordinate stays and says how to move the second."""
    t = torch.linspace(-2, 2, 25)
    lines = [torch.stack(pair, -1) for v in torch.linspace(-2, 2, 9) for pair in ((t, v + 0 * t), (v + 0 * t, t))]
    parts = []
    for z in lines:
        scale, shift = 0.5 * (1.3 * z[:, 0]).sin() - 0.2, 0.9 * (1.6 * z[:, 0]).cos()
        x = torch.stack((z[:, 0], z[:, 1] * scale.exp() + shift), -1)
        parts += [line(placed(z, (42, 45), 15), BLUE, 1), line(placed(x, (118, 47), 13), ORANGE, 1)]
    return parts


@picture("08_ebm")
def the_score_points_uphill() -> list[str]:
    target = density("eight_gaussians")
    x = torch.cartesian_prod(torch.linspace(-3.8, 3.8, 15), torch.linspace(-3, 3, 11)).requires_grad_()
    [score] = torch.autograd.grad(target.log_prob(x).sum(), x)
    arrows = score / score.norm(dim=-1, keepdim=True) * (score.norm(dim=-1, keepdim=True) / 8).tanh() * 0.55
    starts, ends = placed(x.detach(), (80, 45), 11.5), placed(x.detach() + arrows, (80, 45), 11.5)
    path = "".join(
        f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for (a, b), (c, d) in zip(starts.tolist(), ends.tolist(), strict=True)
    )
    drawn = f'<path d="{path}" stroke="{GREY}" stroke-width="1"/>'
    return [drawn, dots(ends, GREY, 2), dots(placed(target.sample((160,)), (80, 45), 11.5), ORANGE, 1.8)]


@picture("09_ddpm")
def data_into_noise() -> list[str]:
    x = density("moons").sample((150,))
    kept = alpha_bars(linear_schedule())
    parts = []
    for i, t in enumerate((0, 150, 350, 1000)):
        noisy = kept[t].sqrt() * x + (1 - kept[t]).sqrt() * torch.randn_like(x)
        parts.append(dots(placed(noisy.clamp(-3, 3), (22 + 38.7 * i, 45), 6.2), BLUE if i == 0 else ORANGE, 1.7))
    return parts


@picture("09b_faster_sampling")
def paths_without_noise() -> list[str]:
    """In one dimension the probability-flow ODE keeps quantiles: each of its paths is one of them through time."""
    time, grid = torch.linspace(0, 1, 30), torch.linspace(-4, 4, 2001)
    kept = torch.cos(0.5 * math.pi * time.clamp(max=0.99)) ** 2
    quantiles = torch.linspace(0.04, 0.96, 13)
    paths = []
    for k in kept:
        spread = (k * 0.3**2 + 1 - k).sqrt()
        means = k.sqrt() * torch.tensor([-1.6, 1.2])
        law = MixtureSameFamily(Categorical(torch.tensor([0.35, 0.65])), Normal(means, spread))
        paths.append(grid[torch.searchsorted(law.cdf(grid), quantiles)])
    across = WIDTH - 10 - (WIDTH - 20) * time
    drawn = torch.stack((across.expand(13, -1), 45 - 15 * torch.stack(paths, 1)), -1)
    ends = drawn[:, 0]
    return [*(line(path, BLUE, 1.2) for path in drawn), dots(ends, ORANGE, 5)]


@picture("10_evaluation")
def two_clouds_and_their_gaussians() -> list[str]:
    parts = []
    for colour, centre, root in (
        (BLUE, (66.0, 48.0), [[15.0, 0.0], [5.0, 12.0]]),
        (ORANGE, (98.0, 40.0), [[12.0, 0.0], [-6.0, 10.0]]),
    ):
        cloud = torch.tensor(centre) + torch.randn(110, 2) @ torch.tensor(root).mT
        parts.append(dots(cloud.clamp(2, 158), colour, 1.7))
        parts.append(line(ellipse(cloud.mean(0), cloud.mT.cov(), 1.8), colour, 1.8))
    return parts


def render(stem: str) -> str:
    torch.manual_seed(0)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">'
    return "\n".join([head, *PICTURES[stem](), "</svg>", ""])


if __name__ == "__main__":
    for stem in PICTURES:
        FOLDER.joinpath(f"{stem}.svg").write_text(render(stem))
