"""The score model against explicit Fisher divergences by quadrature, exact scores, and the papers' numbers."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.optimize import brentq
from torch import nn

from companion.conformance import check
from companion.models.ebm import ScoreModel, geometric_levels, largest_distance, number_of_levels
from companion.models.ebm.score_model import annealed_step_size, variance_ratio
from companion.models.questions import Density, Energy, Learner, Sampler, Score
from companion.nets.time_mlp import TimeMLP
from companion.nets.unet import UNet
from companion.samplers import annealed_langevin, langevin
from companion.training import Settings, fit

SIGMAS = [4.0, 1.5, 0.5]


class Exact(nn.Module):
    """σ s(x, σ), what the network has to answer, from the score of p_σ, at the x and σ of what the network sees."""

    def __init__(self, score, sigmas):
        super().__init__()
        self.of_sigma, self.high, self.low = score, float(sigmas[0]), float(sigmas[-1])

    def forward(self, x, time):
        sigma = self.low * (self.high / self.low) ** (time / 1000)
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
        return sigma * self.of_sigma(x * (1 + sigma**2).sqrt(), sigma)


class Target:
    """A mixture of Gaussians in one dimension, blurred by N(0, σ²): its density and score, by NumPy."""

    def __init__(self, weights, means, stds):
        self.weights, self.means, self.stds = map(np.array, (weights, means, stds))

    def of_each(self, x, sigma):
        return self.weights * stats.norm.pdf(x[..., None], self.means, np.sqrt(self.stds**2 + sigma**2))

    def density(self, x, sigma):
        return self.of_each(x, sigma).sum(-1)

    def score(self, x, sigma):
        slope = -(x[..., None] - self.means) / (self.stds**2 + sigma**2)
        return (self.of_each(x, sigma) * slope).sum(-1) / self.density(x, sigma)

    def mean_under(self, f, sigma):
        """E f(x) under p_σ."""
        value, _ = integrate.quad(
            lambda x: float(f(np.array(x)) * self.density(np.array(x), sigma)), -30, 30, epsabs=1e-11, limit=400
        )
        return value

    def nodes(self, n=60):
        """Points and weights that integrate smooth functions over the mixture itself."""
        z, w = np.polynomial.hermite_e.hermegauss(n)
        points = self.means[:, None] + self.stds[:, None] * z
        return points.flatten(), (self.weights[:, None] * w / w.sum()).flatten()


TARGETS = {
    "gaussian": Target([1.0], [1.5], [0.8]),
    "mixture": Target([0.3, 0.7], [-1.5, 1.0], [0.6, 0.9]),
}


def guess(x, sigma):
    """Some other vector field, for NumPy and for torch; a polynomial, for which Gauss-Hermite nodes are exact."""
    return 0.3 - x / 5 + x**2 / 30 - x**3 / 200 - x / (1 + sigma**2)


def model_of(score, sigmas=SIGMAS, event_shape=(1,), **arguments):
    return ScoreModel(Exact(score, sigmas), event_shape, sigmas, **arguments).double()


def expected_loss(model, target, level, monkeypatch):
    """E of the loss at one level over x and its noise, by Gauss-Hermite nodes in place of draws of both."""
    x, w_x = target.nodes()
    z, w_z = np.polynomial.hermite_e.hermegauss(60)
    pairs = torch.cartesian_prod(torch.from_numpy(x), torch.from_numpy(z))
    weights = torch.cartesian_prod(torch.from_numpy(w_x), torch.from_numpy(w_z / w_z.sum())).prod(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda x: pairs[:, 1:])
        patch.setattr(torch, "randint", lambda high, size, **_: torch.full(size, level))
        loss = model.loss(pairs[:, :1])
    return (weights * loss.value).sum().item()


# The objective


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("name", TARGETS)
def test_the_loss_is_the_fisher_divergence_of_the_blurred_data(name, level, monkeypatch):
    """σ² (½ E_{p_σ} (s - ∇ log p_σ)² - ½ E_{p_σ} (∇ log p_σ)²) + ½."""
    target, sigma = TARGETS[name], SIGMAS[level]
    got = expected_loss(model_of(guess), target, level, monkeypatch)
    explicit = target.mean_under(lambda x: (guess(x, sigma) - target.score(x, sigma)) ** 2, sigma) / 2
    constant = 0.5 - sigma**2 * target.mean_under(lambda x: target.score(x, sigma) ** 2, sigma) / 2
    assert got == pytest.approx(sigma**2 * explicit + constant, rel=1e-7)
    assert sigma**2 * explicit > 0.01


@pytest.mark.parametrize("name", TARGETS)
def test_the_minimiser_is_the_score_of_the_blurred_data(name, monkeypatch):
    """Steps from it to either side cost what they must, σ² ½ E g² for a step g; its negative costs the most."""
    target = TARGETS[name]

    def true(x, sigma):
        values = [target.score(x.numpy()[sigma.flatten() == s], s.item()) for s in sigma.unique()]
        out = torch.empty_like(x)
        for s, value in zip(sigma.unique(), values, strict=True):
            out[sigma.flatten() == s] = torch.from_numpy(value)
        return out

    for level, sigma in enumerate(SIGMAS):
        best = expected_loss(model_of(true), target, level, monkeypatch)
        for step in (0.3, -0.3, 0.01):

            def moved(x, sigma, step=step):
                return true(x, sigma) + step * torch.sin(x)

            cost = sigma**2 * step**2 * target.mean_under(lambda x: np.sin(x) ** 2, sigma) / 2
            assert expected_loss(model_of(moved), target, level, monkeypatch) == pytest.approx(best + cost, abs=1e-7)
        inverted = expected_loss(model_of(lambda x, sigma: -true(x, sigma)), target, level, monkeypatch)
        fisher = sigma**2 * target.mean_under(lambda x, sigma=sigma: target.score(x, sigma) ** 2, sigma)
        assert inverted == pytest.approx(best + 2 * fisher, rel=1e-6) and fisher > 0.1


def test_levels_are_drawn_alike_and_weighted_by_their_variance():
    """The mean of many draws, over all levels, in three dimensions."""
    n = 60_000
    torch.manual_seed(0)
    x = 0.8 * torch.randn(n, 3, dtype=torch.float64) + 1.5
    value = model_of(guess, event_shape=(3,)).loss(x).value
    target = TARGETS["gaussian"]
    of_level = [
        s**2 * target.mean_under(lambda x, s=s: (guess(x, s) - target.score(x, s)) ** 2, s) / 2
        + 0.5
        - s**2 * target.mean_under(lambda x, s=s: target.score(x, s) ** 2, s) / 2
        for s in SIGMAS
    ]
    assert value.shape == (n,)
    assert abs(value.mean() - 3 * np.mean(of_level)) < 5 * value.std() / math.sqrt(n)
    assert np.ptp(of_level) > 0.2


def test_a_linear_network_learns_the_score_of_a_gaussian():
    """s = -(x - m) / (v + σ²) is linear in x: found by gradient descent, sign and scale included."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope, self.offset = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def forward(self, x, time):
            level = 2 - (time / 1000 * 2).round().long()
            return self.slope[level, None] * x + self.offset[level, None]

    torch.manual_seed(0)
    sigmas = geometric_levels(2.0, 0.5, 3)
    model = ScoreModel(Linear(), (1,), sigmas)
    x = 0.8 * torch.randn(100_000, 1) + 1.5
    fit(model, x, Settings(steps=300, batch_size=1000, learning_rate=0.05, ema_decay=0.98), progress=False)
    for sigma in sigmas.tolist():
        at = torch.tensor([[-1.0], [0.0], [3.0]])
        expected = -(at - 1.5) / (0.64 + sigma**2)
        assert (model.score(at, sigma) - expected).abs().max() < 0.06


