"""The variational diffusion model against Gaussians in closed form, explicit conditionals, autograd and quadrature."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, special, stats
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from companion.conformance import check
from companion.data import density
from companion.models.ddpm import VDM
from companion.models.ddpm.vdm import Rising, log_softmax_of_levels
from companion.models.questions import Bound, Code, Density, Energy, Learner, Sampler, Score
from companion.nets.fourier import Fourier
from companion.nets.time_mlp import TimeMLP
from companion.nets.unet import UNet
from companion.samplers import diffusion
from companion.training import Settings, fit

ENDS = (-6.0, 4.0)
COVARIANCE = np.array([[1.3, 0.5], [0.5, 0.4]])
SIGNS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)


class Exact(nn.Module):
    """E[ε|z_t] for the data N(0, C), which knows of the schedule only its ends."""

    def __init__(self, covariance=COVARIANCE, ends=ENDS):
        super().__init__()
        self.covariance, self.ends, self.times = torch.as_tensor(covariance), ends, []

    def forward(self, z, time):
        self.times.append(time.detach())
        gamma = self.ends[0] + (self.ends[1] - self.ends[0]) * time[:, None, None] / 1000
        a2, s2 = 1 / (1 + gamma.exp()), 1 / (1 + (-gamma).exp())
        total = a2 * self.covariance + s2 * torch.eye(len(self.covariance), dtype=z.dtype)
        return (s2.sqrt() * torch.linalg.solve(total, z[..., None]))[..., 0]


def exact_model(schedule="learned", seed=None, covariance=COVARIANCE, ends=ENDS):
    """In float64; with a seed, γ is curved at random."""
    model = VDM(Exact(covariance, ends), (len(covariance),), ends, schedule).double()
    if schedule == "learned":
        model.inside = Rising(30).double()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.inside.parameters():
            parameter.data += 3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def exact_draws(monkeypatch):
    """In place of draws of ε for two coordinates, four that have the mean and covariance of N(0, I) exactly, again and
    again along the batch; and for a uniform number its mean."""

    def normal_(self, generator=None):
        return self.copy_(SIGNS.repeat(len(self) // 4, 1))

    monkeypatch.setattr(torch.Tensor, "normal_", normal_)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, generator=None: self.fill_(0.5))


def expected_elbo(model, x, **arguments):
    """E of `elbo` for each row of x, under `exact_draws`: ‖ε - ε̂‖² is quadratic in ε where ε̂ is linear."""
    return model.elbo(x.repeat_interleave(4, 0), **arguments).reshape(-1, 4).mean(1).numpy()


X = torch.tensor([[0.3, -0.2], [1.5, 0.1], [-2.0, -1.0]], dtype=torch.float64)


def signal2(gamma):
    return special.expit(-gamma)


def expected_log(mean, variance, at, covariance):
    """E log N(y; `at`, C) for y ~ N(mean, V)."""
    log = stats.multivariate_normal(at, covariance).logpdf(mean)
    return log - np.trace(np.linalg.solve(covariance, variance)) / 2


# The schedule


@pytest.mark.parametrize("seed", range(3))
def test_the_inside_rises_from_zero_to_one_whatever_its_weights(seed):
    torch.manual_seed(seed)
    inside = Rising(30).double()
    for parameter in inside.parameters():
        nn.init.normal_(parameter, std=4)
    t = torch.linspace(0, 1, 500, dtype=torch.float64, requires_grad=True)
    m, slope = inside(t)
    np.testing.assert_allclose(slope.detach(), torch.autograd.grad(m.sum(), t)[0], rtol=1e-11)
    m, slope, t = m.detach(), slope.detach(), t.detach()
    assert m[0] == pytest.approx(0, abs=1e-14) and m[-1] == pytest.approx(1, abs=1e-14)
    assert (m.diff() > 0).all() and (slope > 0).all()
    assert (m - t).abs().max() > 0.01


def test_gamma_goes_from_end_to_end():
    t = torch.linspace(0, 1, 101)
    learned, fixed = (VDM(TimeMLP(2), (2,), (-7.0, 3.0), schedule) for schedule in ("learned", "fixed"))
    for model in (learned, fixed):
        gamma, slope = model.gamma(t)
        assert gamma[0].item() == pytest.approx(-7, abs=1e-5) and gamma[-1].item() == pytest.approx(3, abs=1e-5)
        assert integrate.trapezoid(slope.detach(), t) == pytest.approx(10, rel=1e-4)
    np.testing.assert_allclose(fixed.gamma(t)[0].detach(), -7 + 10 * t, atol=1e-5)
    # At the start the learned one is close to it.
    assert (learned.gamma(t)[0] - fixed.gamma(t)[0]).abs().max() < 0.5
    assert {name for name, p in fixed.named_parameters() if p.requires_grad} == {
        f"network.{name}" for name, _ in fixed.network.named_parameters()
    }
    assert torch.equal(fixed.ends, torch.tensor([-7.0, 3.0])) and "ends" in fixed.state_dict()
    assert learned.ends.requires_grad and len(list(learned.inside.parameters())) == 5


def test_what_the_parameters_learn_from():
    """The inside from ℓ², ℓ an example's part of the integral; the ends and the network from the loss itself."""
    torch.manual_seed(0)
    model = VDM(TimeMLP(2, 16), (2,), (-3.0, 2.0)).double()
    nn.init.normal_(model.network.last.weight)
    model.inside = Rising(20).double()
    x = torch.randn(7, 2, dtype=torch.float64)
    torch.manual_seed(1)
    model.loss(x).value.mean().backward()

    torch.manual_seed(1)
    start = torch.rand(1, dtype=x.dtype)
    eps = torch.empty_like(x).normal_()
    t = (start + torch.arange(7, dtype=x.dtype) / 7).fmod(1)
    gamma, slope = model.gamma(t)
    low, high = model.ends
    z = torch.sigmoid(-gamma).sqrt()[:, None] * x + torch.sigmoid(gamma).sqrt()[:, None] * eps
    answer = model.network(z, 1000 * (gamma - low) / (high - low))
    ell = 0.5 * slope * ((eps - answer) ** 2).sum(1)
    last = Normal(torch.sigmoid(-high).sqrt() * x, torch.sigmoid(high).sqrt())
    prior = kl_divergence(last, Normal(0.0, 1.0)).sum(1)
    whole = (ell + prior + 1 + math.log(2 * math.pi) + low).mean()
    of_bound = dict(zip(names := [n for n, _ in model.named_parameters()], gradients(whole, model), strict=True))
    of_square = dict(zip(names, gradients((ell**2).mean(), model), strict=True))
    for name, parameter in model.named_parameters():
        expected = of_square[name] if name.startswith("inside") else of_bound[name]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-11)
        if name.startswith(("inside", "ends")):
            assert (of_square[name] - of_bound[name]).abs().max() > 1e-3 * of_bound[name].abs().max()


