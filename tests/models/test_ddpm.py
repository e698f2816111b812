"""Diffusion models against exact Gaussian algebra: of data N(m, C) all has a formula, chain and bound included."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import MultivariateNormal

from companion.conformance import check, denoiser_matches_score, sampler_without_final_noise
from companion.models.ddpm import (
    DDPM,
    alpha_bars,
    cosine_schedule,
    linear_schedule,
)
from companion.models.questions import Bound, Code, Density, Energy, Learner, Sampler, Score
from companion.nets.time_mlp import TimeMLP
from companion.nets.unet import UNet
from companion.samplers.diffusion import ancestral, ddim, dpm_solver, euler, heun, predictor_corrector
from companion.training import Settings, fit

KINDS = ("eps", "x0", "v", "score")
VARIANCES = ("posterior", "forward", "learned")
MEAN, COVARIANCE = np.array([0.7, -0.4]), np.array([[0.9, 0.5], [0.5, 0.6]])
BETAS = np.array([0.05, 0.1, 0.2, 0.35, 0.3, 0.6])
STEPS, D = len(BETAS), len(MEAN)
BARS = np.append(1, np.cumprod(1 - BETAS))  # ᾱ_0 … ᾱ_T
FRACTION = np.array([0.3, 0.85])  # ν of the two coordinates, where a variance is learned
X = torch.tensor([[0.2, 1.1], [-1.5, 0.4], [2.5, 0.3]], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def same(got, expected, tolerance=1e-9):
    expected = torch.as_tensor(expected, dtype=got.dtype)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# What a network would have learned


class Exact(nn.Module):
    """E[ε|x_t] for data N(m, C), or the same said in another kind, and ν if asked for."""

    def __init__(self, kind="eps", fraction=None, mean=MEAN, covariance=COVARIANCE, bars=BARS):
        super().__init__()
        self.kind, self.bars, self.fraction = kind, bars, fraction
        self.mean, self.covariance = torch.tensor(mean), torch.tensor(covariance)

    def forward(self, x, time):
        t, logits = time.double().numpy() * (len(self.bars) - 1) / 1000, np.log(self.bars[1:] / (1 - self.bars[1:]))
        t = np.where(abs(t - t.round()) < 1e-4, t.round(), t)  # times come in float32
        bar = 1 / (1 + np.exp(-np.interp(t, np.arange(1, len(self.bars)), logits)))
        bar = torch.from_numpy(bar)[:, None]
        spread = bar[..., None] * self.covariance + (1 - bar[..., None]) * torch.eye(len(self.mean)).double()
        whitened = torch.linalg.solve(spread, x.double() - bar.sqrt() * self.mean)
        eps, x0 = (1 - bar).sqrt() * whitened, self.mean + bar.sqrt() * whitened @ self.covariance
        answer = {"eps": eps, "x0": x0, "v": bar.sqrt() * eps - (1 - bar).sqrt() * x0, "score": -whitened}[self.kind]
        if self.fraction is not None:
            raw = 2 * torch.as_tensor(self.fraction, dtype=torch.float64) - 1
            answer = torch.cat([answer, raw.expand_as(answer)], 1)
        return answer.to(x.dtype)


class Fixed(nn.Module):
    """The same answer everywhere."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, time):
        return torch.full_like(x, self.value)


