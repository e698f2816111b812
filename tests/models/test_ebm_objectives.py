"""The objectives of energy-based models by closed forms and quadrature: with minima at the truth, sign included."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from test_ebm import Quadratic, gaussian, in_plane, noise, random_mlp
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Uniform,
)

from companion.models import GaussianMixture
from companion.models.ebm import (
    EBM,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastive,
    ScoreMatching,
    SlicedScoreMatching,
    log_normaliser,
    objectives,
)
from companion.models.ebm.objectives import Objective
from companion.nets.energy import EnergyConvNet, EnergyMLP
from companion.samplers import langevin
from companion.training import Settings, fit


def ebm(objective, precision=None, mean=None, dim=2):
    """A Gaussian model, the standard one unless told otherwise."""
    precision = torch.eye(dim, dtype=torch.float64) if precision is None else precision
    mean = torch.zeros(dim, dtype=torch.float64) if mean is None else mean
    return EBM(Quadratic(precision, mean), (len(mean),), objective).double()


def hermite(dim, points):
    """Nodes (n, dim) and weights with E[f(ε)] = Σ weight f(node), ε ~ N(0, I), exact for polynomials."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    grid = torch.tensor(np.array(list(itertools.product(nodes, repeat=dim))))
    weights = torch.tensor(np.array(list(itertools.product(weights / weights.sum(), repeat=dim)))).prod(1)
    return grid, weights


def normal_nodes(mean, covariance, points=4):
    nodes, weights = hermite(len(mean), points)
    return mean + nodes @ torch.linalg.cholesky(covariance).T, weights


def gradient(model, value):
    """Of a number for A, made symmetric, μ, and log Z if there is one."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


class Nodes:
    """Noise whose draws are the nodes of a quadrature, each so many times."""

    def __init__(self, density, nodes, copies):
        self.density, self.nodes = density, nodes.repeat_interleave(copies, 0)

    def log_prob(self, x):
        return self.density.log_prob(x)

    def sample(self, n):
        assert n == len(self.nodes)
        return self.nodes


# The expected loss of each objective as a function of the model, without a random number.


def expected_score_matching(monkeypatch, mean, covariance):
    x, weights = normal_nodes(mean, covariance)
    return ScoreMatching(), lambda model: weights @ model.loss(x).value


def expected_sliced(variance_reduced):
    def make(monkeypatch, mean, covariance):
        dim = len(mean)
        x, weights = normal_nodes(mean, covariance)
        objective = SlicedScoreMatching(2**dim, variance_reduced)
        signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=dim))).double()
        monkeypatch.setattr(objective, "directions", lambda x: signs[:, None].expand(-1, len(x), -1))
        return objective, lambda model: weights @ model.loss(x).value

    return make


SIGMA = 0.6


def expected_denoising(monkeypatch, mean, covariance):
    dim = len(mean)
    x, weights = normal_nodes(mean, covariance, 3)
    epsilon, more = hermite(dim, 3)
    both = x.repeat_interleave(len(epsilon), 0)
    every = epsilon.repeat(len(x), 1)
    monkeypatch.setattr(torch, "randn_like", lambda _: every)
    return DenoisingScoreMatching(SIGMA), lambda model: torch.outer(weights, more).flatten() @ model.loss(both).value


def expected_noise_contrast(samples):
    def make(monkeypatch, mean, covariance):
        # log(1 + e^ℓ) is no polynomial: many nodes
        wide = 2 * covariance + 0.2 * torch.eye(len(mean))
        x, weights = normal_nodes(mean, covariance, 40)
        y, more = normal_nodes(mean + 0.3, wide, 40)
        objective = NoiseContrastive(Nodes(MultivariateNormal(mean + 0.3, wide), y, samples), samples)

        def expected(model):
            parts = model.loss(x).parts
            return weights @ parts["data"] + more @ parts["noise"]

        return objective, expected

    return make


def expected_contrastive_divergence(monkeypatch, mean, covariance):
    """With chains that have converged: the nodes of the model's own Gaussian. Its gradient is what counts."""
    x, weights = normal_nodes(mean, covariance)

    def converged(energy, start, *arguments, **options):
        network = energy.network
        precision = (network.precision + network.precision.T).detach() / 2
        chains = normal_nodes(network.mean.detach(), torch.linalg.inv(precision))[0]
        return type("Chains", (), {"last": chains})

    monkeypatch.setattr(objectives, "langevin", converged)
    return ContrastiveDivergence(1, 0.1), lambda model: weights @ model.loss(x).value


