"""Dequantisation: against rectangle probabilities of SciPy's Gaussian, quadrature, autograd, and faults put in."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import nn
from torch.distributions import MultivariateNormal

from companion.conformance import (
    bound_below_exact,
    bound_monotone,
    bound_within_unit_mass,
    check,
    log_det_matches_autograd,
    normalised_in_expectation,
    sampler_agrees,
)
from companion.data import load
from companion.evaluation.likelihood import as_bits_per_dim
from companion.models.flows import Flow, RealNVP
from companion.models.flows.dequantisation import Dequantised, Logit, UniformNoise, VariationalNoise
from companion.models.questions import Bound, Density, Learner, Sampler


class Gaussian(nn.Module):
    """A stand-in for a flow: a Gaussian with a full covariance, one for each class if there are classes."""

    def __init__(self, dim, seed=0, centre=0.0, scale=1.0, classes=None):
        super().__init__()
        torch.manual_seed(seed)
        self.event_shape, self.classes = (dim,), classes
        self.mean = nn.Parameter(centre + scale * torch.randn(classes or 1, dim, dtype=torch.float64))
        self.factor = nn.Parameter(scale * (torch.eye(dim).double() + torch.randn(dim, dim).double().tril() / 4))

    def of(self, label=None):
        return MultivariateNormal(self.mean[0 if label is None else label], self.factor @ self.factor.T)

    def log_prob(self, x, label=None):
        return self.of(label).log_prob(x)

    def sample(self, n, generator=None, label=None, temperature=1.0):
        noise = torch.randn(n, *self.event_shape, generator=generator, dtype=torch.float64)
        return self.of(label).mean + temperature * noise @ self.factor.T


class OnTheUnitCube(nn.Module):
    """The uniform density on [0, 1)^D, as a density of y or, with an α, of logit(α + (1 - 2α) y)."""

    def __init__(self, event_shape, alpha=None):
        super().__init__()
        self.event_shape, self.alpha = event_shape, alpha

    def log_prob(self, z):
        if self.alpha is None:
            return torch.zeros(len(z), dtype=z.dtype)
        return (-z - 2 * torch.nn.functional.softplus(-z) - math.log(1 - 2 * self.alpha)).flatten(1).sum(1)


class Given(nn.Module):
    """Noise that is known."""

    def __init__(self, u):
        super().__init__()
        self.u = u

    def forward(self, x):
        return self.u, x.new_zeros(len(x))


def all_states(dim, levels):
    grid = itertools.product(range(levels), repeat=dim)
    return torch.tensor(list(grid), dtype=torch.float64) / (levels - 1)


def exact(flow, levels, alpha, beyond=False, label=0):
    """log P of all states: the Gaussian's mass between the images of their cells' edges, no Jacobian needed."""
    mean, cov = flow.mean[label].detach().numpy(), (flow.factor @ flow.factor.T).detach().numpy()
    edges = np.arange(levels + 1) / levels
    edges = edges if alpha is None else special.logit(alpha + (1 - 2 * alpha) * edges)
    if beyond:
        edges[[0, -1]] = -np.inf, np.inf
    cells = itertools.product(range(levels), repeat=len(mean))
    masses = []
    for k in map(np.array, cells):
        if len(mean) == 1:
            low, high = stats.norm.cdf(edges[[k[0], k[0] + 1]], mean[0], cov[0, 0] ** 0.5)
            masses.append(high - low)
        else:
            normal = stats.multivariate_normal(mean, cov, seed=0, abseps=1e-8, releps=0)
            masses.append(normal.cdf(edges[k + 1], lower_limit=edges[k]))
    return torch.tensor(np.log(masses), dtype=torch.float64)


def over_the_noise(model, x, points=40):
    """log E[weight] and E[log weight] of each x, the noise on a Gauss-Legendre grid of its cell."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(points))
    dim = x.shape[1]
    u = torch.cartesian_prod(*[(nodes + 1) / 2] * dim).reshape(-1, dim)
    w = torch.cartesian_prod(*[weights / 2] * dim).reshape(-1, dim).prod(1)
    noise, model.noise = model.noise, Given(u)
    with torch.no_grad():
        logs = torch.stack([model.elbo(one.expand_as(u)) for one in x])
    model.noise = noise
    return (logs.exp() @ w).log(), logs @ w


# The logit