class Timeless(nn.Module):
    """A network that does not look at the time."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, time):
        return self.network(x)


def exact_model(kind="eps", variance="posterior", betas=BETAS, fraction=FRACTION, **arguments):
    bars = np.append(1, np.cumprod(1 - betas))
    network = Exact(kind, fraction if variance == "learned" else None, bars=bars)
    if variance == "learned":
        arguments = {"objective": "bound"} | arguments
    return DDPM(network, (D,), torch.tensor(betas), kind, variance, **arguments).double()


# Gaussian algebra, by NumPy: a family of Gaussian vectors is what each of them is of common noise


class Joint:
    """Vectors x_i = offset_i + rows_i n with n ~ N(0, I)."""

    def __init__(self, offsets, rows):
        self.offsets, self.rows = offsets, rows

    def mean(self, *of):
        return np.concatenate([self.offsets[i] for i in of])

    def covariance(self, of, also=None):
        left, right = (np.concatenate([self.rows[i] for i in which]) for which in (of, also or of))
        return left @ right.T

    def given(self, of, *others):
        """x_of given x_others: (matrix, offset, covariance)."""
        cross, inner = self.covariance([of], list(others)), self.covariance(list(others))
        matrix = cross @ np.linalg.inv(inner)
        return matrix, self.mean(of) - matrix @ self.mean(*others), self.covariance([of]) - matrix @ cross.T


def data_chain(betas=BETAS, mean=MEAN, covariance=COVARIANCE):
    """q(x_0, x_1, …, x_T), a step of the definition at a time."""
    d, steps = len(mean), len(betas)
    noise = np.eye(d * (steps + 1)).reshape(steps + 1, d, -1)
    offsets, rows = [mean], [np.linalg.cholesky(covariance) @ noise[0]]
    for beta, fresh in zip(betas, noise[1:], strict=True):
        offsets.append(math.sqrt(1 - beta) * offsets[-1])
        rows.append(math.sqrt(1 - beta) * rows[-1] + math.sqrt(beta) * fresh)
    return Joint(offsets, rows)


def kernels(chain, variance, fraction=FRACTION, times=None):
    """Of p(x_s|x_t), for t = T … : (matrix, offset, variances); its mean is that of q(x_s|x_t)."""
    times = list(range(len(chain.rows))) if times is None else times
    small, large = {}, {}
    for s, t in itertools.pairwise(times):
        if s:
            small[t] = chain.given(s, t, 0)[2].diagonal()
        large[t] = chain.given(t, s)[2].diagonal()
    first, second = times[1:3]
    small[first] = small[second]
    if variance != "learned":
        large[first] = small[second]
    share = {"posterior": 0.0, "forward": 1.0, "learned": fraction}[variance]
    return {
        t: (*chain.given(s, t)[:2], large[t] ** share * small[t] ** (1 - share)) for s, t in itertools.pairwise(times)
    }


def model_chain(steps, final_noise=True):
    """p(x_0, …, x_T), indexed by t, from N(0, I) at the largest t down by the kernels."""
    d, times = D, sorted(steps)
    noise = iter(np.eye(d * (len(times) + 1)).reshape(-1, d, d * (len(times) + 1)))
    offsets, rows = {times[-1]: np.zeros(d)}, {times[-1]: next(noise)}
    for t, s in itertools.pairwise([*times[::-1], 0]):
        matrix, offset, variances = steps[t]
        scale = np.sqrt(variances) if s or final_noise else np.zeros(d)
        offsets[s], rows[s] = matrix @ offsets[t] + offset, matrix @ rows[t] + scale[:, None] * next(noise)
    return Joint(offsets, rows)


def log_normal(x, mean, covariance):
    return stats.multivariate_normal.logpdf(x, mean, covariance)


def exact_elbo(x0, variance, chain=None, fraction=FRACTION):
    """E_{q(x_{1:T}|x_0)} [log p(x_{0:T}) - log q(x_{1:T}|x_0)], by the two joint Gaussians, no term by itself."""
    chain = chain or data_chain()
    p, later = model_chain(kernels(chain, variance, fraction)), list(range(1, len(chain.rows)))
    cross, inner = chain.covariance(later, [0]), np.linalg.inv(chain.covariance([0]))
    path = chain.mean(*later) + cross @ inner @ (x0 - chain.offsets[0])
    spread = chain.covariance(later) - cross @ inner @ cross.T
    everything = p.covariance([0, *later])
    precision, d = np.linalg.inv(everything), len(x0)
    log_p = log_normal(np.concatenate([x0, path]), p.mean(0, *later), everything)
    entropy = np.linalg.slogdet(2 * math.pi * math.e * spread)[1] / 2
    return log_p - np.trace(precision[d:, d:] @ spread) / 2 + entropy


def exact_term(x0, t, variance):
    """The expected term of -ELBO at t."""
    chain = data_chain()
    matrix, offset, variances = kernels(chain, variance)[t]
    noised, at, spread = chain.given(t, 0)
    centre = noised @ x0 + at
    if t == 1:
        gap = x0 - matrix @ centre - offset
        square = (gap**2 + (matrix @ spread @ matrix.T).diagonal()) / variances
        return (square + np.log(2 * math.pi * variances)).sum() / 2
    both, constant, posterior = chain.given(t - 1, t, 0)
    slope, rest = both[:, :D] - matrix, both[:, D:] @ x0 + constant - offset
    square = ((slope @ centre + rest) ** 2 + (slope @ spread @ slope.T).diagonal()) / variances
    return (square + posterior.diagonal() / variances - 1 - np.log(posterior.diagonal() / variances)).sum() / 2


def cells(levels):
    """Edges of the cells on [-1, 1], the outermost at infinity."""
    centres = np.linspace(-1, 1, levels)
    return centres, np.concatenate([[-np.inf], (centres[1:] + centres[:-1]) / 2, [np.inf]])


# Noise, put where it is wanted


def quadrature(dim, points=3):
    """Nodes (n, dim) and weights with E f(ε) = Σ weight f(node), exact for polynomials of a degree below 2 · points."""
    z, w = np.polynomial.hermite_e.hermegauss(points)
    nodes = np.array(list(itertools.product(z, repeat=dim)))
    weights = np.array(list(itertools.product(w / w.sum(), repeat=dim))).prod(1)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def expected(function, x, monkeypatch):
    """E function(x) over the noise it draws, for each x: every draw of noise takes the nodes. Exact for what is
    quadratic in each."""
    nodes, weights = quadrature(x[0].numel())
    with monkeypatch.context() as patch:
        fresh = nodes.repeat(len(x), 1).reshape(-1, *x.shape[1:])
        patch.setattr(torch.Tensor, "normal_", lambda self, *_, **__: self.copy_(fresh))
        values = function(x.repeat_interleave(len(nodes), 0))
    return values.reshape(len(x), -1) @ weights.to(values.dtype)


def law(sample, draws, dims, monkeypatch):
    """Mean and covariance of what an affine function of `draws` draws from N(0, I) returns: `sample(n)` is called once,
    and in row 1 + k the k-th number that it draws is 1, all others are 0."""
    n, called = 1 + draws * dims, []

    def basis(self, *_, **__):
        rows = self.zero_().reshape(n, -1)
        for j in range(dims):
            rows[1 + len(called) * dims + j, j] = 1
        called.append(None)
        return self

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", basis)
        out = sample(n).reshape(n, -1)
    assert len(called) == draws
    slopes = out[1:] - out[0]
    return out[0], slopes.T @ slopes


def fixed_time(t):
    """In place of `torch.randint`."""
    return lambda low, high, size, **_: torch.full(size, t)


# The bound


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("t", range(1, STEPS + 1))
def test_every_term_is_that_of_gaussian_algebra(variance, t, monkeypatch):
    model = exact_model(variance=variance)
    got = expected(lambda x: model.term(x, t), X, monkeypatch)
    same(got, [exact_term(x, t, variance) for x in X.numpy()])


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_elbo_is_that_of_the_joint_gaussians(variance, monkeypatch):
    model = exact_model(variance=variance)
    got = expected(lambda x: model.elbo(x, terms=None), X, monkeypatch)
    same(got, [exact_elbo(x, variance) for x in X.numpy()])
    # And below the exact log-likelihood of the model's own marginal.
    marginal = model_chain(kernels(data_chain(), variance))
    exact = log_normal(X.numpy(), marginal.mean(0), marginal.covariance([0]))
    gap = exact - got.numpy()
    assert (gap > 1e-3).all() and (gap < 3).all()


def test_the_last_term_is_the_prior():
    """KL(N(√ᾱ x_0, (1 - ᾱ) I) ‖ N(0, I))."""
    bar = BARS[-1]
    latent = MultivariateNormal(math.sqrt(bar) * X, (1 - bar) * torch.eye(2).double())
    standard = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    same(exact_model().prior_kl(X), torch.distributions.kl_divergence(latent, standard), 1e-11)


def averages(function, monkeypatch, covariance=COVARIANCE):
    """E function(x) over the data too."""
    nodes, weights = quadrature(D)
    x = torch.from_numpy(MEAN) + nodes @ torch.from_numpy(np.linalg.cholesky(covariance)).T
    return (expected(function, x, monkeypatch) @ weights).item()


@pytest.mark.parametrize("variance", VARIANCES)
def test_no_bound_beats_the_entropy(variance, monkeypatch):
    """E ELBO ≤ -H(data) - KL(q(x_T)‖p(x_T)), where even the best reverse chain ends."""
    chain = data_chain()
    best = -MultivariateNormal(torch.zeros(2), torch.tensor(COVARIANCE)).entropy().item() - kl_to_standard(
        chain.offsets[-1], chain.covariance([STEPS])
    )
    got = averages(lambda x: exact_model(variance=variance).elbo(x, terms=None), monkeypatch)
    assert best - 2 < got < best - 1e-2


def kl_to_standard(mean, covariance):
    return (np.trace(covariance) + mean @ mean - len(mean) - np.linalg.slogdet(covariance)[1]) / 2


def test_the_best_variance_of_round_data_reaches_the_entropy(monkeypatch):
    """Where the reverse kernels are Gaussians with a multiple of I, the learned variance can be theirs."""
    covariance = 0.4 * np.eye(D)
    chain = data_chain(covariance=covariance)
    ends = {name: kernels(chain, "learned", float(name == "large")) for name in ("small", "large")}

    class Best(Exact):
        def forward(self, x, time):
            t = round(time[0].item() * STEPS / 1000)
            wanted = chain.given(t - 1, t)[2][0, 0]
            small, large = ends["small"][t][2][0], ends["large"][t][2][0]
            share = math.log(wanted / small) / math.log(large / small)
            assert t == 1 or 0 < share < 1  # between the two, as it must be for data of less variance than noise
            self.fraction = np.array([share, share])
            return super().forward(x, time)

    network = Best(fraction=FRACTION, covariance=covariance)
    model = DDPM(network, (D,), torch.tensor(BETAS), variance="learned", objective="bound").double()
    got = averages(lambda x: model.elbo(x, terms=None), monkeypatch, covariance)
    entropy = MultivariateNormal(torch.zeros(2), torch.tensor(covariance)).entropy().item()
    assert got == pytest.approx(-entropy - kl_to_standard(chain.offsets[-1], chain.covariance([STEPS])), abs=1e-9)


def test_more_steps_bring_the_bound_to_the_entropy(monkeypatch):
    """As 1/T, for the same noise at the end."""
    gaps = []
    for steps in (10, 20, 40):
        betas = 1 - np.exp(-8.0 * np.linspace(0.2, 1.8, steps) / steps)
        model = exact_model(betas=betas, variance="learned", fraction=np.ones(D))  # σ_t² = β_t
        entropy = MultivariateNormal(torch.zeros(2), torch.tensor(COVARIANCE)).entropy().item()
        gaps.append(-entropy - averages(lambda x, model=model: model.elbo(x, terms=None), monkeypatch))
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < 0.6 * gaps[1] < 0.4 * gaps[0]


def test_the_terms_are_drawn_evenly_and_without_bias():
    """Of a network whose terms do not depend on the noise, so that all that is random are the times."""
    seen = []

    class Watch(Fixed):
        def forward(self, x, time):
            seen.append((time * STEPS / 1000).round().long())
            return super().forward(x, time)

    n = 20_000
    model = DDPM(Watch(0.4), (D,), torch.tensor(BETAS), "x0").double()
    x = X[:1].expand(n, D)
    exact = [-model.prior_kl(X[:1]).item()] + [-model.term(X[:1], t).item() for t in range(1, STEPS + 1)]
    for terms in (2, 3, 5):
        seen.clear()
        values = model.elbo(x, terms=terms, generator=generator())
        error = values.std().item() / math.sqrt(n)
        assert error > 0 and abs(values.mean().item() - sum(exact)) < 5 * error
        # The first, and of 2 … 6 one from each part, in each example its own.
        first, *others = seen
        assert len(others) == terms - 1 and (first == 1).all()
        for i, times in enumerate(others):
            low, high = (2 + 5 * j / (terms - 1) for j in (i, i + 1))
            assert times.min() == int(low) and times.max() == math.ceil(high) - 1
            inside = min(3, high) - low if i == 0 else math.ceil(low + 1e-9) - low
            share = (times == int(low)).double().mean().item()
            assert share == pytest.approx(min(inside * (terms - 1) / 5, 1), abs=5 * 0.5 / math.sqrt(n))
    for terms in (None, 6, 7, 1000):
        seen.clear()
        assert model.elbo(x[:2], terms=terms).tolist() == pytest.approx([sum(exact)] * 2)
        assert [times.tolist() for times in seen] == [[t, t] for t in range(1, STEPS + 1)]


def test_the_same_generator_gives_the_same_bound():
    model = exact_model()
    first, again = (model.elbo(X, terms=3, generator=generator(1)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, model.elbo(X, terms=3, generator=generator(2)))
    assert torch.equal(model.term(X, 3, generator=generator(1)), model.term(X, 3, generator=generator(1)))


def discrete_bars():
    return np.append(1, np.cumprod(1 - BETAS))


class Levels(nn.Module):
    """E[ε|x_t] of a single pixel with the given probabilities of its levels, on [-1, 1]."""

    def __init__(self, probabilities):
        super().__init__()
        self.probabilities = torch.tensor(probabilities, dtype=torch.float64)
        self.values = torch.linspace(-1, 1, len(probabilities), dtype=torch.float64)

    def forward(self, x, time):
        bar = torch.from_numpy(discrete_bars())[(time * STEPS / 1000).round().long()][:, None]
        log_weight = self.probabilities.log() - (x - bar.sqrt() * self.values).square() / (2 * (1 - bar))
        x0 = log_weight.softmax(1) @ self.values
        return ((x - bar.sqrt() * x0[:, None]) / (1 - bar).sqrt()).to(x.dtype)


@pytest.mark.parametrize("probabilities", [[0.2, 0.5, 0.1, 0.2], [0.7, 0.1, 0.2]])
def test_the_bound_of_levels_is_one_on_their_probability(probabilities):
    """Σ_k exp(E ELBO(k)) ≤ 1, and the loss in nats is minus it."""
    levels = len(probabilities)
    model = DDPM(Levels(probabilities), (1,), torch.tensor(BETAS), levels=levels, objective="bound").double()
    states = torch.linspace(0, 1, levels, dtype=torch.float64)[:, None]
    report = check(model, states=states)
    assert report, report
    assert {outcome.name for outcome in report.outcomes} >= {"exp(elbo) sums to at most 1", "loss is in its unit"}
    # The reverse of 6 steps is no chain of Gaussians, but near: the bound is no cheap one.
    many = model.elbo(states.repeat_interleave(3000, 0), terms=None, generator=generator()).reshape(levels, -1)
    probabilities = torch.tensor(probabilities, dtype=torch.float64)
    gap = probabilities @ (probabilities.log() - many.mean(1))
    assert 0 < gap < 1.2


def test_the_first_term_of_levels_is_their_decoder(monkeypatch):
    """-E log of the normal mass of the cell around E[x_0|x_1], by quadrature, with σ_1² = β̃_2."""
    model = DDPM(Levels([0.2, 0.5, 0.1, 0.2]), (1,), torch.tensor(BETAS), levels=4).double()
    z, w = quadrature(1, 200)
    std = math.sqrt((1 - BARS[1]) / (1 - BARS[2]) * BETAS[1])
    for k in range(4):
        x = torch.full((len(z), 1), k / 3, dtype=torch.float64)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "normal_", lambda self, *_, **__: self.copy_(z))
            got = model.term(x, 1)
        noised = math.sqrt(BARS[1]) * (2 * k / 3 - 1) + math.sqrt(1 - BARS[1]) * z
        eps = model.network(noised, torch.full((len(z),), 1000 / STEPS))
        mean = (noised - math.sqrt(1 - BARS[1]) * eps) / math.sqrt(BARS[1])
        edges = cells(4)[1][k : k + 2]
        mass = np.diff(stats.norm.cdf(edges, mean.numpy(), std), axis=1)
        keep = mass[:, 0] > 1e-12
        np.testing.assert_allclose(got.numpy()[keep], -np.log(mass[keep, 0]), rtol=1e-6)
        assert w[torch.from_numpy(keep)].sum() > 0.999


# Training


def same_bound_by_loss(model, x, monkeypatch, objective):
    total = 0.0
    for t in range(1, STEPS + 1):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", fixed_time(t))
            total = total + expected(lambda x: model.loss(x).value, x, monkeypatch) / STEPS
    return total


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_in_nats_is_minus_the_elbo(kind, variance, monkeypatch):
    model = exact_model(kind, variance, objective="bound")
    got = same_bound_by_loss(model, X, monkeypatch, "bound")
    same(got, [-exact_elbo(x, variance) for x in X.numpy()])
    loss = model.loss(X)
    assert loss.unit == "nats"
    same(loss.parts["steps"] + loss.parts["prior"], loss.value, 1e-12)


def test_times_are_drawn_alike(monkeypatch):
    """All T of them, by how often the network sees each."""
    seen = []

    class Watch(Exact):
        def forward(self, x, time):
            seen.append(time)
            return super().forward(x, time)

    torch.manual_seed(0)
    DDPM(Watch(), (D,), torch.tensor(BETAS)).double().loss(torch.zeros(60_000, D).double())
    counts = torch.bincount((torch.cat(seen) * STEPS / 1000).round().long(), minlength=STEPS + 1)
    assert counts[0] == 0 and len(counts) == STEPS + 1
    assert ((counts[1:] / 60_000 - 1 / STEPS).abs() < 5 * math.sqrt(1 / STEPS / 60_000)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [1, 4, STEPS])
def test_the_simple_loss_is_least_at_the_conditional_mean(kind, t, monkeypatch):
    """Its expectation there is the conditional variance, and steps to the side cost their own square."""

    class Moved(Exact):
        by = torch.zeros(())

        def forward(self, x, time):
            return super().forward(x, time) + self.by * (x + 1)

    model = DDPM(Moved(kind), (D,), torch.tensor(BETAS), kind).double()
    chain, bar = data_chain(), BARS[t]
    spread = chain.given(0, t)[2]  # Cov(x_0|x_t), and of ε and v, each a multiple of x_0 there
    scale = {"eps": bar / (1 - bar), "x0": 1.0, "v": 1 / (1 - bar), "score": bar / (1 - bar)}
    least = scale[kind] * np.trace(spread) / D

    def cost(by):
        model.network.by = torch.tensor(by, dtype=torch.float64)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", fixed_time(t))
            return averages(lambda x: model.loss(x).value, monkeypatch)

    weight = 1 - bar if kind == "score" else 1.0
    second = np.trace(chain.covariance([t])) + ((chain.offsets[t] + 1) ** 2).sum()
    assert cost(0.0) == pytest.approx(least, rel=1e-9)
    for by in (0.3, -0.2):
        assert cost(by) == pytest.approx(least + weight * by**2 * second / D, rel=1e-9)


def test_what_the_simple_loss_says():
    torch.manual_seed(0)
    loss = exact_model("v").loss(X)
    assert loss.unit == "mean squared error of v" and torch.equal(loss.parts["squared error"], loss.value)
    assert check(exact_model("v"), X)
    assert loss.value.shape == (3,)


class Two(nn.Module):
    """A parameter for the mean's part and one for the variance's."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([0.4, -0.3]).double())
        self.raw = nn.Parameter(torch.tensor([0.5, -0.7]).double())

    def forward(self, x, time):
        return torch.cat([x * self.value, self.raw.expand_as(x)], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hybrid_moves_the_mean_by_the_one_part_and_the_variance_by_the_other(kind):
    network = Two()
    betas, gradients = torch.tensor(BETAS), {}
    models = {
        "hybrid": DDPM(network, (D,), betas, kind, "learned", "hybrid").double(),
        "bound": DDPM(network, (D,), betas, kind, "learned", "bound").double(),
    }
    losses = {}
    for name, model in models.items():
        torch.manual_seed(3)
        losses[name] = model.loss(X)
        gradients[name] = torch.autograd.grad(losses[name].value.sum(), [network.value, network.raw])
    hybrid = losses["hybrid"]
    torch.manual_seed(3)
    [of_mse] = torch.autograd.grad(models["hybrid"].loss(X).parts["squared error"].sum(), network.value)
    scale = 1e-3 / (D * math.log(2))
    same(gradients["hybrid"][0], of_mse, 1e-12)
    same(gradients["hybrid"][1], scale * gradients["bound"][1], 1e-12)
    assert gradients["bound"][0].any() and gradients["bound"][1].any()
    same(hybrid.parts["0.001 bits/dim"], scale * losses["bound"].parts["steps"], 1e-12)
    same(hybrid.value, hybrid.parts["squared error"] + hybrid.parts["0.001 bits/dim"], 1e-12)
    assert check(models["hybrid"], X)
    assert hybrid.unit == "squared error + 0.001 bits/dim"


def test_a_learned_variance_lies_between_the_two():
    """ν = 0 is "posterior", ν = 1 "forward", from the second step on."""
    for fraction, fixed in ((0.0, "posterior"), (1.0, "forward")):
        learned, other = exact_model(variance="learned", fraction=np.full(2, fraction)), exact_model(variance=fixed)
        for t in range(2, STEPS + 1):
            same(learned.term(X, t, generator=generator()), other.term(X, t, generator=generator()))
        same(learned.sample(9, generator()), other.sample(9, generator()))


# The four predictions are one


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_four_predictions_give_the_same_answers(variance):
    answers = []
    for kind in KINDS:
        model = exact_model(kind, variance)
        bound = model.elbo(X, terms=4, generator=generator(1))
        answers.append((bound, model.score(X, 3), model.sample(5, generator())))
    for answer in answers[1:]:
        for got, expected in zip(answer, answers[0], strict=True):
            same(got, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [1, 2.25, 3, 5.9, STEPS])
def test_the_score_is_the_gradient_of_the_noised_data(kind, t):
    """Between whole times that of ᾱ whose logit is between."""
    logits = np.log(BARS[1:] / (1 - BARS[1:]))
    bar = 1 / (1 + math.exp(-np.interp(t, np.arange(1, STEPS + 1), logits)))
    spread = torch.tensor(bar * COVARIANCE + (1 - bar) * np.eye(D))
    density = MultivariateNormal(math.sqrt(bar) * torch.tensor(MEAN), spread)
    model = exact_model(kind)
    assert torch.allclose(model.score(X, t), -torch.linalg.solve(spread, (X - density.mean).T).T, rtol=1e-5)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if t != int(t) else {"rtol": 1e-9, "atol": 1e-9}
    leaf = X.clone().requires_grad_()
    [gradient] = torch.autograd.grad(density.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(model.score(X, t), gradient, **tolerance)
    if t == int(t):
        assert denoiser_matches_score(lambda x: model.predictor()(x, t), density.log_prob, X, bar)


def test_times_of_a_log_snr():
    model = exact_model()
    for t in (1, 2, 5, STEPS):
        assert model.time(math.log(BARS[t] / (1 - BARS[t]))) == pytest.approx(t)
    between = [math.log(BARS[t] / (1 - BARS[t])) for t in (3, 4)]
    assert model.time(0.75 * between[0] + 0.25 * between[1]) == pytest.approx(3.25)
    for bad in (between[0] + 20, between[0] - 20, math.nan):
        with pytest.raises(ValueError, match="log_snr must be from"):
            model.time(bad)


# Sampling


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("variance", VARIANCES)
def test_samples_have_the_law_of_the_chain(variance, kind, monkeypatch):
    """Exactly, but for the last step's noise, which is left out."""
    model = exact_model(kind, variance)
    mean, covariance = law(lambda n: model.sample(n), STEPS, D, monkeypatch)
    chain = model_chain(kernels(data_chain(), variance), final_noise=False)
    same(mean, chain.mean(0))
    same(covariance, chain.covariance([0]))


@pytest.mark.parametrize("variance", VARIANCES)
def test_samples_of_some_of_the_times_have_the_law_of_their_own_chain(variance, monkeypatch):
    model = exact_model(variance=variance)
    times = model.grid(3).times
    assert times == [6, 4, 2, 0]
    mean, covariance = law(lambda n: model.sample(n, steps=3), 3, D, monkeypatch)
    chain = model_chain(kernels(data_chain(), variance, times=times[::-1]), final_noise=False)
    same(mean, chain.mean(0))
    same(covariance, chain.covariance([0]))


def test_samples_of_any_sampler():
    model = exact_model()
    for sampler in (ancestral, ddim, partial(ddim, eta=0.5), predictor_corrector):
        first, again = (model.sample(5, generator(2), steps=4, sampler=sampler) for _ in range(2))
        assert torch.equal(first, again)
        expected = sampler(model.predictor(), model.noise(5, source := generator(2)), model.grid(4), generator=source)
        assert torch.equal(first, expected)
        assert not torch.equal(first, model.sample(5, generator(3), steps=4, sampler=sampler))
    for sampler in (euler, heun, dpm_solver):
        expected = sampler(model.predictor(), model.noise(5, generator(2)), model.grid(4))
        assert torch.equal(model.sample(5, generator(2), steps=4, sampler=sampler), expected)
    assert torch.equal(
        model.sample(5, generator(2)),
        ancestral(model.predictor(), model.noise(5, g := generator(2)), model.grid(), generator=g),
    )


def test_samples_are_shown_on_request(capsys):
    exact_model().sample(2)
    assert not capsys.readouterr().err
    exact_model().sample(2, progress=True)
    assert "6/6" in capsys.readouterr().err


def test_grids():
    model = exact_model()
    whole = model.grid()
    assert whole.times == [6, 5, 4, 3, 2, 1, 0] and whole.alpha_bars == pytest.approx(BARS[::-1].tolist(), rel=1e-12)
    assert model.grid(1).times == [6, 0] and model.grid(2).times == [6, 3, 0]
    large = DDPM(TimeMLP(2, 8), (2,), linear_schedule())
    assert large.grid(4).times == [1000, 750, 500, 250, 0]
    for steps in (1, 2, 3, 7, 50, 333, 500, 667, 999, 1000):
        times = large.grid(steps).times
        assert len(times) == steps + 1 and (np.diff(times) < 0).all() and times[0] == 1000 and times[-1] == 0
        assert np.abs(times - np.linspace(1000, 0, steps + 1)).max() <= 0.5
    bars = np.append(1, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    grid = large.grid(20, "log_snr")
    np.testing.assert_allclose(grid.alpha_bars, bars[grid.times], rtol=1e-10)
    assert grid.times[0] == 1000 and grid.times[-2:] == [1, 0]
    logits = np.log(bars[1:] / (1 - bars[1:]))
    wanted = np.linspace(logits[-1], logits[0], 20)
    nearest = np.array([1 + np.abs(logits - value).argmin() for value in wanted])
    assert np.abs(nearest - grid.times[:-1]).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"steps": 0}, "steps must be a positive integer"),
        ({"steps": 7}, "steps must be at most T = 6, got 7"),
        ({"steps": 2.0}, "steps must be a positive integer"),
        ({"steps": 3, "spacing": "even"}, "spacing must be 'time' or 'log_snr', got 'even'"),
    ],
)
def test_grids_that_mean_nothing_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        exact_model().grid(**arguments)
    with pytest.raises(ValueError, match="900 of them stop twice at the same time"):
        DDPM(TimeMLP(2, 8), (2,), linear_schedule()).grid(900, "log_snr")