def gradients(value, model):
    return torch.autograd.grad(value, list(model.parameters()), retain_graph=True)


def test_the_inside_learns_the_least_variance():
    """For N(0, c) and the exact ε̂, E ℓ² = ¾ ∫ γ' (c/(c + e^γ))² dγ, which is least where γ' ∝ (c + e^γ)/c."""
    c, ends = 0.5, (-6.0, 3.0)
    model = exact_model(covariance=np.array([[c]]), ends=ends)
    model.ends.requires_grad_(False)

    def second_moment():
        t = torch.linspace(0, 1, 2001, dtype=torch.float64)
        gamma, slope = (v.detach().numpy() for v in model.gamma(t))
        return integrate.trapezoid(0.75 * slope**2 * (c / (c + np.exp(gamma))) ** 2, t)

    least = 0.75 * integrate.quad(lambda g: c / (c + np.exp(g)), *ends)[0] ** 2
    before = second_moment()
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(model.inside.parameters(), 0.02)
    for _ in range(400):
        optimiser.zero_grad()
        model.loss(math.sqrt(c) * torch.randn(300, 1, dtype=torch.float64)).value.mean().backward()
        optimiser.step()
    after = second_moment()
    assert before > 1.35 * least and least < after < 1.08 * least


# The bound, exactly


