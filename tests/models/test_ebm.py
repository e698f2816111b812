"""Energy-based models against closed forms, autograd and quadrature: scores, Laplacians, normalisers, the game."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from companion.conformance import check, energy_matches_log_prob
from companion.data import density
from companion.models import answers
from companion.models.ebm import (
    EBM,
    AdversarialEBM,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    ScoreMatching,
    divergence,
    laplacian,
    log_normaliser,
    with_laplacian,
)
from companion.models.flows import NICE, RealNVP
from companion.models.questions import Density, Energy, Game, Learner, Sampler, Score
from companion.nets.energy import EnergyConvNet, EnergyMLP
from companion.training import Settings, fit


class Quadratic(nn.Module):
    """E(x) = ½ (x - μ)ᵀ A (x - μ), A symmetric."""

    def __init__(self, precision, mean):
        super().__init__()
        self.precision, self.mean = nn.Parameter(precision.clone()), nn.Parameter(mean.clone())

    def forward(self, x):
        centred = x - self.mean
        return 0.5 * ((centred @ ((self.precision + self.precision.T) / 2)) * centred).sum(1)


def gaussian(dim=2, seed=0):
    """A random mean, covariance and precision in float64."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, dtype=torch.float64, generator=g) / 2
    covariance = root @ root.T + 0.4 * torch.eye(dim, dtype=torch.float64)
    mean = torch.randn(dim, dtype=torch.float64, generator=g)
    return mean, covariance, torch.linalg.inv(covariance)


def random_mlp(dims=2, hidden=(8, 8), activation=nn.SiLU, seed=0, width=1.5):
    """An energy in float64 that is not nearly its bowl."""
    torch.manual_seed(seed)
    network = EnergyMLP(dims, hidden, activation, width).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    return network


def noise(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def parameters_of(energy, x, function):
    """The gradient of a function of the network's outputs for its parameters."""
    return torch.autograd.grad(function(energy, x), list(energy.parameters()))


# The model


def test_answers_the_questions_of_an_unnormalised_density():
    model = EBM(EnergyMLP(2), (2,), ScoreMatching())
    for question in (Learner, Sampler, Energy, Score):
        assert isinstance(model, question)
    assert not isinstance(model, Density)
    assert answers(EBM) == answers(AdversarialEBM) == ["loss", "sample", "energy", "score"]
    assert isinstance(AdversarialEBM(EnergyMLP(2), RealNVP((2,))), Game)


def test_energy_is_that_of_a_gaussian_and_the_score_its_gradient():
    mean, covariance, precision = gaussian(3)
    model = EBM(Quadratic(precision, mean), (3,), ScoreMatching())
    target = MultivariateNormal(mean, covariance)
    x = noise(7, 3)
    energy_matches_log_prob(model.energy, target.log_prob, x).raise_if_failed()
    torch.testing.assert_close(model.score(x), -(x - mean) @ precision)
    torch.testing.assert_close(model.unnormalised_log_prob(x), -model.energy(x), rtol=0, atol=0)


def test_passes_the_checks_for_any_model():
    for seed, network in enumerate((random_mlp(), random_mlp(activation=nn.Softplus))):
        check(EBM(network, (2,), ScoreMatching(), steps=5), noise(6, 2, seed=seed)).raise_if_failed()


def test_score_is_differentiable_unless_gradients_are_off():
    network = random_mlp()
    model, x = EBM(network, (2,), ScoreMatching()), noise(5, 2)
    with torch.no_grad():
        off = model.score(x)
    on = model.score(x)
    assert not off.requires_grad and on.requires_grad and not x.requires_grad
    torch.testing.assert_close(off, on)
    # In the parameters, and in x where it is asked for
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(on.square().sum(), list(network.parameters())[:3]))
    leaf = x.clone().requires_grad_()
    [column] = torch.autograd.grad(model.score(leaf)[:, 0].sum(), leaf)
    hessian = torch.func.vmap(torch.func.hessian(lambda v: network(v[None])[0]))(x)
    torch.testing.assert_close(column, -hessian[:, 0])