@pytest.mark.parametrize("sampler", [ancestral, ddim, partial(ddim, eta=1.0), heun, dpm_solver, predictor_corrector])
def test_samples_of_a_point_are_the_point(sampler):
    """Whatever noise came before, the last step adds none."""
    grid = exact_model().grid()
    assert sampler_without_final_noise(lambda eps, x: sampler(eps, x, grid), dict(zip(*grid, strict=True)).get, X)


# Labels and guidance


class Classes(nn.Module):
    """An answer that depends on all it is given, and a record of it."""

    def __init__(self, classes=3, outputs=D):
        super().__init__()
        self.classes, self.outputs, self.calls = classes, outputs, []

    def forward(self, x, time, label=None):
        label = torch.full((len(x),), self.classes) if label is None else label
        self.calls.append((x, time, label))
        answer = torch.tanh(x + time[:, None].to(x) / 700) * (1 + label[:, None].to(x)) - 0.3
        return answer if self.outputs == D else torch.cat([answer, torch.sin(x) * label[:, None]], 1)


def labelled(kind="eps", **arguments):
    return DDPM(Classes(), (D,), torch.tensor(BETAS), kind, **arguments).double()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_labels_are_hidden_at_their_share(share):
    torch.manual_seed(0)
    model, n = labelled(label_dropout=share), 20_000
    label = torch.arange(n) % 3
    model.loss(torch.zeros(n, D).double(), label)
    [(_, _, seen)] = model.network.calls
    hidden = seen == 3
    assert torch.equal(seen[~hidden], label[~hidden])
    assert abs(hidden.double().mean().item() - share) <= 5 * math.sqrt(share * (1 - share) / n)
    assert torch.equal(label, torch.arange(n) % 3)  # not in place


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.0, 1.5, -0.5])
def test_guidance_is_made_of_both_halves(kind, weight):
    model, label = labelled(kind), torch.tensor([2, 0, 1])
    guided = model.predictor(label, weight)(X, 4)
    calls = list(model.network.calls)
    named, left_open = model.predictor(label)(X, 4), model.predictor()(X, 4)
    same(guided, (1 + weight) * named - weight * left_open, 1e-12)
    assert not torch.allclose(named, left_open)
    [(x, time, seen)] = calls
    assert len(x) == (6 if weight else 3) and torch.equal(seen[:3], label)
    assert not weight or ((seen[3:] == 3).all() and torch.equal(x[:3], x[3:]))
    assert torch.allclose(time.double(), torch.tensor(4 * 1000 / STEPS).double())