def test_the_loss_starts_at_half_the_dimension():
    torch.manual_seed(0)
    for model, x in (
        (ScoreModel(TimeMLP(5), (5,), SIGMAS), torch.randn(4000, 5)),
        (ScoreModel(UNet(1, 8, (1,)), (1, 4, 4), SIGMAS), torch.rand(500, 1, 4, 4)),
    ):
        value, parts, unit = model.loss(x)
        assert abs(value.mean() - x[0].numel() / 2) < 5 * value.std() / len(x) ** 0.5
        assert torch.equal(parts["squared distance"], value) and unit == "weighted Fisher divergence"


# The score


def test_the_score_is_the_network_over_sigma():
    asked = []

    class Network(nn.Module):
        def forward(self, x, time):
            asked.append((x, time))
            return torch.sin(x)

    model = ScoreModel(Network(), (2, 3), [8.0, 4.0, 2.0, 1.0]).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    each = torch.tensor([8.0, 2.0, 1.0, 4.0], dtype=torch.float64)
    got = model.score(x, each)
    seen, time = asked[-1]
    np.testing.assert_allclose(time, [1000, 1000 / 3, 0, 2000 / 3], atol=1e-9)
    for i, sigma in enumerate(each.tolist()):
        np.testing.assert_allclose(seen[i], x[i] / math.sqrt(1 + sigma**2))
        np.testing.assert_allclose(got[i], torch.sin(seen[i]) / sigma)
        torch.testing.assert_close(model.score(x, sigma)[i], got[i])
        torch.testing.assert_close(model.score(x[i : i + 1], each[i])[0], got[i])
    model.score(x, math.sqrt(2))
    assert asked[-1][1].tolist() == pytest.approx([1000 * 0.5 / 3] * 4)