def test_the_bound_of_a_chain_is_that_of_its_conditionals(monkeypatch):
    """By Gaussian conditioning of explicit joints, and KL divergences as torch has them."""
    exact_draws(monkeypatch)
    model = exact_model(seed=3)
    identity = np.eye(2)
    for steps in (1, 2, 5, 13):
        gamma = model.gamma(torch.linspace(0, 1, steps + 1, dtype=torch.float64))[0].detach().numpy()
        expected = []
        for x in X.numpy():
            a1, s1 = math.sqrt(signal2(gamma[-1])), math.sqrt(signal2(-gamma[-1]))
            first = MultivariateNormal(torch.from_numpy(a1 * x), s1**2 * torch.eye(2, dtype=torch.float64))
            total = -kl_divergence(first, MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())).item()
            for g_s, g_t in pairwise(gamma):
                # z_t = α z_s + noise: the joint of the two given x, and of the model's own with E[x|z_t] in place of x.
                a_s, a_t, v_s, v_t = math.sqrt(signal2(g_s)), math.sqrt(signal2(g_t)), signal2(-g_s), signal2(-g_t)
                cross = (a_t / a_s) * v_s
                variance = v_s - cross**2 / v_t
                of_x = a_s - cross / v_t * a_t
                guess = a_t * COVARIANCE @ np.linalg.inv(a_t**2 * COVARIANCE + v_t * identity)
                # Means differ by of_x (x - guess z_t), z_t ~ N(a_t x, v_t).
                away = of_x * (identity - a_t * guess) @ x
                spread = of_x**2 * v_t * guess @ guess.T
                total -= (away @ away + np.trace(spread)) / (2 * variance)
            width = signal2(-gamma[0]) / signal2(gamma[0])
            expected.append(total + expected_log(x, width * identity, x, width * identity))
        np.testing.assert_allclose(expected_elbo(model, X, steps=steps, terms=None), expected, rtol=1e-10)


def test_the_bound_of_continuous_time_is_the_log_density_less_its_gap(monkeypatch):
    """With the exact ε̂ time runs back through q itself: what is left is N(0, I) for q(z_1), and the decoder for
    q(x|z_0). Whatever the schedule between its ends."""
    exact_draws(monkeypatch)
    a2, s2 = signal2(np.array(ENDS)), signal2(-np.array(ENDS))
    identity, expected = np.eye(2), []
    marginal = [a2[i] * COVARIANCE + s2[i] * identity for i in (0, 1)]
    for x in X.numpy():
        at_end = expected_log(math.sqrt(a2[1]) * x, s2[1] * identity, np.zeros(2), marginal[1]) - expected_log(
            math.sqrt(a2[1]) * x, s2[1] * identity, np.zeros(2), identity
        )
        # q(x|z_0) = p(x) q(z_0|x)/q(z_0), in expectation under q(z_0|x).
        prior = stats.multivariate_normal(np.zeros(2), COVARIANCE).logpdf(x)
        at_start = (
            prior
            + expected_log(math.sqrt(a2[0]) * x, s2[0] * identity, math.sqrt(a2[0]) * x, s2[0] * identity)
            - expected_log(math.sqrt(a2[0]) * x, s2[0] * identity, np.zeros(2), marginal[0])
        )
        decoder = expected_log(x, s2[0] / a2[0] * identity, x, s2[0] / a2[0] * identity)
        expected.append(prior - at_end - (at_start - decoder))
        assert expected[-1] < prior - 1e-3
    models = [exact_model("fixed"), exact_model(), exact_model(seed=3), exact_model(seed=4)]
    for model in models:
        np.testing.assert_allclose(expected_elbo(model, X, terms=1000), expected, atol=2e-5)
    # The midpoint rule is of second order.
    errors = [np.abs(expected_elbo(models[0], X, terms=n) - expected).max() for n in (50, 100)]
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.02)
    # In discrete time it does depend on what is between.
    few = [expected_elbo(model, X, steps=4) for model in models]
    assert min(np.abs(few[i] - few[j]).max() for i in range(4) for j in range(i)) > 0.01


def test_more_steps_give_a_better_bound(monkeypatch):
    """L_T ≥ L_2T ≥ … ≥ L_∞ over the data, whose part in the bound is quadratic, too."""
    exact_draws(monkeypatch)
    x = SIGNS @ torch.from_numpy(np.linalg.cholesky(COVARIANCE)).T
    for model in (exact_model("fixed"), exact_model(seed=3)):
        bounds = [expected_elbo(model, x, steps=2**k, terms=None).mean() for k in range(9)]
        bounds.append(expected_elbo(model, x, terms=1000).mean())
        assert (np.diff(bounds) > 0).all()
        entropy = (2 * math.log(2 * math.pi * math.e) + np.linalg.slogdet(COVARIANCE)[1]) / 2
        assert bounds[-1] < -entropy < bounds[-1] + 0.02
        # The last halves of the gap are those of a rule of first order.
        assert (bounds[-1] - bounds[-3]) / (bounds[-1] - bounds[-2]) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("steps", [None, 20])