def test_labels_reach_every_answer():
    model, label = labelled(), torch.tensor([2, 0, 1])
    for answer in (
        lambda label: model.term(X, 3, label, generator()),
        lambda label: model.elbo(X, label, generator=generator()),
        lambda label: model.score(X, 2, label),
        lambda label: model.sample(3, generator(), label),
        lambda label: model.sample(3, generator(), label, sampler=heun),
    ):
        of_label, of_null, of_other = answer(label), answer(None), answer(torch.tensor([2, 0, 0]))
        assert not torch.isclose(of_label, of_null).any()
        assert torch.equal(of_label[:2], of_other[:2]) and not torch.equal(of_label[2], of_other[2])
    guided = model.sample(3, generator(), label, guidance=2.0)
    expected = ancestral(model.predictor(label, 2.0), model.noise(3, g := generator()), model.grid(), generator=g)
    assert torch.equal(guided, expected)


def test_guidance_leaves_the_learned_variance_to_the_label():
    model = DDPM(Classes(outputs=2 * D), (D,), torch.tensor(BETAS), variance="learned", objective="hybrid").double()
    label = torch.tensor([2, 0, 1])
    eps, fraction = model.predictor(label, 3.0, variance=True)(X, 4)
    named, own = model.predictor(label, variance=True)(X, 4)
    left_open, _ = model.predictor(variance=True)(X, 4)
    same(eps, 4 * named - 3 * left_open, 1e-12)
    same(fraction, own, 1e-12)
    same(own, (torch.sin(X) * label[:, None] + 1) / 2, 1e-12)
    assert torch.is_tensor(model.predictor(label)(X, 4))