@pytest.mark.parametrize("alpha", [1e-6, 0.05, 0.3])
@pytest.mark.parametrize("event_shape", [(3,), (2, 3, 2)])
def test_logit_is_scipys_and_its_log_dets_are_autograds(alpha, event_shape):
    layer, generator = Logit(alpha), torch.Generator().manual_seed(0)
    x = torch.rand(5, *event_shape, dtype=torch.float64, generator=generator)
    z, log_det = layer.inverse(x)
    np.testing.assert_allclose(z, special.logit(alpha + (1 - 2 * alpha) * x.numpy()), rtol=1e-12, atol=1e-12)
    back, log_det_back = layer(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-12, atol=1e-9)
    assert log_det_matches_autograd(layer.inverse, x)
    assert log_det_matches_autograd(layer, torch.randn(5, *event_shape, dtype=torch.float64, generator=generator))


def test_logit_at_the_ends():
    for alpha in (1e-6, 0.05):
        z, _ = Logit(alpha).inverse(torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64))
        end = math.log((1 - alpha) / alpha)
        torch.testing.assert_close(z[:, 0], torch.tensor([-end, 0, end], dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [1e-6, 0.05])
def test_logit_in_single_precision_is_right_next_to_both_ends(alpha):
    steps = 2.0 ** -torch.arange(1, 24)
    x = torch.cat([torch.zeros(1), steps, 1 - steps, torch.ones(1)])[:, None]
    layer = Logit(alpha)
    for got, right in zip(layer.inverse(x), layer.inverse(x.double()), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), right, rtol=1e-6, atol=1e-6)
    z = torch.linspace(-80, 80, 161)[:, None]
    _, log_det = layer(z)
    torch.testing.assert_close(log_det.double(), layer(z.double())[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [1e-6, 0.05, 0.3])
def test_density_through_the_logit_integrates_to_one(alpha):
    layer, beyond = Logit(alpha), alpha / (1 - 2 * alpha)

    def density(x):
        z, log_det = layer.inverse(torch.tensor([[x]], dtype=torch.float64))
        return stats.norm.pdf(z.item(), 0.3, 0.7) * math.exp(log_det.item())

    total, _ = integrate.quad(density, -beyond, 1 + beyond, epsabs=1e-12, epsrel=1e-10)
    assert abs(total - 1) < 1e-9


@pytest.mark.parametrize("alpha", [0, 0.5, -0.1, math.nan, "0.05", True])
def test_logit_refuses_an_alpha_that_means_nothing(alpha):
    with pytest.raises(ValueError, match="alpha must lie strictly between 0 and 1/2"):
        Logit(alpha)


@pytest.mark.parametrize("x", [-0.06, 1.06, math.nan])
def test_logit_refuses_what_it_never_gives(x):
    with pytest.raises(ValueError, match=r"strictly between -0.0555556 and 1.05556, got"):
        Logit(0.05).inverse(torch.tensor([[0.5, x]]))


# The bound, with every constant, on tiny alphabets


@pytest.mark.parametrize(("dim", "levels"), [(1, 2), (1, 5), (2, 2), (2, 4), (3, 3)])
@pytest.mark.parametrize("alpha", [0.05, 0.2, None])
def test_weights_average_to_the_exact_probability_and_their_logs_to_less(dim, levels, alpha):
    flow = Gaussian(dim, seed=dim + levels) if alpha else Gaussian(dim, seed=levels, centre=0.5, scale=0.3)
    model, x = Dequantised(flow, levels, alpha), all_states(dim, levels)
    log_mean, bound = over_the_noise(model, x, points=40 if dim < 3 else 24)
    right = exact(flow, levels, alpha)
    # SciPy integrates rectangles in three dimensions by quasi Monte Carlo, to 1e-8.
    torch.testing.assert_close(log_mean.exp(), right.exp(), rtol=0, atol=1e-10 if dim < 3 else 5e-8)
    assert (bound < right - 1e-6).all()
    assert right.logsumexp(0) < 0  # the rest is beyond the outermost cells

    elbo = torch.stack([model.elbo(x) for _ in range(500)])
    assert ((elbo.mean(0) - bound).abs() < 5 * elbo.std(0) / 500**0.5).all()
    few = x[:: max(1, len(x) // 5)]
    assert bound_below_exact(model.elbo, lambda _: right[:: max(1, len(x) // 5)], few)


@pytest.mark.parametrize("alpha", [1e-6, 0.05, 0.3, None])
@pytest.mark.parametrize("levels", [2, 32, 256])
def test_uniform_pixels_cost_the_logarithm_of_their_number_of_levels(alpha, levels):
    shape = (3, 4, 5)
    x = torch.randint(levels, (6, *shape)).double() / (levels - 1)
    bits = as_bits_per_dim(-Dequantised(OnTheUnitCube(shape, alpha), levels, alpha).elbo(x), shape)
    torch.testing.assert_close(bits, torch.full((6,), math.log2(levels), dtype=torch.float64), rtol=0, atol=1e-10)


def test_model_says_what_it_can_do():
    assert issubclass(Dequantised, Learner) and issubclass(Dequantised, Bound) and issubclass(Dequantised, Sampler)
    assert not issubclass(Dequantised, Density)


@pytest.mark.parametrize("noise", ["uniform", "variational"])
@pytest.mark.parametrize("dim", [1, 2])
def test_conformance(noise, dim):
    # With this α nothing lies beyond the outermost cells.
    model = Dequantised(Gaussian(dim, seed=1), 3, 1e-6, noise, hidden=4).double()
    if noise == "variational":
        unsettle(model.noise, 0.3)
    report = check(model, all_states(dim, 3), states=all_states(dim, 3)).raise_if_failed()
    assert not report.skipped and len(report.outcomes) == 7


@pytest.mark.parametrize("alpha", [0.05, None])
def test_what_lies_beyond_belongs_to_the_outermost_levels(alpha):
    flow = Gaussian(2, seed=3, scale=1.5) if alpha else Gaussian(2, seed=3, centre=0.4, scale=0.5)
    model, states = Dequantised(flow, 3, alpha), all_states(2, 3)
    everything = exact(flow, 3, alpha, beyond=True)
    assert abs(everything.exp().sum() - 1) < 1e-9 and exact(flow, 3, alpha).exp().sum() < 0.9
    assert sampler_agrees(model.sample, lambda _: everything, states=states)
    assert bound_below_exact(model.elbo, lambda _: everything, states)


def test_importance_bound_rises_to_the_exact_value():
    flow = Gaussian(2, seed=4, scale=0.6)
    for noise in ("uniform", "variational"):
        model, x = Dequantised(flow, 3, 0.05, noise).double(), all_states(2, 3)
        right = exact(flow, 3, 0.05)
        assert bound_monotone(model.importance_bound, x, (1, 3, 30), log_prob=lambda x, right=right: right)
        torch.manual_seed(0)
        weights = model.log_weights(x, 40_000)
        assert weights.shape == (40_000, 9) and weights.unique().numel() > 0.99 * weights.numel()
        mean, error = weights.exp().mean(0), weights.exp().std(0) / 200
        assert ((mean - right.exp()).abs() < 5 * error).all() and (error < 0.02 * mean).all()
        assert not model.importance_bound(x, 3).requires_grad


# Variational noise


def unsettle(noise, scale):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in noise.network[-1].parameters():
            parameter.normal_(std=scale)


@pytest.mark.parametrize("event_shape", [(3,), (2, 4, 5)])
def test_variational_noise_has_the_density_it_says(event_shape):
    noise = VariationalNoise(event_shape, 8).double()
    unsettle(noise, 0.5)
    x = torch.rand(1, *event_shape, dtype=torch.float64)
    with torch.no_grad():
        mean, log_scale = (t.numpy() for t in noise.network(x).chunk(2, 1))
        assert np.ptp(mean) > 0.1 and np.ptp(log_scale) > 0.1
        u, log_q = noise(x.expand(4000, *event_shape))
    assert u.shape == (4000, *event_shape) and log_q.shape == (4000,) and ((u > 0) & (u < 1)).all()
    # v is found from u again, which rounding allows only where u is not next to 1.
    clear = (u.flatten(1) < 1 - 1e-6).all(1)
    assert clear.double().mean() > 0.9
    v = special.logit(u.numpy())
    right = stats.logistic.logpdf(v, mean, np.exp(log_scale)) - np.log(u.numpy() * (1 - u.numpy()))
    np.testing.assert_allclose(log_q[clear], right.reshape(4000, -1).sum(1)[clear], rtol=1e-8, atol=1e-8)
    standard = ((v - mean) / np.exp(log_scale)).reshape(4000, -1)
    assert min(stats.kstest(column, "logistic").pvalue for column in standard.T) > 1e-4


def test_noise_starts_uniform():
    for noise in (UniformNoise(), VariationalNoise((2,)).double()):
        u, log_q = noise(torch.rand(20_000, 2, dtype=torch.float64))
        assert log_q.abs().max() < 1e-9
        assert min(stats.kstest(u[:, i].detach(), "uniform").pvalue for i in range(2)) > 1e-4
        assert stats.spearmanr(u.detach()).pvalue > 1e-4


def test_learned_noise_is_tighter_than_uniform_and_still_a_bound():
    flow = Gaussian(2, seed=6, scale=0.35)
    torch.manual_seed(0)
    model, x = Dequantised(flow, 3, 0.05, "variational", hidden=16).double(), all_states(2, 3)
    _, uniform = over_the_noise(model, x)
    right = exact(flow, 3, 0.05)
    optimiser = torch.optim.Adam(model.noise.parameters(), 0.02)
    for _ in range(400):
        optimiser.zero_grad()
        model.loss(x.repeat(10, 1)).value.mean().backward()
        optimiser.step()
    # In the order of the weights: (samples, states).
    draws = model.log_weights(x, 4000)
    mean, error = draws.mean(0), draws.std(0) / 4000**0.5
    assert (mean - right < 5 * error).all()
    assert (mean - uniform > -5 * error).all()
    assert (right - mean).mean() < 0.25 * (right - uniform).mean()
    assert normalised_in_expectation(lambda x, k: model.importance_bound(x, k) - right.logsumexp(0), x)


# Slips that are easily made


class Half(nn.Module):
    def forward(self, x):
        return torch.rand_like(x) / 2, x.new_zeros(len(x))


class Slip(nn.Module):
    """A model whose bound lacks a constant for each dimension."""

    def __init__(self, model, constant):
        super().__init__()
        self.model, self.constant = model, constant

    def importance_bound(self, x, samples):
        return self.model.importance_bound(x, samples) + self.constant * x[0].numel()


def test_each_forgotten_constant_is_noticed():
    alpha, levels, x = 0.2, 4, all_states(2, 4)
    model = Dequantised(Gaussian(2, seed=7, scale=0.3), levels, alpha)  # hardly anything beyond the cells
    assert normalised_in_expectation(model.importance_bound, x)
    for constant in (math.log(levels), math.log(levels / (levels - 1)), -math.log(1 - 2 * alpha)):
        assert not normalised_in_expectation(Slip(model, constant).importance_bound, x)
    # α left out of the value, but not of the log-det.
    model.logit.inverse = lambda y: (y.logit(), Logit(alpha).inverse(y)[1])
    assert not normalised_in_expectation(model.importance_bound, x)


def test_noise_of_half_the_width_is_wrong_by_a_bit_per_dimension():
    class Comb(OnTheUnitCube):
        def log_prob(self, y):
            return torch.where(y * 4 % 1 < 0.5, torch.tensor(2.0).double(), 0.0).log().sum(1)

    model, x = Dequantised(Comb((3,)), 4, None), all_states(3, 4)
    model.noise = Half()
    assert as_bits_per_dim(-model.elbo(x).mean(), (3,)).item() == pytest.approx(2 - 1, abs=1e-12)
    assert not bound_within_unit_mass(model.elbo, x)


# On images, with labels, and wrong input


def test_images_in_single_precision_and_what_is_learned():
    class Wide(nn.Module):
        event_shape = (1, 28, 28)

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def log_prob(self, x):
            return torch.distributions.Normal(-2.0, self.scale).log_prob(x).flatten(1).sum(1)

    x = load("mnist6k", "test").intensities()[:8]
    torch.manual_seed(0)
    model = Dequantised(Wide(), noise="variational", hidden=4)
    unsettle(model.noise, 0.1)
    loss = model.loss(x)
    assert loss.unit == "nats" and set(loss.parts) == {"flow", "change of variables", "noise"}
    torch.testing.assert_close(sum(loss.parts.values()), loss.value)
    loss.value.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [model.flow.scale, model.noise.network[0].weight])

    def seeded_elbo():
        torch.manual_seed(1)
        return model.elbo(x)

    plain = seeded_elbo()
    assert plain.requires_grad
    torch.manual_seed(1)
    assert torch.equal(plain, -model.loss(x).value)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(seeded_elbo(), plain)

    u, _ = model.noise(x)
    model.noise = Given(u.detach())
    single, double = model.elbo(x), model.elbo(x.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=2e-6, atol=0)


def test_logit_is_also_a_layer_of_a_flow():
    torch.manual_seed(0)
    inner = RealNVP((2,), couplings=2, hidden=(8,)).double()
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    as_part, x = Dequantised(inner, 3, 0.2), all_states(2, 3)
    as_layer = Dequantised(Flow((2,), [inner.layers, Logit(0.2)]).double(), 3, None)
    results = []
    for model in (as_part, as_layer):
        torch.manual_seed(1)
        results.append((model.elbo(x), model.sample(100)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    # All of the probability is in the cells, but for what the flow's own samples leave beyond them.
    log_mean, bound = over_the_noise(as_part, x)
    s = inner.sample(100_000).sigmoid()
    share = ((s > 0.2) & (s < 0.8)).all(1).double().mean()
    assert (bound < log_mean).all() and 0.1 < share < 0.9
    assert (log_mean.exp().sum() - share).abs() < 5 * (share * (1 - share) / 1e5) ** 0.5


def test_labels_and_options_reach_the_flow():
    flow = Gaussian(2, seed=8, scale=0.8, classes=3)
    model, x = Dequantised(flow, 3, 0.05), all_states(2, 3)
    assert model.classes == 3
    for label in range(3):
        labels = torch.full((9,), label)
        right = exact(flow, 3, 0.05, label=label)
        torch.manual_seed(0)
        weights = model.log_weights(x, 20_000, labels).exp()
        assert ((weights.mean(0) - right.exp()).abs() < 5 * weights.std(0) / 20_000**0.5).all()
        torch.manual_seed(0)
        one = model.elbo(x, labels)
        torch.manual_seed(0)
        assert torch.equal(one, -model.loss(x, labels).value)
        torch.manual_seed(0)
        assert torch.equal(one, model.importance_bound(x, 1, labels))
        everything = exact(flow, 3, 0.05, beyond=True, label=label)
        draws = lambda n, label=label: model.sample(n, label=torch.full((n,), label))  # noqa: E731
        assert sampler_agrees(draws, lambda _, right=everything: right, states=x)
    cold = model.sample(50, label=torch.zeros(50, dtype=torch.long), temperature=1e-9)
    assert (cold == cold[0]).all()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.tensor([[0, 255]]), TypeError, "floating dtype"),
        (
            torch.tensor([[0.0, 255.0]]),
            ValueError,
            "only the 256 levels k / 255 from 0 to 1, got 255; divide counts by",
        ),
        (torch.tensor([[0.0, 256.0]]), ValueError, "got 256"),
        (torch.tensor([[0.0, 7.3 / 255]]), ValueError, "got 0.0286275"),
        (torch.tensor([[0.0, 100 / 256]]), ValueError, "got 0.390625"),
        (torch.tensor([[0.0, -1 / 255]]), ValueError, "got -0.00392157"),
        (torch.tensor([[0.0, 256 / 255]]), ValueError, "got 1.00392"),
        (torch.tensor([[0.0, math.nan]]), ValueError, "finite"),
        (torch.zeros(1, 3), ValueError, "shape"),
    ],
)
def test_what_is_no_level_is_refused(x, error, message):
    model = Dequantised(Gaussian(2))
    for method in (model.elbo, model.loss, lambda x: model.importance_bound(x, 2)):
        with pytest.raises(error, match=message):
            method(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": 1}, r"levels must lie in 2\.\.256, got 1"),
        ({"levels": 257}, r"levels must lie in 2\.\.256, got 257"),
        ({"levels": 8.0}, "levels must be a positive integer"),
        ({"alpha": 0.0}, "alpha must lie strictly between"),
        ({"noise": "gaussian"}, "noise must be 'uniform' or 'variational', got 'gaussian'"),
        ({"noise": "variational", "hidden": 0}, "hidden must be a positive integer"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Dequantised(Gaussian(2), **arguments)


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match=r"event_shape must be \(dim,\) or"):
        VariationalNoise((2, 2))
    model = Dequantised(Gaussian(2))
    for wrong in (lambda: model.sample(0), lambda: model.importance_bound(torch.zeros(1, 2), 0)):
        with pytest.raises(ValueError, match="must be a positive integer"):
            wrong()


def test_every_level_of_every_alphabet_is_taken_in_single_precision():
    for levels in range(2, 257):
        x = (torch.arange(levels).float() / (levels - 1))[:, None]
        model = Dequantised(OnTheUnitCube((1,)), levels, None)
        assert torch.equal(model._level(x)[:, 0], torch.arange(levels).float())