METHODS = {
    "score matching": expected_score_matching,
    "sliced": expected_sliced(False),
    "sliced, reduced": expected_sliced(True),
    "denoising": expected_denoising,
    "noise contrast": expected_noise_contrast(1),
    "noise contrast, three": expected_noise_contrast(3),
    "contrastive divergence": expected_contrastive_divergence,
}


def truth_of(name, mean, covariance):
    """The precision that a method finds: that of the data, or of the data with noise."""
    if name == "denoising":
        covariance = covariance + SIGMA**2 * torch.eye(len(mean), dtype=torch.float64)
    return torch.linalg.inv(covariance)


def at_truth(objective, precision, mean):
    model = ebm(objective, precision, mean)
    if isinstance(objective, NoiseContrastive):
        with torch.no_grad():
            objective.log_z.fill_(len(mean) * math.log(2 * math.pi) / 2 - precision.logdet() / 2)
    return model


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_gradient_vanishes_at_the_truth_and_nowhere_near(name, seed, monkeypatch):
    mean, covariance, _ = gaussian(seed=seed)
    precision = truth_of(name, mean, covariance)
    objective, expected = METHODS[name](monkeypatch, mean, covariance)
    model = at_truth(objective, precision, mean)
    zero = gradient(model, expected(model))
    # The quadrature of logarithms is good to 1e-6, all others are exact.
    tolerance = 1e-6 if "noise" in name else 1e-12
    for g in zero:
        torch.testing.assert_close(g, torch.zeros_like(g), rtol=0, atol=tolerance)
    # Away from it, minus the gradient leads back.
    parameters = list(model.parameters())
    shifts = [0.1 * noise(p.numel(), seed=seed).view_as(p) for p in parameters]
    shifts[[n for n, _ in model.named_parameters()].index("network.precision")] = 0.1 * precision
    with torch.no_grad():
        for p, shift in zip(parameters, shifts, strict=True):
            p.add_(shift)
    away = gradient(model, expected(model))
    assert sum((g * shift).sum() for g, shift in zip(away, shifts, strict=True)) > 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_a_gaussians_precision(name, monkeypatch):
    mean, covariance, _ = gaussian(seed=3)
    objective, expected = METHODS[name](monkeypatch, mean, covariance)
    model = ebm(objective)
    parameters = list(model.parameters())
    if name == "contrastive divergence":
        for _ in range(800):  # its value is no function of the model: follow its gradient
            downhill = gradient(model, expected(model))
            with torch.no_grad():
                for p, g in zip(parameters, downhill, strict=True):
                    p.sub_(0.2 * g)
    else:
        optimiser = torch.optim.LBFGS(parameters, max_iter=200, tolerance_grad=1e-11, line_search_fn="strong_wolfe")

        def closure():
            for p, g in zip(parameters, gradient(model, value := expected(model)), strict=True):
                p.grad = g
            return value

        optimiser.step(closure)
    found = model.network.precision.detach()
    precision = truth_of(name, mean, covariance)
    torch.testing.assert_close((found + found.T) / 2, precision, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.network.mean.detach(), mean, rtol=0, atol=1e-4)
    if isinstance(objective, NoiseContrastive):
        log_z = math.log(2 * math.pi) - precision.logdet().item() / 2
        assert objective.log_z.item() == pytest.approx(log_z, abs=1e-4)


# Score matching


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_score_matching_has_its_closed_form_for_gaussians(seed):
    """½ tr(A S A) - tr A with S = E[(x - μ)(x - μ)ᵀ], and -½ tr Σ⁻¹ at the truth."""
    mean, covariance, precision = gaussian(3, seed)
    x, weights = normal_nodes(mean, covariance)
    other, centre = gaussian(3, seed + 10)[2], noise(3, seed=seed)
    model = ebm(ScoreMatching(), other, centre)
    s = covariance + torch.outer(mean - centre, mean - centre)
    loss = model.loss(x)
    torch.testing.assert_close(weights @ loss.value, (other @ s @ other).trace() / 2 - other.trace())
    torch.testing.assert_close(weights @ loss.parts["squared score"], (other @ s @ other).trace() / 2)
    torch.testing.assert_close(loss.parts["divergence"], -other.trace().expand(len(x)))
    best = ebm(ScoreMatching(), precision, mean)
    torch.testing.assert_close(weights @ best.loss(x).value, -precision.trace() / 2)
    assert loss.unit == "Fisher divergence"