def test_the_score_is_differentiable_and_without_autocast():
    torch.manual_seed(0)
    model = ScoreModel(TimeMLP(2, 16), (2,), SIGMAS)
    nn.init.normal_(model.network.last.weight)
    x = torch.randn(5, 2, requires_grad=True)
    exact = model.score(x, 1.5)
    assert torch.autograd.grad(exact.sum(), x)[0].abs().sum() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.score(x, 1.5), exact)
        torch.manual_seed(1)
        rough = model.loss(x).value
    torch.manual_seed(1)
    precise = model.loss(x).value
    assert rough.dtype == torch.float32 and not torch.equal(rough, precise)
    torch.testing.assert_close(rough, precise, rtol=0.03, atol=0.03)


# Samples


def test_sample_is_annealed_langevin_and_a_last_step():
    torch.manual_seed(0)
    model = ScoreModel(TimeMLP(2, 16), (2,), SIGMAS, steps=3, step_size=0.1)
    nn.init.normal_(model.network.last.weight, std=0.1)
    generator = torch.Generator().manual_seed(4)
    start = model.noise(6, generator)
    last = annealed_langevin(model.score, start, SIGMAS, 0.1, 3, generator=generator).last
    expected = (last + 0.25 * model.score(last, 0.5)).detach()
    got = model.sample(6, torch.Generator().manual_seed(4))
    torch.testing.assert_close(got, expected)
    assert not got.requires_grad
    model.denoise = False
    torch.testing.assert_close(model.sample(6, torch.Generator().manual_seed(4)), last)
    assert (last - got).abs().max() > 1e-3


def test_chains_start_as_wide_as_the_largest_level():
    start = ScoreModel(TimeMLP(2), (2,), SIGMAS).noise(20_000, torch.Generator().manual_seed(0))
    assert (start.mean(0).abs() < 5 * 4 / 20_000**0.5).all()
    assert ((start.var(0) - 16).abs() < 5 * 16 * (2 / 20_000) ** 0.5).all()


def test_samples_of_a_gaussian_have_the_variance_of_the_recursion():
    """Of N(0, 0.9²), through all levels of the model's own step size, and the last step to the mean of the data."""
    n, sigmas = 20_000, geometric_levels(5.0, 0.2, 8)
    model = model_of(lambda x, sigma: -x / (0.81 + sigma**2), sigmas, (2,), steps=6)
    variance = float(sigmas[0]) ** 2
    for sigma in sigmas.tolist():
        alpha = model.step_size * (sigma / float(sigmas[-1])) ** 2
        for _ in range(6):
            variance = (1 - alpha / (2 * (0.81 + sigma**2))) ** 2 * variance + alpha
    shrink = 0.81 / (0.81 + 0.04)  # E[x₀|x] = shrink · x
    got = model.sample(n, torch.Generator().manual_seed(0))
    for total, x in ((shrink**2 * variance, got), (variance, got / shrink)):
        assert (x.mean(0).abs() < 5 * math.sqrt(total / n)).all()
        assert ((x.var(0) - total).abs() < 5 * total * math.sqrt(2 / n)).all()