def test_terms_are_drawn_without_bias_one_from_each_part(steps, monkeypatch):
    model = exact_model(seed=3)
    x = X[1:2].expand(20_000, -1)
    got = model.elbo(x, steps, terms=3, generator=torch.Generator().manual_seed(0))
    times = torch.stack(model.network.times) / 1000
    assert times.shape == (3, 20_000)
    t = torch.linspace(0, 1, 20 + 1, dtype=torch.float64)
    if steps is None:
        # As γ rises, the thirds of time are those of m.
        edges = model.inside(torch.arange(4).double() / 3)[0]
        for part in range(3):
            assert edges[part] - 1e-9 <= times[part].min() < edges[part] + 0.01
            assert edges[part + 1] - 0.01 < times[part].max() <= edges[part + 1] + 1e-9
    else:
        of_steps = model.inside(t[1:])[0]
        for part, allowed in enumerate((of_steps[:7], of_steps[6:14], of_steps[13:])):
            seen = times[part].unique()
            assert len(seen) == len(allowed) and torch.allclose(seen, allowed)
    assert (times[0] != times[0, 0]).any()
    with monkeypatch.context() as patch:
        exact_draws(patch)
        expected = expected_elbo(model, X[1:2], steps=steps, terms=1000)[0]
    assert abs(got.mean() - expected) < 5 * got.std() / math.sqrt(len(got))
    assert got.std() > 0.1


def test_all_terms_are_the_steps_each_once():
    for steps, terms in ((7, None), (7, 7), (7, 9), (641, None)):
        model = exact_model("fixed")
        model.elbo(X, steps, terms)
        times = torch.stack(model.network.times)
        np.testing.assert_allclose(times, np.repeat(np.arange(1, steps + 1)[:, None] * 1000 / steps, 3, 1), rtol=1e-12)


# The loss


def test_the_loss_is_minus_the_bound(monkeypatch):
    model, n = exact_model(seed=3), 40_000
    torch.manual_seed(0)
    loss = model.loss(X[1:2].expand(n, -1))
    assert loss.unit == "nats" and loss.value.shape == (n,)
    torch.testing.assert_close(loss.value, sum(loss.parts.values()))
    with monkeypatch.context() as patch:
        exact_draws(patch)
        expected = -expected_elbo(model, X[1:2], terms=1000)[0]
    value = loss.value.detach()
    assert abs(value.mean() - expected) < 5 * value.std() / math.sqrt(n)
    a, s = math.sqrt(signal2(4.0)), math.sqrt(signal2(-4.0))
    prior = kl_divergence(Normal(a * X[1], s), Normal(0.0, 1.0)).sum()
    assert loss.parts["prior"][0].item() == pytest.approx(prior.item(), rel=1e-9)
    # E log N(x; z_0/a_0, s_0²/a_0²), of draws of z_0.
    a, s = math.sqrt(signal2(-6.0)), math.sqrt(signal2(6.0))
    z = a * X[1] + s * torch.randn(n, 2, dtype=torch.float64)
    drawn = -Normal(z / a, s / a).log_prob(X[1]).sum(1)
    assert abs(drawn.mean() - loss.parts["reconstruction"][0].item()) < 5 * drawn.std() / math.sqrt(n)


def test_the_times_of_a_batch_are_at_equal_distances_from_anywhere():
    model = exact_model("fixed")
    firsts = []
    for _ in range(300):
        model.loss(X.repeat(4, 1))
        times = model.network.times[-1] / 1000
        assert ((times >= 0) & (times < 1)).all()
        ordered = times.sort().values
        np.testing.assert_allclose(ordered.diff(), 1 / 12, rtol=1e-9)
        firsts.append(times[0].item())
    assert abs(np.mean(firsts) - 0.5) < 5 / math.sqrt(12 * 300) and max(firsts) > 0.95 and min(firsts) < 0.05


def test_autocast_reaches_the_network_alone_and_never_the_bound():
    torch.manual_seed(0)
    seen = []

    class Watched(TimeMLP):
        def forward(self, z, time):
            seen.append((z, time))
            return super().forward(z, time)

    model = VDM(Watched(2, 16), (2,), ENDS)
    nn.init.normal_(model.network.last.weight)
    x = torch.randn(50, 2)
    calls = {
        "loss": lambda: model.loss(x).value.detach(),
        "elbo": lambda: model.elbo(x, terms=2),
        "score": lambda: model.score(x, 0.3),
        "predictor": lambda: model.predictor()(x, 0.3),
    }
    for name, call in calls.items():
        torch.manual_seed(1)
        exact, before = call(), seen[-1]
        with torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(1)
            rough = call()
        assert rough.dtype == torch.float32
        assert torch.equal(seen[-1][0], before[0]) and torch.equal(seen[-1][1], before[1])
        assert torch.equal(rough, exact) == (name != "loss")
        torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


# Levels