def test_energy_and_score_are_computed_without_autocast():
    model, x = EBM(EnergyMLP(2), (2,), ScoreMatching()), noise(9, 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.energy(x), model.score(x)
    exact = copy.deepcopy(model).double()
    for a, b in zip(inside, (exact.energy(x.double()), exact.score(x.double())), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adjusted", [True, False])
def test_samples_have_the_law_of_the_chain(adjusted):
    """MALA's is the model's; that of Langevin with E = λx²/2 has the variance 1/(λ (1 - ελ/4))."""
    mean, rate, step, n = torch.tensor([1.0, -0.5]).double(), torch.tensor([4.0, 1.0]).double(), 0.3, 20_000
    network = Quadratic(torch.diag(rate), mean)
    model = EBM(network, (2,), ScoreMatching(), step_size=step, steps=60, adjusted=adjusted)
    x = model.sample(n, torch.Generator().manual_seed(3))
    variance = 1 / rate if adjusted else 1 / (rate * (1 - step * rate / 4))
    assert x.shape == (n, 2) and not x.requires_grad
    assert ((x.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    assert ((x.var(0) - variance).abs() < 5 * variance * math.sqrt(2 / n)).all()
    assert torch.equal(x, model.sample(n, torch.Generator().manual_seed(3)))


def test_noise_is_uniform_in_the_box():
    model = EBM(EnergyMLP(2), (2,), ScoreMatching(), box=(-1.0, 3.0))
    x = model.noise(20_000, torch.Generator().manual_seed(0))
    assert x.min() >= -1 and x.max() <= 3
    assert ((x.mean(0) - 1).abs() < 5 * (4 / 12**0.5) / 20_000**0.5).all()
    assert ((x.var(0) - 16 / 12).abs() < 0.05).all()


def test_draws_where_and_in_what_precision_the_network_is():
    model = EBM(random_mlp(), (2,), ContrastiveDivergence(1, 0.1, "buffer", buffer_size=8))
    assert model.objective.buffer.dtype == model.sample(2).dtype == torch.float64
    assert model.float().sample(2).dtype == model.objective.buffer.dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 3), ValueError, r"x must have shape \(batch, 2\), got \(3, 3\)"),
        (torch.zeros(2), ValueError, r"x must have shape \(batch, 2\)"),
        (torch.zeros(3, 2).long(), TypeError, "x must have a floating dtype"),
        (torch.tensor([[0.0, math.nan]]), ValueError, "x must be finite, got 1 NaN"),
        ([[0.0, 0.0]], TypeError, "x must be a torch.Tensor"),
    ],
)
@pytest.mark.parametrize("method", ["energy", "score", "unnormalised_log_prob", "loss"])
def test_refuses_what_is_no_batch_of_events(method, x, error, message):
    with pytest.raises(error, match=message):
        getattr(EBM(EnergyMLP(2), (2,), DenoisingScoreMatching(0.1)), method)(x)


def test_refuses_arguments_that_mean_nothing():
    network, objective = EnergyMLP(2), ScoreMatching()
    with pytest.raises(ValueError, match="event_shape must have one size"):
        EBM(network, (), objective)
    with pytest.raises(ValueError, match=r"box must be \(low, high\)"):
        EBM(network, (2,), objective, box=(1.0, 1.0))
    with pytest.raises(ValueError, match="steps must be a positive integer"):
        EBM(network, (2,), objective, steps=0)
    with pytest.raises(ValueError, match="n must be a positive integer"):
        EBM(network, (2,), objective).sample(0)
    with pytest.raises(ValueError, match="step_size must be a positive"):
        EBM(network, (2,), objective, step_size=0.0).sample(1)


def test_refuses_a_network_that_does_not_answer_one_number_each():
    model = EBM(nn.Linear(2, 1), (2,), ContrastiveDivergence(1, 0.1))
    for method in (model.energy, model.score, model.loss):
        with pytest.raises(ValueError, match=r"network must map .* but made \(4, 1\) of \(4, 2\)"):
            method(torch.zeros(4, 2))


def test_a_lost_chain_is_an_error():
    mean, _, precision = gaussian()
    with pytest.raises(FloatingPointError, match="is lost at step"):
        EBM(Quadratic(100 * precision, mean), (2,), ScoreMatching(), step_size=10.0, adjusted=False).sample(3)


# The networks


def test_energy_mlp_is_a_network_in_a_bowl():
    network = random_mlp(3, (5, 4), nn.Tanh, width=1.5)
    x = noise(6, 3)
    h = x
    for layer in (0, 2):
        h = torch.tanh(h @ network.layers[layer].weight.T + network.layers[layer].bias)
    expected = (h @ network.layers[4].weight.T)[:, 0] + network.layers[4].bias + (x**2).sum(1) / (2 * 1.5**2)
    torch.testing.assert_close(network(x), expected)