# Two modes of width 1 at ∓(5, 5), with the weights 0.8 and 0.2: Song and Ermon (2019, fig. 2).
FAR, SMALL = 5.0, 0.2


def far_log_density(x, sigma):
    """But for a constant."""
    modes = [(x - side * FAR).square().sum(1) / (-2 * (1 + sigma**2)) for side in (-1, 1)]
    return torch.logaddexp(math.log(1 - SMALL) + modes[0], math.log(SMALL) + modes[1])


def far_score(x, sigma):
    of_small = torch.sigmoid(math.log(SMALL / (1 - SMALL)) + 2 * FAR * x.sum(1, keepdim=True) / (1 + sigma**2))
    return ((2 * of_small - 1) * FAR - x) / (1 + sigma**2)


def test_the_exact_score_gives_the_weights_of_far_modes():
    """Which plain Langevin dynamics of the data's own density, from the same starts, for as many steps, does not."""
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(far_log_density(x, 1.5).sum(), x)
    torch.testing.assert_close(far_score(x, 1.5), gradient)
    n, sigmas = 1000, geometric_levels(20.0, 0.1, 16)
    model = model_of(far_score, sigmas, (2,), steps=60)
    samples = model.sample(n, torch.Generator().manual_seed(0))
    weight = (samples.sum(1) > 0).double().mean()
    assert abs(weight - SMALL) < 5 * math.sqrt(SMALL * (1 - SMALL) / n)
    for mode in (samples[samples.sum(1) > 0] - FAR, samples[samples.sum(1) < 0] + FAR):
        assert (mode.mean(0).abs() < 0.3).all() and ((mode.std(0) - 1).abs() < 0.2).all()
    start = model.noise(n, torch.Generator().manual_seed(0))
    plain = langevin(lambda x: -far_log_density(x, 0), start, 0.05, 960, generator=torch.Generator(), keep=False)
    assert (plain.last.sum(1) > 0).double().mean() > 0.4


def test_sampling_is_repeatable_and_shows_no_bar(capsys):
    model = ScoreModel(TimeMLP(2, 8), (2,), SIGMAS)
    report = check(model, event_shape=(2,), support="real")
    assert report.passed and {o.name for o in report.outcomes} >= {"sample is repeatable", "loss is in its unit"}
    assert not capsys.readouterr().err
    model.sample(2, progress=True)
    assert "15/15" in capsys.readouterr().err


def test_a_network_learns_the_score_of_eight_points_at_every_level():
    """Blurred, they are a mixture of Gaussians."""
    torch.manual_seed(0)
    angles = torch.arange(8) * math.pi / 4
    points = torch.stack([2 * angles.cos(), 2 * angles.sin()], 1)
    sigmas = geometric_levels(4.0, 1.0, 4)
    model = ScoreModel(TimeMLP(2, 32), (2,), sigmas)
    settings = Settings(steps=400, batch_size=256, learning_rate=5e-3, ema_decay=0.99)
    fit(model, points, settings, progress=False)
    for sigma in sigmas.tolist():
        x = points.repeat(100, 1)
        x = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        of_each = torch.softmax(-(x[:, None] - points).square().sum(2) / (2 * sigma**2), 1)
        exact = (of_each @ points - x) / sigma**2
        with torch.no_grad():
            error = (model.score(x, sigma) - exact).square().mean() / exact.square().mean()
        assert error < 0.03


# The techniques


def test_levels_are_geometric():
    levels = geometric_levels(10.0, 0.01, 7)
    assert levels[0] == 10 and levels[-1] == np.float32(0.01) and levels.dtype == torch.float32
    np.testing.assert_allclose(levels[:-1] / levels[1:], 1000 ** (1 / 6), rtol=1e-5)


def test_the_largest_distance_is_that_of_all_pairs():
    x = torch.randn(2345, 2, 3, generator=torch.Generator().manual_seed(0)) + 1000
    brute = max((x - row).flatten(1).norm(dim=1).max().item() for row in x)
    assert largest_distance(x) == pytest.approx(brute, rel=1e-4)
    assert largest_distance(torch.tensor([[0.0], [3.0], [-4.0]])) == pytest.approx(7)
    x[-2:] += torch.tensor([100.0, -100.0])[:, None, None]  # the last two
    assert largest_distance(x) == pytest.approx((x[-1] - x[-2]).norm().item(), rel=1e-4)
    with pytest.raises(ValueError, match="at least two"):
        largest_distance(x[:1])