@pytest.mark.parametrize("low", [-13.3, -9.0, -3.0, 4.0])
@pytest.mark.parametrize("levels", [2, 256])
def test_the_decoder_is_a_distribution_of_the_levels(low, levels):
    a, s = (torch.tensor(v, dtype=torch.float64).sqrt() for v in (signal2(low), signal2(-low)))
    values = np.linspace(-1, 1, levels)
    for z in (-1.9, -1.0, -0.3, 0.0013, 0.501, 1.0, 1.3):
        got = log_softmax_of_levels(
            torch.from_numpy(values)[:, None], torch.full((levels, 1), z, dtype=torch.float64), a, s, levels
        )
        exact = special.log_softmax(-((z - a.item() * values) ** 2) / (2 * s.item() ** 2))
        np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-12)
        assert got.exp().sum().item() == pytest.approx(1, abs=1e-12)
    x = torch.from_numpy(values[[0, -1, -1]]).reshape(1, 3)
    z = torch.tensor([[-0.9, 0.8, 1.0]], dtype=torch.float64)
    alone = [log_softmax_of_levels(x[:, i : i + 1], z[:, i : i + 1], a, s, levels).item() for i in range(3)]
    assert log_softmax_of_levels(x, z, a, s, levels).item() == pytest.approx(sum(alone), rel=1e-12)


def test_the_reconstruction_is_the_decoder_of_noisy_data():
    """By Gauss-Hermite nodes, for one pixel of 256 levels."""
    low, n = -8.0, 40_000
    model = VDM(TimeMLP(1, 8), (1,), (low, 4.0), "fixed", levels=256).double()
    a, s = math.sqrt(signal2(low)), math.sqrt(signal2(-low))
    values, (nodes, weights) = np.linspace(-1, 1, 256), np.polynomial.hermite_e.hermegauss(60)
    z = a * values[200] + s * nodes
    logs = special.log_softmax(-((z[:, None] - a * values) ** 2) / (2 * s**2), 1)[:, 200]
    torch.manual_seed(0)
    got = model.loss(torch.full((n, 1), 200 / 255, dtype=torch.float64)).parts["reconstruction"].detach()
    assert abs(got.mean() + (weights * logs).sum() / weights.sum()) < 5 * got.std() / math.sqrt(n)
    assert got.mean() > 1


class ExactOfLevels(nn.Module):
    """E[ε|z_t] for uniform levels."""

    def __init__(self, levels, ends):
        super().__init__()
        self.values, self.ends = torch.linspace(-1, 1, levels, dtype=torch.float64), ends

    def forward(self, z, time):
        gamma = self.ends[0] + (self.ends[1] - self.ends[0]) * time[:, None] / 1000
        a, s = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        weights = torch.softmax(-((z - a * self.values) ** 2) / (2 * s**2), 1)
        return (z - a * (weights @ self.values)[:, None]) / s


def test_the_bound_on_levels_is_their_probability():
    """One of four: for the exact ε̂, ends far enough apart that nothing is lost there, and continuous time."""
    ends, n = (-8.0, 9.0), 3000
    model = VDM(ExactOfLevels(4, ends), (1,), ends, "fixed", levels=4).double()
    for level in (0, 2):
        x = torch.full((n, 1), level / 3, dtype=torch.float64)
        for draws in (
            model.elbo(x, terms=40, generator=torch.Generator().manual_seed(level)),
            -model.loss(x).value.detach(),
        ):
            assert abs(draws.mean() + math.log(4)) < 5 * draws.std() / math.sqrt(n) + 1e-3


def test_the_bound_and_samples_are_of_data_within_the_edges(monkeypatch):
    """The network says that the data is far outside."""

    class Outside(nn.Module):
        def forward(self, z, time):
            return 0.1 * z - 40

    model = VDM(Outside(), (2,), (-6.0, 2.0), "fixed", levels=3).double()
    exact_draws(monkeypatch)
    x = torch.tensor([[0.0, 0.5]], dtype=torch.float64).repeat(4, 1)
    inner = 2 * x.numpy() - 1
    total = np.zeros(4)
    for i in range(1, 6):
        g_t, g_s = -6 + 8 * i / 5, -6 + 8 * (i - 1) / 5
        a, s = math.sqrt(signal2(g_t)), math.sqrt(signal2(-g_t))
        z = a * inner + s * SIGNS.numpy()
        raw = (z - s * (0.1 * z - 40)) / a
        clipped = np.clip(raw, -1, 1)
        assert np.abs(raw).max() > 1
        ratios = signal2(g_s) / signal2(-g_s) - a**2 / s**2
        total += ratios / 2 * ((inner - clipped) ** 2).sum(1)
        got = model.predictor()(torch.from_numpy(z), i / 5)
        np.testing.assert_allclose(got, (z - a * clipped) / s, rtol=1e-9)
        np.testing.assert_allclose(model.score(torch.from_numpy(z), i / 5), -(0.1 * z - 40) / s, rtol=1e-9)
    parts = model.loss(x).parts
    rest = -(parts["prior"] + parts["reconstruction"]).detach().numpy()
    np.testing.assert_allclose(model.elbo(x, steps=5), rest - total, rtol=1e-9)