def test_bowls_win_far_out():
    """∫ e^{-E} is finite: along a ray the energy grows as the square of the distance."""
    for network, x, radius in (
        (random_mlp(width=2.0), noise(20, 2), 1e4),
        (EnergyConvNet((1, 8, 8), 4, width=2.0).double(), noise(5, 1, 8, 8), 1e4),
    ):
        direction = x / x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
        scale = 1 if x.ndim == 2 else 2  # an image is taken to [-1, 1]
        ratio = network(radius * direction) / (scale * radius) ** 2
        torch.testing.assert_close(ratio, torch.full_like(ratio, 1 / 8), rtol=0.02, atol=0)


def test_conv_energy_is_of_each_image_alone_and_its_bowl_centred():
    torch.manual_seed(0)
    network, x = EnergyConvNet((2, 8, 12), 4, scale=3.0).double(), noise(5, 2, 8, 12)
    assert network(x).shape == (5,)
    torch.testing.assert_close(network(x)[3:4], network(x[3:4]))
    bowl = (2 * x - 1).square().sum((1, 2, 3)) / 32
    torch.testing.assert_close(network(x) - bowl, 3 * network.head(network.features(2 * x - 1))[:, 0])
    with torch.no_grad():
        network.head.weight.zero_(), network.head.bias.zero_()
    torch.testing.assert_close(network(x), bowl)