@pytest.mark.parametrize("dims", [100, 784, 3072])
def test_half_of_each_levels_noise_is_where_that_of_the_level_before_is(dims):
    """Against the norm's own law, χ with d degrees of freedom."""

    def inside(ratio):
        middle, reach = math.sqrt(dims) * ratio, 3 * ratio / math.sqrt(2)
        return np.diff(stats.chi.cdf([middle - reach, middle + reach], dims))[0]

    levels = number_of_levels(50, 0.01, dims)
    assert inside(5000 ** (1 / (levels - 1))) > 0.5 - 0.015
    ratio = brentq(lambda r: inside(r) - 0.5, 1 + 1e-6, 2)
    assert levels == pytest.approx(1 + math.log(5000) / math.log(ratio), rel=0.02)
    assert number_of_levels(1.0, 0.99, dims) == 2


@pytest.mark.parametrize("dims", [5, 20, 784, 10**6])
def test_the_number_of_levels_is_technique_2(dims):
    def excess(ratio):
        middle = math.sqrt(2 * dims) * (ratio - 1)
        return stats.norm.cdf(middle + 3 * ratio) - stats.norm.cdf(middle - 3 * ratio) - 0.5

    ratio = brentq(excess, 1, 50, xtol=1e-13)
    for high in (1.001 * ratio**7, 0.999 * ratio**7):
        assert number_of_levels(high, 1.0, dims) == math.ceil(1 + math.log(high) / math.log(ratio))


def test_levels_of_the_paper():
    """Its five data sets have 232 to 2,311 levels: all 6 % more than half of the noise asks for."""
    for side, high, published in ((32, 50, 232), (64, 90, 500), (96, 140, 788), (128, 190, 1086), (256, 348, 2311)):
        assert 0.93 < number_of_levels(high, 0.01, 3 * side**2) / published < 0.95


@pytest.mark.parametrize(
    ("high", "levels", "steps", "published"),
    [(50, 232, 5, 6.2e-6), (90, 500, 5, 3.3e-6), (190, 1086, 3, 1.8e-6), (348, 2311, 3, 0.9e-6)],
)
def test_step_sizes_of_the_paper(high, levels, steps, published):
    """Theirs are half of ours: CIFAR-10, CelebA, and two of LSUN and FFHQ."""
    ours = annealed_step_size(geometric_levels(high, 0.01, levels), steps)
    assert ours / 2 == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(("levels", "steps"), [(5, 1), (5, 20), (50, 5), (200, 100)])
def test_the_step_size_is_the_one_with_the_variance_nearest_to_that_of_the_noise(levels, steps):
    sigmas = geometric_levels(20.0, 0.1, levels)
    ratio = 200 ** (1 / (levels - 1))
    best = annealed_step_size(sigmas, steps) / 0.1**2
    grid = np.geomspace(1e-5, 2, 20_001)
    values = [variance_ratio(r, ratio, steps) for r in grid]
    assert min(values) > 1
    assert variance_ratio(best, ratio, steps) <= min(values) + 1e-9
    assert annealed_step_size(10 * sigmas, steps) == pytest.approx(best, rel=1e-4)


def test_the_variance_ratio_is_that_of_the_recursion():
    for step, ratio, steps in ((0.3, 1.5, 4), (0.02, 3.0, 11), (1.7, 1.1, 1)):
        sigma = 0.7
        variance = (ratio * sigma) ** 2
        for _ in range(steps):
            variance = (1 - step / 2) ** 2 * variance + step * sigma**2
        assert variance_ratio(step, ratio, steps) == pytest.approx(variance / sigma**2, rel=1e-12)


# What it is, and bad input


def test_it_learns_samples_and_scores_and_has_no_density():
    model = ScoreModel(TimeMLP(2, 8), (2,), SIGMAS)
    assert all(isinstance(model, question) for question in (Learner, Sampler, Score))
    assert not isinstance(model, Density | Energy)
    own = model.state_dict()
    assert own["sigmas"].tolist() == SIGMAS
    other = ScoreModel(TimeMLP(2, 8), (2,), [3.0, 2.0, 1.0])
    other.load_state_dict(own)
    assert torch.equal(other.sigmas, model.sigmas)