# Levels


@pytest.mark.parametrize(("guess", "clipped"), [(3.0, 1.0), (-1.7, -1.0), (0.4, 0.4)])
def test_what_is_predicted_stays_within_the_levels(guess, clipped):
    model = DDPM(Fixed(guess), (D,), torch.tensor(BETAS), "x0", levels=3).double()
    for t in (1, 3, STEPS):
        a, s = math.sqrt(BARS[t]), math.sqrt(1 - BARS[t])
        same((X - s * model.predictor()(X, t)) / a, torch.full_like(X, clipped), 1e-9)
        same(model.score(X, t), -(X - a * guess) / s**2, 1e-9)  # the score is the network's own
    levels = torch.tensor([[0.0, 0.5], [1.0, 0.5]], dtype=torch.float64)
    # Steps after the first cost half the rise of the signal-to-noise ratio times the square of the error.
    for t in (2, STEPS):
        snr = [BARS[s] / (1 - BARS[s]) for s in (t - 1, t)]
        expected = (snr[0] - snr[1]) / 2 * ((2 * levels - 1) - clipped).square().sum(1)
        same(model.term(levels, t), expected, 1e-9)
    torch.manual_seed(0)
    value = model.loss(levels).value  # while training is on what the network says
    same(value, ((2 * levels - 1) - guess).square().mean(1), 1e-9)