def mixture(scale=0.5, seed=0):
    """Three Gaussians in the plane."""
    g = torch.Generator().manual_seed(seed)
    means = 1.5 * torch.randn(3, 2, dtype=torch.float64, generator=g)
    weights = torch.rand(3, dtype=torch.float64, generator=g)
    return MixtureSameFamily(Categorical(weights), Independent(Normal(means, scale * torch.ones_like(means)), 1))


def score_of(density, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(density.log_prob(leaf).sum(), leaf)[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_implicit_score_matching_is_explicit_but_for_a_constant(seed):
    """½ E‖s - ∇ log p‖² = E[loss] + ½ E‖∇ log p‖², for mixtures and energies of a network, by the trapezoid rule."""
    p = mixture(seed=seed)
    log_p, cell = in_plane(p.log_prob, 8.0, 161)
    axis = torch.linspace(-8, 8, 161, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    weights, truth = log_p.exp() * cell, score_of(p, x)
    model = EBM(random_mlp(activation=nn.Softplus, seed=seed), (2,), ScoreMatching())
    with torch.no_grad():
        implicit = weights @ model.loss(x).value
        explicit = weights @ (model.score(x) - truth).square().sum(1) / 2
    torch.testing.assert_close(implicit + weights @ truth.square().sum(1) / 2, explicit, rtol=1e-9, atol=1e-9)
    # It says how far the model is: 0 at the truth alone
    assert explicit > 0.1


class Parabola(nn.Module):
    """E(x) = slope x + x²/2."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return (self.slope * x + x.square() / 2).squeeze(1)


@pytest.mark.parametrize("slope", [0.0, 0.7, -1.2])
def test_an_edge_of_the_data_breaks_the_identity(slope):
    """p = Exp(1) does not fall to zero at 0: a boundary term p(0) s(0) = -slope is left over."""
    nodes, weights = (torch.tensor(a) for a in np.polynomial.laguerre.laggauss(20))
    x = nodes[:, None]
    model = EBM(Parabola(slope), (1,), ScoreMatching())
    implicit = weights @ model.loss(x).value
    explicit = weights @ (model.score(x) - (-1)).square().squeeze(1) / 2
    torch.testing.assert_close(explicit - implicit - 1 / 2, torch.tensor(-slope).double())


def test_score_matching_of_images_takes_the_backward_way():
    torch.manual_seed(0)
    model = EBM(EnergyConvNet((1, 4, 4), 2).double(), (1, 4, 4), ScoreMatching())
    x = noise(3, 1, 4, 4)
    hessian = torch.func.vmap(torch.func.hessian(lambda v: model.network(v[None])[0]))(x).reshape(3, 16, 16)
    expected = model.score(x).flatten(1).square().sum(1) / 2 - hessian.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(model.loss(x).value, expected)


# Sliced


@pytest.mark.parametrize("reduced", [True, False])
def test_sliced_is_exact_over_an_orthonormal_basis(reduced, monkeypatch):
    """With v_j = √d e_j, (1/d) Σ v_j v_jᵀ = I."""
    basis = 3**0.5 * torch.linalg.qr(noise(3, 3))[0]
    objective, x = SlicedScoreMatching(3, reduced), noise(6, 3, seed=2)
    monkeypatch.setattr(objective, "directions", lambda x: basis[:, None].expand(-1, len(x), -1))
    network = random_mlp(3)
    sliced, exact = (EBM(network, (3,), o).loss(x) for o in (objective, ScoreMatching()))
    for name in ("squared score", "divergence"):
        torch.testing.assert_close(sliced.parts[name], exact.parts[name])
    torch.testing.assert_close(sliced.value, exact.value)


@pytest.mark.parametrize("reduced", [True, False])
def test_sliced_is_score_matching_in_expectation(reduced):
    torch.manual_seed(0)
    network, x, draws = random_mlp(3), noise(4, 3), 4000
    model = EBM(network, (3,), SlicedScoreMatching(1, reduced))
    exact = EBM(network, (3,), ScoreMatching()).loss(x).value
    values = model.loss(x.repeat(draws, 1)).value.view(draws, 4)
    error = values.std(0) / draws**0.5
    assert ((values.mean(0) - exact).abs() < 5 * error).all()
    # More projections in one loss are as many draws.
    many = EBM(network, (3,), SlicedScoreMatching(16, reduced)).loss(x.repeat(500, 1)).value.view(500, 4)
    torch.testing.assert_close(many.std(0), values.std(0) / 4, rtol=0.2, atol=1e-9)


def test_the_reduced_variant_draws_one_of_its_terms_only():
    torch.manual_seed(0)
    network, x = random_mlp(3), noise(1, 3).expand(4000, 3)
    for reduced, drawn in ((True, {"divergence"}), (False, {"squared score", "divergence"})):
        parts = EBM(network, (3,), SlicedScoreMatching(1, reduced)).loss(x).parts
        assert {name for name, part in parts.items() if part.std() > 1e-6} == drawn


def test_directions_are_independent_signs():
    torch.manual_seed(0)
    v = SlicedScoreMatching(4000).directions(torch.zeros(2, 3))
    assert v.shape == (4000, 2, 3) and set(v.unique().tolist()) == {-1.0, 1.0}
    second = torch.einsum("kbi,kbj->ij", v, v) / 8000
    torch.testing.assert_close(second, torch.eye(3), rtol=0, atol=5 / 8000**0.5)


# Denoising


def line_mixture(scale):
    means = torch.tensor([[-1.2], [0.9]]).double()
    parts = Independent(Normal(means, scale * torch.ones_like(means)), 1)
    return MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7]).double()), parts)


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0])
def test_denoising_is_score_matching_of_the_noised_data(sigma, monkeypatch):
    """E[loss] = ½ E‖s - ∇ log p_σ‖² + d/(2σ²) - ½ E‖∇ log p_σ‖², the means over p_σ, a mixture of wider Gaussians."""
    scale = 0.4
    p, noised = line_mixture(scale), line_mixture((scale**2 + sigma**2) ** 0.5)
    x = torch.linspace(-9, 9, 361, dtype=torch.float64)[:, None]
    step = x[1, 0] - x[0, 0]
    epsilon, more = hermite(1, 60)
    both, every = x.repeat_interleave(60, 0), epsilon.repeat(len(x), 1)
    monkeypatch.setattr(torch, "randn_like", lambda _: every)
    for seed in range(3):
        network = random_mlp(1, activation=nn.Softplus, seed=seed)
        denoising = EBM(network, (1,), DenoisingScoreMatching(sigma)).loss(both)
        model = EBM(network, (1,), ScoreMatching())
        left = torch.outer(p.log_prob(x).exp() * step, more).flatten() @ denoising.value
        weights, truth = noised.log_prob(x).exp() * step, score_of(noised, x)
        distance = weights @ (model.score(x) - truth).square().sum(1) / 2
        constant = 1 / (2 * sigma**2) - weights @ truth.square().sum(1) / 2
        torch.testing.assert_close(left, distance + constant, rtol=1e-8, atol=1e-8)
    assert denoising.unit == "Fisher divergence" and list(denoising.parts) == ["squared distance"]


def test_denoising_learns_the_noised_density_and_not_the_data(monkeypatch):
    mean, covariance, precision = gaussian()
    objective, expected = expected_denoising(monkeypatch, mean, covariance)
    data = ebm(objective, precision, mean)
    assert max(g.abs().max() for g in gradient(data, expected(data))) > 0.1


# Noise contrast


@pytest.mark.parametrize("samples", [1, 3])
def test_noise_contrast_is_the_published_one(samples):
    """Minus the summands of ln h(x) + Σ ln(1 - h(y)), h = 1/(1 + ν e^{-G}), G = ln p - ln p_n."""
    torch.manual_seed(0)
    mean, _, precision = gaussian()
    noise_density = MultivariateNormal(torch.zeros(2).double(), 2 * torch.eye(2).double())
    objective = NoiseContrastive(noise_density, samples)
    model, x = ebm(objective, precision, mean), noise(5, 2)
    with torch.no_grad():
        objective.log_z.fill_(0.7)
    torch.manual_seed(3)
    y = noise_density.sample((5 * samples,))
    torch.manual_seed(3)
    loss = model.loss(x)

    def h(u):
        ratio = (-model.energy(u) - 0.7 - noise_density.log_prob(u)).detach().numpy()
        return expit(ratio - np.log(samples))

    real, fake = -np.log(h(x)), -np.log(1 - h(y)).reshape(5, samples).sum(1)
    np.testing.assert_allclose(loss.parts["data"].detach(), real, rtol=1e-10)
    np.testing.assert_allclose(loss.parts["noise"].detach(), fake, rtol=1e-10)
    np.testing.assert_allclose(loss.value.detach(), real + fake, rtol=1e-10)
    assert loss.unit == "cross-entropy" and list(loss.parts) == ["data", "noise"]


def test_log_z_is_learned_with_the_network_and_the_noise_is_not():
    flow = GaussianMixture(2, 2)
    model = EBM(EnergyMLP(2, (4,)), (2,), NoiseContrastive(flow))
    names = [name for name, _ in model.named_parameters()]
    assert "objective.log_z" in names and not any("means" in name for name in names)
    model.loss(torch.randn(3, 2)).value.sum().backward()
    assert model.objective.log_z.grad is not None and flow.means.grad is None


def test_noise_contrast_recovers_log_z_of_a_network_by_training():
    """With an energy that is right but for its constant, log Z is all there is to learn."""
    torch.manual_seed(0)
    network = random_mlp()
    log_z = log_normaliser(network, 9.0, dtype=torch.float64)
    # Samples of the model by its masses on a fine grid
    log_masses, cell = in_plane(lambda x: -network(x))
    axis = torch.linspace(-9, 9, 600, dtype=torch.float64)
    drawn = torch.multinomial(log_masses.softmax(0), 50_000, replacement=True)
    x = torch.cartesian_prod(axis, axis)[drawn] + (torch.rand(50_000, 2) - 0.5) * cell**0.5
    wide = Independent(Normal(x.mean(0), 1.5 * x.std(0)), 1)
    model = EBM(network.requires_grad_(False), (2,), NoiseContrastive(wide))
    fit(model, x, Settings(steps=500, batch_size=500, learning_rate=0.1, ema_decay=0.99), progress=False)
    assert model.objective.log_z.item() == pytest.approx(log_z, abs=0.05)


def Normal2(scale):
    return Independent(Normal(torch.zeros(2), torch.tensor([scale, scale])), 1)


def test_noise_in_another_precision_is_converted():
    model, x = ebm(NoiseContrastive(Normal2(1.0), 2)), noise(4, 2)
    assert model.loss(x).value.dtype == torch.float64


@pytest.mark.parametrize(
    ("noise_density", "error", "message"),
    [
        (
            Independent(Normal(torch.zeros(3), 1.0), 1),
            ValueError,
            r"noise must draw events of shape \(2,\), got \(3,\)",
        ),
        (Normal(torch.zeros(2), 1.0), ValueError, r"noise must give each event one log-density, got \(2,\)"),
        (Independent(Uniform(torch.zeros(2), 0.1, validate_args=False), 1), ValueError, "noise must have a finite"),
        (torch.zeros(2), TypeError, r"noise must have log_prob\(x\) and sample\(n\), got Tensor"),
        (EBM(EnergyMLP(2), (2,), ScoreMatching()), TypeError, "noise must have log_prob.*, got EBM"),
    ],
)
def test_noise_without_a_density_of_the_data_is_refused(noise_density, error, message):
    with pytest.raises(error, match=message):
        EBM(EnergyMLP(2), (2,), NoiseContrastive(noise_density)).loss(torch.ones(4, 2))


# Contrastive divergence


def test_contrastive_divergence_with_converged_chains_has_the_likelihoods_gradient():
    """∇ -log p(x) by the exact normaliser against the loss's, its chains started at exact samples and kept there.

    Langevin chains have the law N(μ, diag 1/(λ(1 - ελ/4))): the gradient is held to that, to five standard errors.
    """
    torch.manual_seed(0)
    rate, step, n = torch.tensor([2.0, 0.5]).double(), 0.2, 20_000
    law = Normal(torch.tensor([0.4, -0.3]).double(), (rate * (1 - step * rate / 4)).rsqrt())
    model = ebm(ContrastiveDivergence(20, step), torch.diag(rate), law.loc)
    centre, covariance, _ = gaussian(seed=1)
    data = MultivariateNormal(centre, covariance)
    x = data.sample((n,))
    actual = gradient(model, model.loss(law.sample((n,))).value.mean())[0]
    # Both ends have the same law: nothing to learn.
    error = (2 * (law.variance / rate) ** 0.5 / n**0.5).max()
    assert (actual.abs() < 5 * error).all()
    # From data of another law, the phases the right way round: E_data[½(x-μ)(x-μ)ᵀ] - E_model[…]
    converged = ebm(ContrastiveDivergence(150, step), torch.diag(rate), law.loc)
    actual = gradient(converged, converged.loss(x).value.mean())
    away = centre - law.loc
    expected = (covariance + torch.outer(away, away) - torch.diag(law.variance)) / 2
    error = 3 * covariance.diagonal().max() / n**0.5
    assert ((actual[0] - expected).abs() < 5 * error).all()
    assert (expected.diagonal().abs() > 10 * error).all()
    # ∇_μ -log p = -A (E_data[x] - μ)
    assert ((actual[1] + rate * away).abs() < 5 * 3 * (covariance.diagonal().max() / n) ** 0.5).all()


def recorded(monkeypatch):
    """The arguments of the chains, which are real ones."""
    calls = []

    def spy(energy, x, step_size, steps, **options):
        calls.append({"energy": energy, "x": x.clone(), "step_size": step_size, "steps": steps} | options)
        calls[-1]["last"] = (chains := langevin(energy, x, step_size, steps, **options)).last
        return chains

    monkeypatch.setattr(objectives, "langevin", spy)
    return calls


def test_contrastive_divergence_is_the_difference_of_energies(monkeypatch):
    calls = recorded(monkeypatch)
    torch.manual_seed(0)
    network, x = random_mlp(), noise(6, 2)
    plain = EBM(network, (2,), ContrastiveDivergence(7, 0.03))
    loss = plain.loss(x)
    [call] = calls
    assert (call["energy"], call["step_size"], call["steps"], call["keep"]) == (plain, 0.03, 7, False)
    assert torch.equal(call["x"], x) and not call["last"].requires_grad
    data, fake = network(x), network(call["last"])
    torch.testing.assert_close(loss.parts, {"data": data, "samples": -fake})
    torch.testing.assert_close(loss.value, data - fake)
    assert loss.unit == "energy"
    expected = torch.autograd.grad((data - fake).mean(), list(network.parameters())[:-1])
    actual = torch.autograd.grad(loss.value.mean(), list(network.parameters())[:-1])
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    regular = EBM(network, (2,), ContrastiveDivergence(7, 0.03, regulariser=0.3)).loss(x)
    fake = network(calls[-1]["last"])
    torch.testing.assert_close(regular.parts["regulariser"], 0.3 * (data**2 + fake**2))
    torch.testing.assert_close(regular.value, data - fake + 0.3 * (data**2 + fake**2))


def test_chains_from_noise_start_in_the_box(monkeypatch):
    calls = recorded(monkeypatch)
    torch.manual_seed(0)
    model = EBM(random_mlp(), (2,), ContrastiveDivergence(1, 0.1, "noise"), box=(2.0, 3.0))
    for _ in range(2):
        model.loss(noise(500, 2))
    starts = [call["x"] for call in calls]
    assert all(2 <= s.min() and s.max() <= 3 and abs(s.mean() - 2.5) < 0.05 for s in starts)
    assert not torch.equal(*starts)


def buffered(reinit, size=40, box=(2.0, 3.0)):
    torch.manual_seed(0)
    return EBM(random_mlp(), (2,), ContrastiveDivergence(3, 0.1, "buffer", size, reinit), box=box)


def test_the_buffer_is_noise_at_first_and_then_keeps_the_chains(monkeypatch):
    calls, model = recorded(monkeypatch), buffered(0.0)
    before = model.objective.buffer.clone()
    assert before.shape == (40, 2) and 2 <= before.min() and before.max() <= 3 and len(before.unique()) == 80
    model.loss(noise(15, 2))
    after = model.objective.buffer.clone()
    start, last = calls[0]["x"], calls[0]["last"]
    # Fifteen different ones, and each chain goes back to where it came from.
    chosen = [(before == s).all(1).nonzero().item() for s in start]
    assert len(set(chosen)) == 15
    assert torch.equal(after[chosen], last)
    others = [i for i in range(40) if i not in chosen]
    assert torch.equal(after[others], before[others])
    # They go on from there.
    model.loss(noise(40, 2))
    start = calls[1]["x"]
    assert sorted(start[:, 0].tolist()) == sorted(after[:, 0].tolist())


def test_the_buffer_starts_anew_with_its_probability(monkeypatch):
    calls = recorded(monkeypatch)
    for reinit in (0.0, 0.3, 1.0):
        model = buffered(reinit, 20_000)
        old = model.objective.buffer.clone()
        torch.manual_seed(5)
        model.loss(noise(20_000, 2))
        start = calls[-1]["x"]
        kept = torch.isin(start[:, 0], old[:, 0])
        assert torch.equal(kept, torch.isin(start[:, 1], old[:, 1]))  # a chain as a whole
        fresh = 1 - kept.double().mean().item()
        assert abs(fresh - reinit) <= 5 * (reinit * (1 - reinit) / 20_000) ** 0.5
        assert 2 <= start.min() and start.max() <= 3


def test_the_buffer_is_left_alone_in_evaluation_and_is_in_the_state():
    model = buffered(0.0).eval()
    before = model.objective.buffer.clone()
    with torch.no_grad():
        assert model.loss(noise(10, 2)).value.isfinite().all()
    assert torch.equal(model.objective.buffer, before)
    model.train().loss(noise(10, 2))
    assert not torch.equal(model.objective.buffer, before)
    other = buffered(0.0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.objective.buffer, model.objective.buffer)
    assert "objective.buffer" in model.state_dict()
    assert "objective.buffer" not in EBM(EnergyMLP(2), (2,), ContrastiveDivergence(1, 0.1)).state_dict()


def test_a_training_with_a_buffer_goes_on_from_its_checkpoint(tmp_path):
    x = noise(50, 2).float()
    settings = Settings(steps=4, batch_size=8, log_every=1, checkpoint_every=2)

    def start():
        return buffered(0.2).float()

    whole = fit(start(), x, settings, progress=False)
    calls = itertools.count(1)

    def stops(n, generator):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return x[torch.randint(50, (n,), generator=generator)]

    with pytest.raises(KeyboardInterrupt):
        fit(start(), stops, settings, folder=tmp_path, progress=False)
    resumed = fit(start(), x, settings, folder=tmp_path, progress=False)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert resumed.history == whole.history


def test_the_buffer_refuses_larger_batches_and_other_models():
    model = buffered(0.0)
    with pytest.raises(ValueError, match="buffer_size must be at least the batch's 41, got 40"):
        model.loss(noise(41, 2))
    with pytest.raises(ValueError, match="chains of another model"):
        EBM(EnergyMLP(2), (2,), model.objective)


def test_lost_chains_stop_the_training():
    mean, _, precision = gaussian()
    model = ebm(ContrastiveDivergence(200, 5.0), 10 * precision, mean)
    with pytest.raises(FloatingPointError, match=r"chain \d+ is lost at step \d+ with step size 5"):
        model.loss(noise(4, 2))


def test_persistent_chains_find_a_gaussians_precision():
    torch.manual_seed(0)
    mean, covariance, _ = (t.float() for t in gaussian())
    x = MultivariateNormal(mean, covariance).sample((4000,))
    network = Quadratic(torch.eye(2), torch.zeros(2))
    model = EBM(network, (2,), ContrastiveDivergence(5, 0.1, "buffer", 1000, 0.0))
    settings = Settings(steps=400, batch_size=500, learning_rate=0.02, ema_decay=0.98)
    fit(model, x, settings, progress=False)
    learned = (network.precision + network.precision.T).detach() / 2
    # The chains' law is wider than e^{-E} by 1/(1 - ελ/4), which learning makes up for.
    torch.testing.assert_close(learned, torch.linalg.inv(x.T.cov()), rtol=0.1, atol=0.1)
    torch.testing.assert_close(network.mean.detach(), x.mean(0), rtol=0, atol=0.1)


# All of them

ALL = {
    "contrastive divergence": lambda: ContrastiveDivergence(3, 0.05),
    "persistent": lambda: ContrastiveDivergence(3, 0.05, "buffer", 100, regulariser=0.1),
    "noise contrast": lambda: NoiseContrastive(Normal2(2.0), 2),
    "score matching": ScoreMatching,
    "sliced": lambda: SlicedScoreMatching(2),
    "denoising": lambda: DenoisingScoreMatching(0.3),
}


@pytest.mark.parametrize("name", ALL)
def test_every_objective_is_a_sum_of_parts_for_each_example(name):
    torch.manual_seed(0)
    objective = ALL[name]()
    assert isinstance(objective, Objective)
    model, x = EBM(EnergyMLP(2, (8, 8)), (2,), objective), torch.randn(5, 2)
    for switch in (torch.enable_grad, torch.no_grad):
        with switch():
            loss = model.loss(x)
        assert loss.value.shape == (5,) and loss.value.isfinite().all() and loss.unit != "nats"
        torch.testing.assert_close(sum(loss.parts.values()), loss.value)
        assert all(part.shape == (5,) for part in loss.parts.values())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x)
    assert loss.value.dtype == torch.float32


@pytest.mark.parametrize("name", ["score matching", "sliced", "denoising"])
def test_derivatives_are_computed_without_autocast(name):
    torch.manual_seed(0)
    model, x = EBM(EnergyMLP(2, (8, 8)), (2,), ALL[name]()), torch.randn(5, 2)
    torch.manual_seed(1)
    outside = model.loss(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.loss(x)
    torch.testing.assert_close(inside.value, outside.value, rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_every_objective_trains_and_validates(name):
    torch.manual_seed(0)
    x = torch.randn(60, 2)
    model = EBM(EnergyMLP(2, (8,)), (2,), ALL[name]())
    for mixed_precision in ("no", "bf16"):
        settings = Settings(steps=3, batch_size=16, validate_every=3, mixed_precision=mixed_precision)
        assert math.isfinite(fit(model, x, settings, validation=x, progress=False).history[-1]["validation"])


@pytest.mark.parametrize("name", ["score matching", "sliced"])
def test_score_matching_refuses_kinks_and_the_others_do_not(name):
    model = EBM(EnergyMLP(2, (8,), nn.ReLU), (2,), ALL[name]())
    with pytest.raises(ValueError, match=r"'layers.1' is ReLU, whose slope jumps; use SiLU or softplus"):
        model.loss(torch.randn(5, 2))

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 1)

        def forward(self, x):
            return self.last(torch.relu(self.first(x))).squeeze(1)

    with pytest.raises(ValueError, match="piecewise linear"):
        EBM(Hidden(), (2,), ALL[name]()).loss(torch.randn(20, 2))
    for other in ("contrastive divergence", "noise contrast", "denoising"):
        assert EBM(EnergyMLP(2, (8,), nn.ReLU), (2,), ALL[other]()).loss(torch.randn(5, 2)).value.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveDivergence(0, 0.1), "steps must be a positive integer, got 0"),
        (lambda: ContrastiveDivergence(1, 0.0), "step_size must be above 0 and finite, got 0.0"),
        (lambda: ContrastiveDivergence(1, math.inf), "step_size must be above 0 and finite, got inf"),
        (lambda: ContrastiveDivergence(1, 0.1, "chain"), "start must be one of 'data', 'buffer', 'noise', got 'chain'"),
        (lambda: ContrastiveDivergence(1, 0.1, "buffer", 0), "buffer_size must be a positive integer"),
        (lambda: ContrastiveDivergence(1, 0.1, "buffer", 9, 1.1), "reinit must be at least 0 and at most 1, got 1.1"),
        (lambda: ContrastiveDivergence(1, 0.1, regulariser=-1.0), "regulariser must be at least 0 and finite"),
        (lambda: NoiseContrastive(Normal2(1.0), 0), "samples must be a positive integer"),
        (lambda: SlicedScoreMatching(0), "projections must be a positive integer"),
        (lambda: DenoisingScoreMatching(0.0), "sigma must be above 0 and finite, got 0.0"),
        (lambda: DenoisingScoreMatching(-0.1), "sigma must be above 0"),
        (lambda: DenoisingScoreMatching(math.nan), "sigma must be above 0"),
        (lambda: DenoisingScoreMatching(True), "sigma must be above 0"),
    ],
)
def test_refuses_arguments_that_mean_nothing(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ALL)
def test_everything_runs_on_a_gpu(name):
    """Noise, chains and buffer are drawn where the model is; the noise of the contrast stays where it was."""
    x = torch.randn(60, 2)
    model = EBM(EnergyMLP(2, (8,)), (2,), ALL[name](), steps=5).to("cuda")
    for mixed_precision in ("no", "bf16"):
        fit(model, x, Settings(steps=3, batch_size=16, mixed_precision=mixed_precision), device="cuda", progress=False)
    generator = torch.Generator("cuda").manual_seed(0)
    assert model.sample(3, generator).device.type == model.score(x.cuda()).device.type == "cuda"
    assert math.isfinite(log_normaliser(model.energy, 16.0, 100, device="cuda"))