def test_images_of_a_unet():
    torch.manual_seed(0)
    model = ScoreModel(UNet(1, 8, (1, 1), patch=2), (1, 8, 8), geometric_levels(5.0, 0.1, 4), steps=2)
    x = torch.rand(16, 1, 8, 8)
    fitted = fit(model, x, Settings(steps=20, batch_size=16, learning_rate=1e-2), progress=False)
    assert fitted.history[-1]["loss"] < 25  # from 32
    assert model.sample(3).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"event_shape": ()}, "event_shape"),
        ({"event_shape": (0,)}, "event_shape"),
        ({"sigmas": [1.0]}, "sigmas must hold at least two levels, got 1"),
        ({"sigmas": [1.0, 2.0]}, "strictly falling"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"step_size": 0.0}, "step_size must be a positive"),
        ({"step_size": -1.0}, "step_size must be a positive"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        ScoreModel(**{"network": TimeMLP(2), "event_shape": (2,), "sigmas": SIGMAS, **arguments})


@pytest.mark.parametrize("method", ["score", "loss", "denoised"])
def test_bad_examples_are_refused(method, refuses_bad_examples):
    model, good = ScoreModel(TimeMLP(2), (2,), SIGMAS), torch.zeros(3, 2)
    call = {"score": lambda x: model.score(x, 1.0), "loss": model.loss, "denoised": model.denoised}[method]
    refuses_bad_examples(call, good)


def test_levels_that_were_not_learned_are_refused():
    model, x = ScoreModel(TimeMLP(2), (2,), SIGMAS), torch.zeros(3, 2)
    for good in (0.5, 4.0, 3.99, torch.tensor([0.5, 4.0, 1.0])):
        model.score(x, good)
    for bad, match in (
        (0.49, "from 0.5 to 4, the levels the network was trained at, got 0.49"),
        (4.1, "got 4.1"),
        (0.0, "got 0"),
        (-1.0, "got -1"),
        (math.nan, "got nan"),
        (torch.tensor([1.0, 1.0, 5.0]), "got 5"),
        (torch.tensor([1.0, 1.0]), r"sigma must be a number or have shape \(3,\), got \(2,\)"),
        (torch.ones(3, 1), r"got \(3, 1\)"),
    ):
        with pytest.raises(ValueError, match=match):
            model.score(x, bad)


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_sample_needs_a_positive_number(n):
    with pytest.raises(ValueError, match="n must be a positive integer"):
        ScoreModel(TimeMLP(2), (2,), SIGMAS).sample(n)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: geometric_levels(1.0, 2.0, 3), "high > low > 0, got 1.0 and 2.0"),
        (lambda: geometric_levels(1.0, 0.0, 3), "high > low > 0"),
        (lambda: geometric_levels(math.inf, 1.0, 3), "finite"),
        (lambda: geometric_levels(2.0, 1.0, 1), "n must be an integer of at least 2, got 1"),
        (lambda: number_of_levels(1.0, 2.0, 100), "high > low > 0"),
        (lambda: number_of_levels(2.0, 1.0, 4), "dims must be at least 5, got 4"),
        (lambda: number_of_levels(2.0, 1.0, 0), "dims must be a positive integer"),
        (lambda: annealed_step_size([1.0], 5), "at least two levels, got 1"),
        (lambda: annealed_step_size([2.0, 1.0], 0), "steps must be a positive integer"),
    ],
)
def test_choices_that_mean_nothing_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
def test_cuda_agrees_with_the_cpu():
    torch.manual_seed(0)
    model = ScoreModel(TimeMLP(2, 16), (2,), SIGMAS).double()
    nn.init.normal_(model.network.last.weight)
    x, each = torch.randn(3, 2, dtype=torch.float64), torch.tensor([4.0, 0.5, 1.0], dtype=torch.float64)
    expected = model.score(x, each).detach()
    model.cuda()
    torch.testing.assert_close(model.score(x.cuda(), each.cuda()).cpu(), expected)
    assert model.loss(x.cuda()).value.is_cuda
    assert model.sample(2, torch.Generator("cuda").manual_seed(0)).is_cuda