def test_guidance_is_kept_within_the_levels_too():
    model, label = labelled("x0", levels=3), torch.tensor([2, 0, 1])
    x0 = model.predictor(label, 4.0)(X, 3)
    x0 = (X - math.sqrt(1 - BARS[3]) * x0) / math.sqrt(BARS[3])
    free = labelled("x0").predictor(label, 4.0)(X, 3)
    free = (X - math.sqrt(1 - BARS[3]) * free) / math.sqrt(BARS[3])
    assert free.abs().max() > 2
    same(x0, free.clamp(-1, 1))


def test_levels_are_stretched_and_back():
    model = DDPM(UNet(1, 8, (1, 1)), (1, 4, 4), torch.tensor(BETAS), levels=256)
    x = torch.randint(256, (3, 1, 4, 4), generator=generator()) / 255
    inside = model.scaled(x)
    torch.testing.assert_close(inside, 2 * x - 1, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.unscaled(inside), x, rtol=0, atol=1e-6)
    assert model.unscaled(torch.tensor([-1.2, 1.1, 0.0])).tolist() == [0, 1, 0.5]
    plain = exact_model()
    assert plain.scaled(X) is X and plain.unscaled(X) is X
    for call in (model.loss, model.elbo, lambda x: model.term(x, 1), model.prior_kl, model.scaled):
        for bad, match in ((x + 0.001, "256 levels"), (255 * x, "divide counts by 255"), (x - 1, "256 levels")):
            with pytest.raises(ValueError, match=match):
                call(bad)