def test_levels_are_stretched_to_both_edges():
    model = VDM(UNet(1, 8, (1,)), (1, 4, 4), levels=256)
    x = torch.arange(16).reshape(1, 1, 4, 4) * 17 / 255
    inner = model.scaled(x)
    assert (inner.min(), inner.max()) == (-1, 1)
    torch.testing.assert_close(inner, 2 * x - 1)
    torch.testing.assert_close(model.unscaled(inner), x)
    assert model.unscaled(torch.tensor([-1.2, 1.3])).tolist() == [0, 1]
    plain = VDM(TimeMLP(2), (2,))
    y = torch.randn(3, 2)
    assert torch.equal(plain.scaled(y), y) and torch.equal(plain.unscaled(y), y)


# Samples


def test_samples_of_a_gaussian_have_the_covariance_of_the_chain():
    """Of few steps, by matrices; of many, that of the data."""
    model, n = exact_model(seed=3), 20_000
    for steps in (6, 300):
        gamma = model.gamma(torch.linspace(0, 1, steps + 1, dtype=torch.float64))[0].detach().numpy()[::-1]
        covariance = np.eye(2)
        for i in range(steps):
            a_t, a_s, v_t, v_s = (math.sqrt(signal2(g)) for g in (gamma[i], gamma[i + 1], -gamma[i], -gamma[i + 1]))
            guess = a_t * COVARIANCE @ np.linalg.inv(a_t**2 * COVARIANCE + v_t**2 * np.eye(2))
            cross = a_t / a_s * v_s**2
            step = cross / v_t**2 * np.eye(2) + (a_s - cross / v_t**2 * a_t) * guess
            fresh = v_s**2 - cross**2 / v_t**2 if i < steps - 1 else 0
            covariance = step @ covariance @ step.T + fresh * np.eye(2)
        covariance /= signal2(gamma[-1])
        size = n if steps == 6 else 4000
        got = model.sample(size, torch.Generator().manual_seed(1), steps).numpy()
        variances = np.diag(covariance)
        error = np.sqrt((np.outer(variances, variances) + covariance**2) / size)
        assert (np.abs(got.T @ got / size - covariance) < 5 * error).all()
        assert (np.abs(got.mean(0)) < 5 * np.sqrt(variances / size)).all()
    np.testing.assert_allclose(covariance, COVARIANCE, rtol=0.02)
    assert np.abs(covariance - COVARIANCE).max() > 1e-4


def test_the_flow_of_probability_takes_noise_to_data():
    """Along it z is a linear map of z_1, from the covariance at one end to that at the other: √(V_0 V_1⁻¹)."""
    model = exact_model(seed=3)
    noise = model.noise(5, torch.Generator().manual_seed(2))
    v_0, v_1 = (signal2(g) * COVARIANCE + signal2(-g) * np.eye(2) for g in ENDS)
    root = linalg.sqrtm(v_0 @ np.linalg.inv(v_1))
    expected = noise.numpy() @ root.T / math.sqrt(signal2(-6.0))
    for sampler, steps, tolerance in ((diffusion.heun, 100, 1e-3), (diffusion.ddim, 1000, 5e-3)):
        got = model.sample(5, torch.Generator().manual_seed(2), steps, sampler)
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_the_grid_is_exact_at_its_quiet_end():
    model = VDM(TimeMLP(2), (2,))
    times, bars = model.grid(40)
    np.testing.assert_allclose(times, np.linspace(1, 0, 41), atol=1e-6)
    assert 1 - bars[-1] == pytest.approx(signal2(13.3), rel=1e-5)
    assert bars[0] == pytest.approx(signal2(5.0), rel=1e-5)
    gamma = model.gamma(torch.tensor([times[13]]))[0].item()
    assert bars[13] == pytest.approx(signal2(gamma), rel=1e-5)
    diffusion.require_grid(model.grid(1000))