def test_conv_energy_keeps_its_digits_under_autocast():
    torch.manual_seed(0)
    network, x = EnergyConvNet((1, 28, 28), 8, width=0.5), torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        network.head.bias.fill_(200.3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = network(x)
    assert inside.dtype == torch.float32
    # The network's output and the bowl are hundreds here, which bfloat16 has to within 1 and 2.
    torch.testing.assert_close(inside.double(), network.double()(x.double()), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EnergyMLP(0), "dims must be a positive integer"),
        (lambda: EnergyMLP(2, ()), "hidden must be a sequence"),
        (lambda: EnergyMLP(2, width=0.0), "width must be above 0"),
        (lambda: EnergyConvNet((1, 9, 8)), "sides divisible by 4"),
        (lambda: EnergyConvNet((1, 8, 8), 0), "channels must be a positive integer"),
        (lambda: EnergyConvNet((1, 8, 8), width=math.inf), "width must be above 0 and finite"),
        (lambda: EnergyConvNet((1, 8, 8), scale=-1.0), "scale must be above 0 and finite"),
    ],
)
def test_networks_refuse_arguments_that_mean_nothing(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The Laplacian

ACTIVATIONS = {
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softplus, steep": lambda: nn.Softplus(beta=3.0, threshold=5.0),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def by_hessian(network, x):
    """Another route to the same three: torch.func, one example at a time."""

    def alone(v):
        return network(v[None])[0]

    hessian = torch.func.vmap(torch.func.hessian(alone))(x).reshape(len(x), x[0].numel(), x[0].numel())
    return network(x), torch.func.vmap(torch.func.grad(alone))(x), hessian.diagonal(dim1=1, dim2=2).sum(1)


def mix(three):
    """A number that depends on all of them, in different ways."""
    e, gradient, second = three
    return (e.sin() + gradient.flatten(1).square().sum(1) / 2 - second * e.cos()).sum()


@pytest.mark.parametrize("hidden", [(7,), (6, 5), (4, 6, 5)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_laplacian_is_autograds(activation, hidden, monkeypatch):
    network, x = random_mlp(3, hidden, ACTIVATIONS[activation]), 2 * noise(6, 3)
    expected = by_hessian(network, x)
    on = parameters_of(network, x, lambda net, x: mix(by_hessian(net, x)))
    monkeypatch.setattr(laplacian, "backward_laplacian", None)  # not by that way
    actual = with_laplacian(network, x)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(parameters_of(network, x, lambda net, x: mix(with_laplacian(net, x))), on, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_backward_laplacian_is_autograds():
    torch.manual_seed(0)
    for network, x in (
        (EnergyConvNet((1, 4, 4), 2).double(), noise(3, 1, 4, 4)),
        (random_mlp(3, (6, 5), nn.GELU), noise(6, 3)),
        (random_mlp(3, (6, 5)), noise(6, 3)),
    ):
        for a, b in zip(laplacian.backward_laplacian(network, x), by_hessian(network, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        actual = parameters_of(network, x, lambda net, x: mix(laplacian.backward_laplacian(net, x)))
        expected = parameters_of(network, x, lambda net, x: mix(by_hessian(net, x)))
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_laplacian_needs_no_gradients_switched_on():
    network, x = random_mlp(3, (6, 5), nn.GELU), noise(6, 3)
    expected = by_hessian(network, x)
    with torch.no_grad():
        for route in (laplacian.backward_laplacian, with_laplacian):
            for a, b in zip(route(network, x), expected, strict=True):
                torch.testing.assert_close(a, b)


def test_laplacians_of_energies_with_straight_directions():
    """Quadratic: the trace of A. Linear: exactly zero, which is no kink."""
    mean, _, precision = gaussian(3)
    _, gradient, second = with_laplacian(Quadratic(precision, mean), noise(4, 3))
    torch.testing.assert_close(second, precision.trace().expand(4))
    torch.testing.assert_close(gradient, (noise(4, 3) - mean) @ precision)

    class Linear(nn.Module):
        def forward(self, x):
            return x @ torch.arange(1.0, 4.0, dtype=x.dtype)

    _, gradient, second = with_laplacian(Linear(), noise(4, 3))
    assert gradient[0].tolist() == [1, 2, 3] and not second.any()


def test_forward_laplacian_takes_fewer_operations_than_a_jacobian():
    dims, network = 32, EnergyMLP(32, (128, 128))
    x = torch.randn(16, dims)

    class Counter(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function.overloadpacket in flop_registry:
                self.total += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=out)
            return out

    def operations(route):
        with Counter() as counter:
            _, gradient, second = route(network, x)
            (gradient.square().sum(1) / 2 - second).mean().backward()
        return counter.total

    forward, backward = operations(with_laplacian), operations(laplacian.backward_laplacian)
    assert forward < backward / 2
    # One product of a Jacobian and a square matrix and two for its gradient are most of it.
    assert forward < 1.5 * 3 * 2 * 16 * dims * 128 * 128


def test_energies_with_kinks_are_refused():
    for kinked in (nn.ReLU, nn.LeakyReLU, nn.Hardtanh):
        with pytest.raises(ValueError, match=rf"'layers.1' is {kinked.__name__}, whose slope jumps; use SiLU"):
            with_laplacian(random_mlp(activation=kinked), noise(4, 2))

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 1)

        def forward(self, x):
            return self.last(torch.relu(self.first(x))).squeeze(1)

    with pytest.raises(ValueError, match="piecewise linear"):
        with_laplacian(Hidden().double(), noise(20, 2))


# In the plane


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_log_normaliser_is_that_of_a_gaussian(seed):
    mean, covariance, precision = gaussian(seed=seed)
    network = Quadratic(precision, mean / 4)
    expected = math.log(2 * math.pi) + covariance.logdet().item() / 2
    assert log_normaliser(network, 9.0, dtype=torch.float64) == pytest.approx(expected, abs=1e-10)
    # By another rule, for an energy with no closed form
    other, axis = random_mlp(seed=seed), torch.linspace(-12, 12, 501, dtype=torch.float64)
    trapezoid = -other(torch.cartesian_prod(axis, axis))
    expected = trapezoid.logsumexp(0).item() + 2 * math.log(axis[1] - axis[0])
    assert log_normaliser(other, 12.0, dtype=torch.float64) == pytest.approx(expected, abs=1e-9)


def test_divergence_is_that_of_gaussians():
    mean, covariance, precision = gaussian()
    target = MultivariateNormal(mean / 4, covariance)
    other = torch.tensor([0.5, -0.2], dtype=torch.float64)
    found = divergence(Quadratic(precision * 1.5, other), target, 9.0, dtype=torch.float64)
    away = mean / 4 - other
    kl = 0.5 * (1.5 * 2 + 1.5 * away @ precision @ away - 2 - 2 * math.log(1.5))
    assert found.kl == pytest.approx(kl.item(), abs=1e-8)
    assert found.log_normaliser == pytest.approx(math.log(2 * math.pi / 1.5) + covariance.logdet().item() / 2, abs=1e-9)
    # Of two that differ in their means alone, at a distance δ: 2 Φ(δ/2) - 1 = erf(δ / √8)
    found = divergence(Quadratic(precision, other), target, 9.0, points=600, dtype=torch.float64)
    distance = (away @ precision @ away).sqrt().item()
    assert found.total_variation == pytest.approx(math.erf(distance / 8**0.5), abs=1e-4)


def test_divergence_is_zero_at_the_truth_and_sees_edges():
    for name in ("moons", "eight_gaussians", "rings"):
        target = density(name)
        found = divergence(lambda x, target=target: 3 - target.log_prob(x), target)
        assert abs(found.kl) < 1e-4 and found.total_variation < 1e-4
        assert found.log_normaliser == pytest.approx(-3, abs=1e-3)
    # Uniform on a disc of area A against the board of area 32 = half of 8 × 8, all of it inside: log(A / 32)
    board, radius = density("checkerboard"), 5.8
    found = divergence(lambda x: 50.0 * (x.norm(dim=1) > radius), board, 7.0, points=700)
    assert found.kl == pytest.approx(math.log(math.pi * radius**2 / 32), abs=2e-3)
    assert found.total_variation == pytest.approx(1 - 32 / (math.pi * radius**2), abs=2e-3)


def test_a_square_too_small_is_refused():
    mean, covariance, precision = gaussian()
    wide = Quadratic(precision / 100, mean)
    with pytest.raises(ValueError, match=r"reach must be larger: .* of the mass lies within a tenth of 6"):
        log_normaliser(wide, dtype=torch.float64)
    with pytest.raises(ValueError, match="target must have a mass of 1 in the square of reach 6, got 0"):
        divergence(Quadratic(precision, mean), MultivariateNormal(mean, 100 * covariance), dtype=torch.float64)
    with pytest.raises(ValueError, match="energy must be finite"):
        log_normaliser(lambda x: x[:, 0] / 0)
    for reach in (0.0, -1, math.inf, True):
        with pytest.raises(ValueError, match="reach must be above 0"):
            log_normaliser(wide, reach)
    with pytest.raises(ValueError, match="points must be a positive integer"):
        log_normaliser(wide, 6.0, 0)


# The game


def game(seed=0):
    """An energy in a narrow bowl, so that no draw of the flow has a large weight."""
    torch.manual_seed(seed)
    flow = RealNVP((2,), 3, (6,)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return AdversarialEBM(random_mlp(seed=seed, width=0.5), flow)


def in_plane(function, reach=9.0, points=600):
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    with torch.no_grad():
        return function(torch.cartesian_prod(axis, axis)), (axis[1] - axis[0]).item() ** 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_log_weights_bound_the_normaliser_by_the_divergence(seed):
    """E_q[log w] = log Z - KL(q‖p), both by quadrature, and log E_q[w] = log Z."""
    model = game(seed)
    log_z = log_normaliser(model.energy, 12.0, dtype=torch.float64)
    log_q, cell = in_plane(model.sampler.log_prob)
    energy, _ = in_plane(model.energy)
    q = log_q.exp() * cell
    assert q.sum().item() == pytest.approx(1, abs=1e-3)
    bound = (q * (-energy - log_q)).sum().item()
    kl = (q * (log_q + energy + log_z)).sum().item()
    n = 40_000
    weights = model.log_weights(n, torch.Generator().manual_seed(1))
    error = weights.std().item() / n**0.5
    assert abs(weights.mean().item() - bound) < 5 * error + 1e-3
    assert abs(weights.mean().item() - (log_z - kl)) < 5 * error + 1e-3
    assert bound < log_z - 1
    ratio = (weights - log_z).exp()
    assert abs(ratio.mean().item() - 1) < 5 * ratio.std().item() / n**0.5
    assert weights.shape == (n,) and not weights.requires_grad


def test_the_bound_is_exact_when_the_sampler_is_the_model():
    model = game()

    class Copy(nn.Module):
        def __init__(self, flow):
            super().__init__()
            self.flow = flow

        def forward(self, x):
            return 2.5 - self.flow.log_prob(x)

    exact = AdversarialEBM(Copy(model.sampler), model.sampler)
    torch.testing.assert_close(exact.log_weights(50), torch.full((50,), -2.5).double(), rtol=1e-9, atol=1e-9)


def test_the_players_losses_are_the_games():
    model, x = game(), noise(6, 2)
    torch.manual_seed(4)
    z = torch.randn(6, 2, dtype=torch.float64)
    fake = model.sampler.generate(z)[0].detach()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: model.sampler.layers(v[None])[0][0]))(z)
    log_q = Independent(Normal(torch.zeros(2).double(), 1.0), 1).log_prob(z) - jacobian.det().abs().log()
    torch.manual_seed(4)
    energy = model.energy_loss(x)
    torch.manual_seed(4)
    sampler = model.sampler_loss(x)
    torch.testing.assert_close(energy.value, model.energy(x) - model.energy(fake) - log_q)
    torch.testing.assert_close(sampler.value, model.energy(fake) + log_q)
    for loss in (energy, sampler):
        torch.testing.assert_close(loss.value, sum(loss.parts.values()))
        assert loss.value.shape == (6,) and loss.unit == "game value"


def test_each_player_moves_the_right_way():
    """The energy falls at the data and rises at the samples; the sampler's gradient goes through x̃ and log q."""
    model, x = game(), noise(6, 2)
    torch.manual_seed(4)
    fake = model.sample(6)
    expected = torch.autograd.grad(
        (model.energy(x) - model.energy(fake)).mean(), network := list(model.network.parameters())
    )
    torch.manual_seed(4)
    value = model.energy_loss(x).value.mean()
    assert torch.autograd.grad(value, list(model.sampler.parameters()), retain_graph=True, allow_unused=True) == (
        None,
    ) * len(list(model.sampler.parameters()))
    for a, b in zip(torch.autograd.grad(value, network), expected, strict=True):
        torch.testing.assert_close(a, b)
    # The sampler's, by finite differences along a random direction
    parameters = list(model.sampler.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def value_at(t):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, d in zip(moved.sampler.parameters(), direction, strict=True):
                p.add_(t * d)
        torch.manual_seed(5)
        return moved.sampler_loss(x).value.mean().item()

    torch.manual_seed(5)
    gradients = torch.autograd.grad(model.sampler_loss(x).value.mean(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
    assert slope == pytest.approx((value_at(1e-5) - value_at(-1e-5)) / 2e-5, rel=1e-5)


def test_players_are_the_two_networks():
    model = AdversarialEBM(random_mlp(), RealNVP((2,)), sampler_updates=3)
    players = model.players()
    assert list(players) == ["sampler", "energy"]
    assert [player.updates for player in players.values()] == [3, 1]
    for name, module in (("sampler", model.sampler), ("energy", model.network)):
        assert {id(p) for p in players[name].parameters} == {id(p) for p in module.parameters()}
    assert players["sampler"].loss == model.sampler_loss and players["energy"].loss == model.energy_loss


def test_the_game_finds_a_gaussians_precision():
    torch.manual_seed(0)
    mean, covariance, _ = (t.float() for t in gaussian())
    x = MultivariateNormal(mean, covariance).sample((4000,))
    model = AdversarialEBM(Quadratic(torch.eye(2), torch.zeros(2)), RealNVP((2,), 4, (32,)))
    settings = Settings(steps=400, batch_size=256, learning_rate=1e-2, ema_decay=0.98)
    fit(model, x, settings, progress=False)
    learned = (model.network.precision + model.network.precision.T).detach() / 2
    torch.testing.assert_close(learned, torch.linalg.inv(x.T.cov()), rtol=0.15, atol=0.15)
    torch.testing.assert_close(model.network.mean.detach(), x.mean(0), rtol=0, atol=0.1)
    samples = model.sample(4000)
    torch.testing.assert_close(samples.mean(0), x.mean(0), rtol=0, atol=0.15)


def test_the_game_refuses_samplers_without_a_gaussian_base():
    with pytest.raises(ValueError, match="sampler must have a Gaussian base and no classes, got base='logistic'"):
        AdversarialEBM(EnergyMLP(2), NICE((2,)))
    with pytest.raises(ValueError, match="classes=3"):
        AdversarialEBM(EnergyMLP(2), RealNVP((2,), classes=3))
    with pytest.raises(ValueError, match="sampler_updates must be a positive integer"):
        AdversarialEBM(EnergyMLP(2), RealNVP((2,)), 0)
    model = AdversarialEBM(EnergyMLP(2), RealNVP((2,)))
    for method in (model.energy, model.score, model.energy_loss, model.sampler_loss):
        with pytest.raises(ValueError, match=r"x must have shape \(batch, 2\)"):
            method(torch.zeros(3, 4))
    for method in (model.sample, model.log_weights):
        with pytest.raises(ValueError, match="n must be a positive integer"):
            method(0)
    wrong = AdversarialEBM(nn.Linear(2, 1), RealNVP((2,)))
    for method in (wrong.energy, wrong.energy_loss, wrong.sampler_loss):
        with pytest.raises(ValueError, match="network must map"):
            method(torch.zeros(3, 2))


def test_the_game_passes_the_checks_for_any_model():
    check(game(), noise(6, 2)).raise_if_failed()