# Images, types, precision


def image_model(seed=0, **arguments):
    torch.manual_seed(seed)
    outputs = 2 if arguments.get("variance") == "learned" else 1
    model = DDPM(
        UNet(1, 8, (1, 2), classes=10, channels_out=outputs), (1, 28, 28), cosine_schedule(20), levels=256, **arguments
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.08)
    return model


IMAGES = torch.randint(256, (4, 1, 28, 28), generator=generator(5)) / 255
LABEL = torch.tensor([3, 9, 0, 4])


@pytest.mark.parametrize("variance", VARIANCES)
def test_images(variance):
    model = image_model(variance=variance, objective="hybrid" if variance == "learned" else "simple")
    loss = model.loss(IMAGES, LABEL)
    assert loss.value.shape == (4,) and loss.value.dtype == torch.float32
    loss.value.mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    samples = model.sample(3, generator(), LABEL[:3], guidance=1.0, steps=4)
    assert samples.shape == (3, 1, 28, 28) and samples.min() >= 0 and samples.max() <= 1 and samples.std() > 0.05
    bound = model.elbo(IMAGES, LABEL, terms=5, generator=generator())
    assert bound.shape == (4,) and (bound < 0).all() and not bound.requires_grad
    assert torch.equal(model.sample(2, generator(), steps=2), model.sample(2, generator(), steps=2))


@pytest.mark.parametrize("betas", [linear_schedule(), cosine_schedule()], ids=["linear", "cosine"])
def test_gradients_of_the_bound_of_images_are_finite_at_all_times(betas, monkeypatch):
    """In float32, at the times together: the decoder is worked out for all of them and used for the first alone."""
    t, x = torch.tensor([1, 2, 3, 10, 100, 500, 900, 999, 1000]), torch.rand(9, 1, 8, 8, generator=generator())
    monkeypatch.setattr(torch, "randint", lambda *_, **__: t)
    for variance, objective in (("posterior", "bound"), ("learned", "bound"), ("learned", "hybrid")):
        torch.manual_seed(0)
        outputs = 2 if variance == "learned" else 1
        network = nn.Conv2d(1, outputs, 3, padding=1)
        model = DDPM(Timeless(network), (1, 8, 8), betas, variance=variance, objective=objective, levels=256)
        loss = model.loss((255 * x).round() / 255)
        [of_weight] = torch.autograd.grad(loss.value.sum(), network.weight)
        assert loss.value.isfinite().all() and of_weight.isfinite().all() and of_weight.flatten(1).any(1).all()


def test_bfloat16_is_close_and_the_bound_does_not_take_part():
    for arguments in ({}, {"objective": "bound"}, {"variance": "learned", "objective": "hybrid"}):
        model, values = image_model(**arguments), []
        for enabled in (False, True):
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                values.append(model.loss(IMAGES, LABEL).value)
        assert values[1].dtype == torch.float32 and not torch.equal(*values)
        torch.testing.assert_close(values[1], values[0], rtol=2e-2, atol=0)
    answers = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            answers.append(
                (
                    model.elbo(IMAGES, LABEL, terms=3, generator=generator()),
                    model.sample(2, generator(), steps=2),
                    model.score(IMAGES, 7.5, LABEL),
                )
            )
    assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))


def test_a_double_model_stays_double():
    model = image_model().double()
    x = IMAGES.double()
    single = image_model()
    assert model.sample(2, steps=2).dtype == model.loss(x, LABEL).value.dtype == torch.float64
    assert model.noise(2).dtype == torch.float64 and single.noise(2).dtype == torch.float32
    noise = torch.randn(2, 1, 28, 28, generator=generator())
    torch.testing.assert_close(
        single.predictor()(noise, 9), model.predictor()(noise.double(), 9).float(), rtol=1e-4, atol=1e-4
    )
    # The schedule is the same to the last digit whatever the path of types.
    assert torch.equal(model.signal, exact_like(model)) and torch.equal(single.signal, exact_like(model))


def exact_like(model):
    return alpha_bars(cosine_schedule(20)).sqrt()


def test_weights_come_back_and_the_schedule_is_no_weight():
    model, other = image_model(), image_model(seed=7)
    weights = model.state_dict()
    assert all(name.startswith("network.") for name in weights)
    assert not torch.equal(model.sample(2, generator(), steps=2), other.sample(2, generator(), steps=2))
    other.load_state_dict(weights)
    assert torch.equal(model.sample(2, generator(), steps=2), other.sample(2, generator(), steps=2))
    bounds = [m.elbo(IMAGES, LABEL, terms=3, generator=generator()) for m in (model, other)]
    assert torch.equal(*bounds)


def test_training_comes_near_the_conditional_variance():
    """Of ε, ᾱ c/(ᾱ c + 1 - ᾱ) for a coordinate of variance c: from 1, a network that starts at zero."""
    torch.manual_seed(0)
    model = DDPM(TimeMLP(2, 32), (2,), cosine_schedule(20))
    variances = torch.tensor([0.04, 1.0])
    x = variances.sqrt() * torch.randn(20_000, 2) + torch.tensor([1.0, 0.0])
    assert model.loss(x).value.mean().item() == pytest.approx(1, abs=0.05)
    trained = fit(model, x, Settings(steps=300, batch_size=128, learning_rate=5e-3), progress=False).model
    signal = alpha_bars(cosine_schedule(20))[1:, None] * variances
    least = (signal / (signal + 1 - alpha_bars(cosine_schedule(20))[1:, None])).mean().item()
    with torch.no_grad():
        assert least - 0.02 < trained.loss(x).value.mean().item() < least + 0.1 < 0.6


# What it is, and bad input