def test_a_sample_ends_with_the_mode_of_the_decoder():
    x = torch.tensor([[-1.7, -0.98, 0.1, 0.32, 0.35, 4.0]], dtype=torch.float64)

    def sampler(eps, noise, grid, progress):
        return x

    model = VDM(TimeMLP(6), (6,), (-1.0, 4.0), levels=4).double()
    z = x / math.sqrt(signal2(-1.0))
    nearest = np.abs(z.numpy()[..., None] - np.linspace(-1, 1, 4)).argmin(-1) / 3
    np.testing.assert_allclose(model.sample(1, sampler=sampler), nearest)
    plain = VDM(TimeMLP(6), (6,), (-1.0, 4.0)).double()
    np.testing.assert_allclose(plain.sample(1, sampler=sampler), z)


def test_the_score_is_that_of_the_noisy_data():
    model = exact_model(seed=3)
    for t in (0.0, 0.37, 1.0):
        gamma = model.gamma(torch.tensor([t], dtype=torch.float64))[0].item()
        total = signal2(gamma) * COVARIANCE + signal2(-gamma) * np.eye(2)
        x = X.clone().requires_grad_()
        log = MultivariateNormal(torch.zeros(2).double(), torch.from_numpy(total)).log_prob(x)
        np.testing.assert_allclose(model.score(X, t).detach(), torch.autograd.grad(log.sum(), x)[0], rtol=1e-9)
        given = model.predictor()(X, t).detach()
        np.testing.assert_allclose(given, -math.sqrt(signal2(-gamma)) * model.score(X, t).detach(), rtol=1e-9)


# Training


def test_a_short_training_on_moons():
    moons = density("moons")
    torch.manual_seed(0)
    x, test = moons.sample((4000,)), moons.sample((1000,))
    model = VDM(TimeMLP(2, 48), (2,), (-7.0, 4.0))
    before = model.elbo(test, terms=10).mean()
    fit(model, x, Settings(steps=400, batch_size=128, learning_rate=3e-3, ema_decay=0.98), progress=False)
    bound, exact = model.elbo(test, terms=20), moons.log_prob(test)
    gap = exact - bound
    assert -5 * gap.std() / math.sqrt(1000) < gap.mean() < 0.5
    assert before < bound.mean() - 2
    assert (model.ends.detach() - torch.tensor([-7.0, 4.0])).abs().min() > 0.01
    few, more = (model.elbo(test, steps, terms=20).mean() for steps in (10, 100))
    assert few < more - 0.3 < bound.mean() - 0.6
    samples = model.sample(500, torch.Generator().manual_seed(0), steps=60)
    noise = 1.4 * torch.randn(500, 2)
    assert moons.log_prob(samples).mean() > exact.mean() - 2 > moons.log_prob(noise).mean()


@pytest.mark.parametrize("schedule", ["learned", "fixed"])
def test_two_steps_on_images(schedule):
    torch.manual_seed(0)
    network = Fourier(UNet(5, 16, (1, 2), patch=2, channels_out=1))
    model = VDM(network, (1, 28, 28), schedule=schedule, levels=256)
    x = torch.randint(256, (16, 1, 28, 28)) / 255
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, x, Settings(steps=2, batch_size=8, ema_decay=0.9), progress=False)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])}
    inside = {"ends", *(f"inside.{name}" for name in ("slope", "offset", "steep", "shift", "height"))}
    assert moved & inside == (inside if schedule == "learned" else set())
    assert "network.network.last.weight" in moved
    bits = -model.elbo(x, terms=3) / (784 * math.log(2))
    assert ((bits > 7) & (bits < 20)).all()
    samples = model.sample(2, torch.Generator().manual_seed(0), steps=3)
    assert samples.shape == (2, 1, 28, 28) and torch.equal((samples * 255).round() / 255, samples)


def test_double_precision():
    torch.manual_seed(0)
    model = VDM(Fourier(TimeMLP(6, 8, dims_out=2), (1,)), (2,), ENDS).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    assert model.loss(x).value.dtype == model.elbo(x, terms=2).dtype == torch.float64
    assert model.elbo(x, 3).dtype == model.sample(2, steps=3).dtype == model.score(x, 0.5).dtype == torch.float64


# Fourier features


def test_fourier_features_stand_after_the_channels():
    seen = []

    class Network(nn.Module):
        classes = 7

        def forward(self, x, t, label):
            seen.append((x, t, label))
            return x[:, :2]

    network = Fourier(Network(), (2, 5, 1))
    x, t, label = torch.randn(3, 2, 4, 5, dtype=torch.float64), torch.rand(3), torch.tensor([0, 1, 6])
    assert torch.equal(network(x, t, label), x) and network.classes == 7
    expected = [x, *(f(2**n * np.pi * x.numpy()) for f in (np.sin, np.cos) for n in (2, 5, 1))]
    np.testing.assert_allclose(seen[0][0], np.concatenate(expected, 1), atol=1e-12)
    assert torch.equal(seen[0][1], t) and torch.equal(seen[0][2], label)
    assert Fourier(TimeMLP(10, dims_out=2)).classes is None
    assert Fourier(TimeMLP(10, dims_out=2))(torch.randn(3, 2), t).shape == (3, 2)


@pytest.mark.parametrize(("powers", "match"), [((), "powers must hold"), ((7, 0), "each of powers"), ((1.5,), "each")])
def test_powers_that_mean_nothing_are_refused(powers, match):
    with pytest.raises(ValueError, match=match):
        Fourier(TimeMLP(2), powers)


# What it is, and bad input


def test_it_has_a_bound_and_a_score_and_no_density():
    model = VDM(TimeMLP(2, 8), (2,))
    assert all(isinstance(model, question) for question in (Learner, Sampler, Bound, Score))
    assert not isinstance(model, Density | Energy | Code)


def test_it_conforms():
    torch.manual_seed(0)
    model = VDM(TimeMLP(2, 8, 1), (2,), (-3.0, 2.0), "fixed")
    nn.init.normal_(model.network.last.weight, std=0.1)
    report = check(model, event_shape=(2,), support="real", repeats=20)
    assert report.passed and {o.name for o in report.outcomes} >= {"sample is repeatable", "loss is in its unit"}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"event_shape": ()}, "event_shape"),
        ({"event_shape": (0,)}, "event_shape"),
        ({"gamma": (1.0, 1.0)}, "gamma must be two finite numbers, the first below the second"),
        ({"gamma": (-5.0, math.inf)}, "gamma must be"),
        ({"gamma": (-5.0, 0.0, 5.0)}, "gamma must be"),
        ({"schedule": "linear"}, "schedule must be 'learned' or 'fixed', got 'linear'"),
        ({"levels": 1}, "levels must be an integer of at least 2"),
        ({"levels": True}, "levels must be"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        VDM(**{"network": TimeMLP(2), "event_shape": (2,), **arguments})


@pytest.mark.parametrize("method", ["loss", "elbo", "score", "scaled"])
def test_bad_examples_are_refused(method, refuses_bad_examples):
    model, good = VDM(TimeMLP(2, 8), (2,)), torch.zeros(3, 2)
    call = {
        "loss": model.loss,
        "elbo": lambda x: model.elbo(x, terms=1),
        "score": lambda x: model.score(x, 0.5),
        "scaled": model.scaled,
    }[method]
    refuses_bad_examples(call, good)


def test_calls_that_mean_nothing_are_refused():
    model, x = VDM(TimeMLP(2, 8), (2,)), torch.zeros(3, 2)
    images = VDM(UNet(1, 8, (1,)), (1, 4, 4), levels=256)
    wrong = VDM(TimeMLP(2, 8, dims_out=3), (2,))
    for call, match in (
        (lambda: model.elbo(x, steps=0), "steps must be a positive integer, got 0"),
        (lambda: model.elbo(x, steps=2.0), "steps must be"),
        (lambda: model.elbo(x, terms=0), "terms must be a positive integer, got 0"),
        (lambda: model.elbo(x, terms=None), "terms must be a number where steps is None"),
        (lambda: model.score(x, 1.2), "t must be from 0 to 1, got 1.2"),
        (lambda: model.predictor()(x, -0.1), "t must be from 0 to 1, got -0.1"),
        (lambda: model.score(x, math.nan), "t must be"),
        (lambda: model.sample(0), "n must be a positive integer"),
        (lambda: model.sample(2, steps=0), "steps must be a positive integer"),
        (lambda: model.grid(True), "steps must be"),
        (lambda: images.loss(torch.full((1, 1, 4, 4), 0.3333)), "x must hold only the 256 levels"),
        (lambda: wrong.loss(x), r"network must answer with the shape \(3, 2\), got \(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
def test_cuda_agrees_with_the_cpu():
    torch.manual_seed(0)
    model = VDM(TimeMLP(2, 16), (2,), ENDS, levels=4).double()
    nn.init.normal_(model.network.last.weight)
    x = torch.randint(4, (3, 2)).double() / 3
    expected = model.score(x, 0.3).detach()
    model.cuda()
    torch.testing.assert_close(model.score(x.cuda(), 0.3).cpu(), expected)
    assert model.loss(x.cuda()).value.is_cuda and model.elbo(x.cuda(), 5, 2).is_cuda
    assert model.sample(2, torch.Generator("cuda").manual_seed(0), steps=3).is_cuda