def test_it_learns_samples_scores_and_bounds_and_has_no_density():
    model = exact_model()
    assert all(isinstance(model, question) for question in (Learner, Sampler, Score, Bound))
    assert not isinstance(model, Density | Energy | Code)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"event_shape": ()}, ValueError, "event_shape"),
        ({"event_shape": (0,)}, ValueError, "event_shape"),
        ({"betas": [0.1, 0.2]}, TypeError, "betas must be a floating tensor"),
        ({"betas": torch.tensor([0.1])}, ValueError, "betas must hold at least two steps, got 1"),
        ({"betas": torch.tensor([0.1, 1.0])}, ValueError, "betas must be above 0 and below 1"),
        ({"predicts": "noise"}, ValueError, "a prediction must be one of eps, x0, v, score, got 'noise'"),
        ({"variance": "small"}, ValueError, "variance must be one of posterior, forward, learned, got 'small'"),
        ({"objective": "vlb"}, ValueError, "objective must be one of simple, bound, hybrid, got 'vlb'"),
        ({"objective": "hybrid"}, ValueError, "'hybrid' goes with variance 'learned'"),
        ({"variance": "learned"}, ValueError, "'simple' cannot learn one"),
        ({"levels": 1}, ValueError, "levels must be an integer of at least 2, or None, got 1"),
        ({"levels": True}, ValueError, "levels"),
        ({"levels": 256.0}, ValueError, "levels"),
        ({"label_dropout": 1.1}, ValueError, "label_dropout must be a number from 0 to 1, got 1.1"),
        ({"label_dropout": -0.1}, ValueError, "label_dropout"),
        ({"label_dropout": math.nan}, ValueError, "label_dropout"),
        ({"label_dropout": "0.1"}, ValueError, "label_dropout"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, match):
    good = {"network": TimeMLP(2, 8), "event_shape": (2,), "betas": linear_schedule(5)}
    DDPM(**good)
    with pytest.raises(error, match=match):
        DDPM(**good | arguments)


@pytest.mark.parametrize("method", ["loss", "elbo", "term", "prior_kl", "score", "scaled"])
def test_bad_examples_are_refused(method, refuses_bad_examples):
    model, good = exact_model(), torch.zeros(3, 2).double()
    model.predictor()
    call = {"term": lambda x: model.term(x, 1), "score": lambda x: model.score(x, 1)}.get(
        method, getattr(model, method)
    )
    refuses_bad_examples(call, good)


def test_bad_labels_are_refused():
    model, plain = labelled(), exact_model()
    good = torch.tensor([2, 0, 1])
    for call in (
        model.loss,
        model.elbo,
        lambda x, label: model.term(x, 2, label),
        lambda x, label: model.score(x, 2, label),
        lambda x, label: model.sample(3, label=label),
        lambda x, label: model.sample(3, label=label, guidance=1.0),
    ):
        call(X, good)
        for bad, error in (
            (good + 1, ValueError),
            (good[:2], ValueError),
            (good.float(), TypeError),
            (good[:, None], ValueError),
            ([2, 0, 1], TypeError),
        ):
            with pytest.raises(error, match="label must be"):
                call(X, bad)
    with pytest.raises(ValueError, match=r"label must be .* got None"):
        model.loss(X)
    for call in (plain.loss, plain.elbo, lambda x, label: plain.score(x, 1, label)):
        with pytest.raises(ValueError, match="label must be None: this model has no classes"):
            call(X, good)
    with pytest.raises(ValueError, match="label must be None"):
        plain.predictor(good)
    with pytest.raises(ValueError, match="label must be given for guidance"):
        model.predictor(guidance=1.0)
    for bad in (math.inf, math.nan, "1"):
        with pytest.raises(ValueError, match="guidance must be a finite number"):
            model.predictor(good, bad)


def test_bad_choices_are_refused():
    model = exact_model()
    for n in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="n must be a positive integer"):
            model.sample(n)
        with pytest.raises(ValueError, match="n must be a positive integer"):
            model.noise(n)
    for t in (0, 7, 2.5, True, -1):
        with pytest.raises(ValueError, match="t must be an integer from 1 to 6"):
            model.term(X, t)
    for t in (0.9, 6.1, math.nan):
        for call in (lambda t: model.score(X, t), lambda t: model.predictor()(X, t)):
            with pytest.raises(ValueError, match="t must be from 1 to 6"):
                call(t)
    for terms in (0, 1, 2.0, True):
        with pytest.raises(ValueError, match="terms must be an integer of at least 2, or None"):
            model.elbo(X, terms=terms)
    with pytest.raises(ValueError, match="steps must be at most T = 6"):
        model.sample(2, steps=7)


def test_a_network_of_the_wrong_shape_is_named():
    for variance, network, expected in (
        ("posterior", Two(), r"network must answer with the shape \(3, 2\), got \(3, 4\)"),
        ("learned", Exact(), r"network must answer with the shape \(3, 4\), got \(3, 2\)"),
    ):
        objective = "bound" if variance == "learned" else "simple"
        model = DDPM(network, (D,), torch.tensor(BETAS), variance=variance, objective=objective).double()
        with pytest.raises(ValueError, match=expected):
            model.loss(X)


def test_samples_that_are_lost_are_named():
    model = DDPM(Fixed(math.nan), (D,), torch.tensor(BETAS)).double()
    with pytest.raises(FloatingPointError, match="5 of 5 samples are not finite"):
        model.sample(5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
def test_cuda_agrees_with_the_cpu():
    model = image_model().double()
    noise = torch.randn(2, 1, 28, 28, generator=generator(), dtype=torch.float64)
    expected = model.predictor(LABEL[:2], 1.0)(noise, 9), ddim(model.predictor(), noise, model.grid(4))
    terms = model.prior_kl(IMAGES.double())
    model.cuda()
    label, on_device = LABEL[:2].cuda(), noise.cuda()
    got = model.predictor(label, 1.0)(on_device, 9), ddim(model.predictor(), on_device, model.grid(4))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other)
    torch.testing.assert_close(model.prior_kl(IMAGES.double().cuda()).cpu(), terms)
    source = torch.Generator("cuda").manual_seed(0)
    assert model.sample(2, source, label, 1.0, steps=2).is_cuda
    assert model.loss(IMAGES.double().cuda(), LABEL.cuda()).value.is_cuda
    assert model.elbo(IMAGES.double().cuda(), LABEL.cuda(), 2, source).is_cuda
