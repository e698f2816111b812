"""The HVAE against a tower of linear Gaussians, where everything has a closed form, and against quadrature."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from companion.conformance import check
from companion.data import load
from companion.models import HVAE
from companion.training import Settings, fit

EVENT = (1, 4, 4)
KINDS = ("ladder", "bottom-up")
NOISE = 0.7
NAN = torch.tensor(math.nan, dtype=torch.float64)


def hvae(seed=0, event_shape=EVENT, latent_dims=(2, 1), hidden=(16, 8), scale=2.0, batch_norm=False, **arguments):
    """A small HVAE in float64 whose networks do something: weights larger than at the start."""
    torch.manual_seed(seed)
    model = HVAE(event_shape, latent_dims, hidden=hidden, batch_norm=batch_norm, **arguments).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model


def binary(n=5, seed=1):
    return torch.randint(0, 2, (n, *EVENT), generator=torch.Generator().manual_seed(seed)).double()


class Tower:
    """x = W_1 z_1 + b_1 + noise, z_{t-1} = W_t z_t + b_t + noise, all of it random but for orthogonal directions,
    so that every posterior is a Gaussian with a diagonal covariance and an HVAE without hidden layers can hit it."""

    def __init__(self, dims=(6, 4, 3), seed=0):
        rng = np.random.default_rng(seed)
        below, bottom, *_ = dims
        self.weights = [np.linalg.qr(rng.normal(size=(below, bottom)))[0] * rng.uniform(0.6, 1.6, bottom)]
        self.offsets, self.variances = [rng.normal(size=below)], [np.full(below, NOISE**2)]
        for below, above in pairwise(dims[1:]):
            axes = np.eye(below)[rng.permutation(below)[:above]].T
            self.weights.append(axes * rng.uniform(0.6, 1.6, above) * rng.choice([-1, 1], above))
            self.offsets.append(rng.normal(size=below))
            self.variances.append(rng.uniform(0.3, 0.9, below))
        self.dims = dims

    def given(self, level):
        """A, c and C with p(x|z_level) = N(A z + c, C)."""
        a, c, covariance = np.eye(self.dims[0]), np.zeros(self.dims[0]), np.zeros((self.dims[0],) * 2)
        for weight, offset, variance in zip(
            self.weights[:level], self.offsets[:level], self.variances[:level], strict=True
        ):
            c, covariance = c + a @ offset, covariance + (a * variance) @ a.T
            a = a @ weight
        return a, c, covariance

    def prior(self, level):
        """Mean and covariance of z_level."""
        mean, covariance = np.zeros(self.dims[-1]), np.eye(self.dims[-1])
        for t in range(len(self.weights) - 1, level - 1, -1):
            weight = self.weights[t]
            mean = weight @ mean + self.offsets[t]
            covariance = weight @ covariance @ weight.T + np.diag(self.variances[t])
        return mean, covariance

    def evidence(self):
        a, c, covariance = self.given(len(self.weights))
        return multivariate_normal(c, a @ a.T + covariance)

    def model(self, inference):
        """The HVAE that is this tower, with the true posterior for its q."""
        dims = self.dims
        arguments = dict(likelihood="gaussian", decoder_scale=NOISE, inference=inference, depth=0)
        model = HVAE(dims[:1], dims[1:], hidden=dims[1:], **arguments).double()
        set_linear(model.decoder[0], self.weights[0], self.offsets[0])
        torch.nn.init.constant_(model.log_scale, math.log(NOISE))  # not rounded to single precision
        for down, weight, offset, variance in zip(
            model.down, self.weights[1:], self.offsets[1:], self.variances[1:], strict=True
        ):
            set_linear(down[0], weight, offset, variance)
        top = len(dims) - 1
        for level, head in enumerate(model.heads, start=1):
            if inference == "bottom-up" and level > 1:
                # p(z_t|z_{t-1}): x adds nothing.
                a, c, noise = self.weights[level - 1], self.offsets[level - 1], np.diag(self.variances[level - 1])
            else:
                a, c, noise = self.given(level)
            gain = a.T @ np.linalg.inv(noise)
            precision, shift = gain @ a, -gain @ c
            if inference == "bottom-up" or level == top:
                mean, covariance = self.prior(level)
                precision = precision + np.linalg.inv(covariance)
                shift = shift + np.linalg.solve(covariance, mean)
            inverse = np.linalg.inv(precision)
            assert np.allclose(inverse, np.diag(np.diag(inverse)))
            set_linear(head, inverse @ gain, inverse @ shift, np.diag(inverse))
        return model

    def draw(self, n, seed=0):
        return torch.tensor(self.evidence().rvs(n, random_state=seed).reshape(n, -1))


def set_linear(layer, weight, offset, variance=None):
    """Make a layer compute `weight @ z + offset` and, below it, what becomes the variance."""
    if variance is not None:
        raw = variance + np.log(-np.expm1(-variance))  # the inverse of softplus
        weight, offset = np.concatenate([weight, 0 * weight]), np.concatenate([offset, raw])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(offset))


def off(model, seed=0):
    """The same model with a q that misses the posterior."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for head in model.heads:
            head.bias.add_(0.4 * torch.randn(head.bias.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("inference", KINDS)
@pytest.mark.parametrize("dims", [(6, 4), (6, 4, 3), (6, 4, 3, 2)])
def test_every_weight_is_the_evidence_where_q_is_the_posterior(inference, dims):
    tower = Tower(dims)
    model, x = tower.model(inference), tower.draw(5)
    exact = torch.tensor(tower.evidence().logpdf(x))
    weights = model.log_weights(x, 20)
    torch.testing.assert_close(weights, exact.expand(20, 5), atol=1e-9, rtol=0)
    torch.manual_seed(0)
    draws = torch.stack([model.elbo(x) for _ in range(2000)]).detach()
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 2000**0.5 + 1e-9).all()


@pytest.mark.parametrize("inference", KINDS)
def test_bounds_are_ordered_below_the_evidence(inference):
    tower = Tower()
    model, x = off(tower.model(inference)), tower.draw(4)
    exact = torch.tensor(tower.evidence().logpdf(x))
    torch.manual_seed(0)
    means, errors = [], []
    for samples in (1, 5, 50):
        draws = torch.stack([model.importance_bound(x, samples) for _ in range(1000)])
        means.append(draws.mean(0))
        errors.append(draws.std(0) / 1000**0.5)
    bound = torch.stack([model.elbo(x) for _ in range(1000)]).detach()
    error = (bound.var(0) / 1000 + errors[0] ** 2).sqrt()
    assert ((bound.mean(0) - means[0]).abs() < 5 * error).all()
    assert (means[0] + 5 * errors[0] < means[1]).all() and (means[1] + 2 * errors[1] < means[2]).all()
    assert (means[2] < exact + 5 * errors[2]).all() and (exact - means[0] > 0.1).all()


@pytest.mark.parametrize("inference", KINDS)
def test_what_the_levels_cost_adds_up_to_the_divergence_of_the_joint_gaussians(inference):
    tower = Tower()
    model, x = off(tower.model(inference)), tower.draw(1)
    # Draws of z_{1:2} are affine in the noise: the moments of the joint q, and of the joint prior, by regression.
    levels = model.infer(x, 200_000)
    z = torch.cat([level.z for level in levels], -1)[:, 0].detach().numpy()
    w, s = tower.weights[1], np.diag(tower.variances[1])
    mean = np.concatenate([tower.offsets[1], np.zeros(3)])
    prior = np.block([[w @ w.T + s, w], [w.T, np.eye(3)]])
    q_mean, q_covariance = z.mean(0), np.cov(z.T)
    ratio = np.linalg.solve(prior, q_covariance)
    shift = mean - q_mean
    exact = 0.5 * (np.trace(ratio) - 7 + shift @ np.linalg.solve(prior, shift) - np.linalg.slogdet(ratio)[1])
    torch.manual_seed(1)
    with torch.no_grad():
        costs = torch.stack([model.divergences(x)[0] for _ in range(4000)])
    assert costs.shape == (4000, 2)
    total = costs.sum(1)
    # The moments of q have errors too: about 1/√200,000 each.
    assert abs(total.mean() - exact) < 5 * total.std() / 4000**0.5 + 0.02


@pytest.mark.parametrize("inference", KINDS)
def test_samples_have_the_moments_of_the_tower(inference):
    tower = Tower((6, 4, 3, 2))
    model = tower.model(inference)
    samples = model.sample(100_000, generator=torch.Generator().manual_seed(0))
    losses = -tower.evidence().logpdf(samples)
    assert abs(losses.mean() - tower.evidence().entropy()) < 5 * losses.std() / 100_000**0.5
    covariance = np.linalg.inv(np.linalg.cholesky(tower.evidence().cov))
    white = (samples.numpy() - tower.evidence().mean) @ covariance.T
    assert np.abs(white.mean(0)).max() < 5 / 100_000**0.5
    assert np.abs(np.cov(white.T) - np.eye(6)).max() < 5 * (2 / 100_000) ** 0.5


def test_descent_from_a_level_has_the_moments_of_the_chain_below_it():
    tower = Tower((6, 4, 3, 2))
    model = tower.model("ladder")
    z = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    draws = model.descend(z.expand(50_000, 3), level=2, generator=torch.Generator().manual_seed(0)).numpy()
    mean, scale = tower.weights[1] @ z[0].numpy() + tower.offsets[1], np.sqrt(tower.variances[1])
    assert (np.abs(draws.mean(0) - mean) < 5 * scale / 50_000**0.5).all()
    assert np.allclose(draws.std(0), scale, rtol=5 / 100_000**0.5)
    lowest = torch.ones(2, 4).double()
    assert torch.equal(model.descend(lowest, level=1), lowest)


def evidence_by_quadrature(model, x):
    """log p(x) of a model with one number on each of two levels."""
    axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
    step = axis[1] - axis[0]
    with torch.no_grad():
        mean, raw = model.down[0](axis[:, None]).chunk(2, -1)
        scale = torch.nn.functional.softplus(raw).sqrt()
        bottom = torch.linspace(-25, 25, 4001, dtype=torch.float64)
        log_prior = Normal(0.0, 1.0).log_prob(axis)[:, None] + Normal(mean, scale).log_prob(bottom)
        marginal = log_prior.logsumexp(0) + step.log()
        log_likelihood = torch.stack([model.decode(bottom[:, None]).log_prob(row) for row in x])
        return (marginal + log_likelihood).logsumexp(1) + (bottom[1] - bottom[0]).log()


@pytest.mark.parametrize("inference", KINDS)
def test_weights_average_to_the_evidence_and_images_to_one(inference):
    # Larger weights would make q so narrow that the importance weights have no finite variance.
    model = hvae(event_shape=(1, 2, 2), latent_dims=(1, 1), hidden=(8, 8), scale=1.2, inference=inference)
    images = torch.tensor(list(np.ndindex(2, 2, 2, 2))).double().reshape(16, 1, 2, 2)
    exact = evidence_by_quadrature(model, images)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-9)
    torch.manual_seed(0)
    weights = model.log_weights(images, 50_000).exp()
    assert ((weights.mean(0) - exact.exp()).abs() < 5 * weights.std(0) / 50_000**0.5).all()
    samples = model.sample(40_000, generator=torch.Generator().manual_seed(0)).flatten(1)
    counts = torch.bincount((samples @ torch.tensor([8.0, 4, 2, 1]).double()).long(), minlength=16)
    chi_square = ((counts - 40_000 * exact.exp()) ** 2 / (40_000 * exact.exp())).sum().item()
    assert chi_square < 15 + 5 * math.sqrt(30)


@pytest.mark.parametrize("inference", KINDS)
def test_conformance(inference):
    # Larger weights make some importance weights so rare and large that their mean is not yet normal.
    model = hvae(event_shape=(1, 2, 3), latent_dims=(2, 1), scale=1.2, inference=inference).eval()
    check(model, support="binary").raise_if_failed()


@pytest.mark.parametrize("inference", KINDS)
@pytest.mark.parametrize("arguments", [{}, {"likelihood": "gaussian", "decoder_scale": 0.3}])
def test_loss_is_that_of_torch_distributions(inference, arguments):
    model, x = hvae(latent_dims=(3, 2, 1), hidden=(16, 8, 8), inference=inference, **arguments), binary()
    torch.manual_seed(5)
    loss = model.loss(x)
    torch.manual_seed(5)
    levels = model.infer(x)
    one, two, three = (level.z[0] for level in levels)
    output = model.decoder(one)
    if arguments:
        decoder = Independent(Normal(output, 0.3), 3)
    else:
        decoder = Independent(Bernoulli(logits=output), 3)
    torch.testing.assert_close(loss.parts["reconstruction"], -decoder.log_prob(x))
    # The chain below, from the networks alone.
    for z, below, down, level in ((two, one, model.down[0], levels[0]), (three, two, model.down[1], levels[1])):
        mean, raw = down(z).chunk(2, -1)
        prior = Normal(mean, torch.nn.functional.softplus(raw).sqrt())
        torch.testing.assert_close(level.p.mean[0], mean)
        q = Normal(level.q.mean.expand(1, *z.shape[:1], -1)[0], level.q.stddev.expand(1, *z.shape[:1], -1)[0])
        if inference == "ladder":
            cost = kl_divergence(q, prior).sum(-1)
        else:
            cost = (q.log_prob(below) - prior.log_prob(below)).sum(-1)
        number = 1 if level is levels[0] else 2
        torch.testing.assert_close(loss.parts[f"level {number}"], cost)
    top = kl_divergence(levels[2].q, Normal(torch.zeros(1).double(), torch.ones(1).double())).sum(-1)
    torch.testing.assert_close(loss.parts["level 3"], top.reshape(-1))
    torch.testing.assert_close(loss.value, sum(loss.parts.values()))
    assert loss.unit == "nats"
    torch.manual_seed(5)
    torch.testing.assert_close(model.elbo(x), -loss.value)
    torch.manual_seed(5)
    torch.testing.assert_close(model.divergences(x).sum(-1), loss.value - loss.parts["reconstruction"])


def test_ladder_reads_x_at_every_level_and_a_chain_only_at_the_bottom():
    x = binary(1)
    for inference in KINDS:
        model = hvae(inference=inference)
        # The draw of z_1 is fixed by its seed: what else of x reaches level 2?
        top = [model.heads[1](model.up[1](model.up[0](y))) for y in (x, 1 - x) if inference == "ladder"]
        if inference == "ladder":
            assert not torch.allclose(*top)
        else:
            assert model.up[1][0].in_features == 2


def test_free_bits_take_the_gradient_from_a_level_below_them_and_leave_it_above():
    model, x = hvae(), binary(64)
    mean = model.divergences(x).mean(0)
    between = (mean.min() + mean.max()).item() / 2
    cheap, dear = mean.argmin().item(), mean.argmax().item()
    model.free_bits = between
    torch.manual_seed(3)
    loss = model.loss(x)
    assert torch.equal(loss.parts[f"level {cheap + 1}"], torch.full((64,), between, dtype=torch.float64))
    assert loss.unit == f"nats, {between:g} of each level free"
    torch.manual_seed(3)
    costs = model.divergences(x)
    torch.testing.assert_close(loss.parts[f"level {dear + 1}"], costs[:, dear])
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(value):
        return torch.autograd.grad(value.mean(), parameters, retain_graph=True, allow_unused=True)

    dear_one = loss.parts["reconstruction"] + loss.parts[f"level {dear + 1}"]
    for got, expected in zip(gradient(loss.value), gradient(dear_one), strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got, expected)
    model.eval()
    torch.manual_seed(3)
    torch.testing.assert_close(model.loss(x).value, loss.parts["reconstruction"] + costs.sum(1))


def test_warm_up_weighs_the_divergences_by_the_step_and_not_in_evaluation():
    model, x = hvae(warm_up=4), binary()
    for step in (1, 2, 3, 4, 5):
        torch.manual_seed(step)
        loss = model.loss(x)
        torch.manual_seed(step)
        expected = min(1, step / 4) * model.divergences(x)
        torch.testing.assert_close(torch.stack([loss.parts["level 1"], loss.parts["level 2"]], -1), expected)
    assert loss.unit == "nats, divergences weighted by the warm-up"
    model.steps.zero_()
    model.eval()
    torch.manual_seed(0)
    loss = model.loss(x)
    torch.manual_seed(0)
    torch.testing.assert_close(loss.value, -model.elbo(x))
    assert loss.unit == "nats" and model.steps == 0


def test_warm_up_goes_on_where_a_checkpoint_stopped(tmp_path):
    x = binary(32).float()

    def run(steps, folder):
        torch.manual_seed(0)
        model = HVAE(EVENT, (2, 1), hidden=(8, 8), warm_up=10)
        return fit(model, x, Settings(steps=steps, batch_size=8, checkpoint_every=3), folder=folder, progress=False)

    whole = run(6, tmp_path / "whole").model
    assert whole.steps == 6
    again = run(6, tmp_path / "whole").model
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_chunks_make_no_difference_to_the_estimate(monkeypatch):
    model, x = hvae(scale=1.0), binary(3)
    exact = model.importance_bound(x, 20_000)
    monkeypatch.setattr("companion.models.vae.ROWS", 7)
    assert model.log_weights(x, 25).shape == (25, 3)
    torch.testing.assert_close(model.importance_bound(x, 20_000), exact, atol=0.2, rtol=0)


@pytest.mark.parametrize("inference", KINDS)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_both_networks_learn_real_digits(network, inference):
    x = load("mnist6k", "test").binarized(seed=0)
    torch.manual_seed(0)
    model = HVAE(latent_dims=(16, 8), hidden=(64, 32), network=network, inference=inference)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(80):
        loss = model.loss(x[step * 16 % 992 :][:64]).value.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 230  # from 543 nats, a coin for every pixel
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    assert model.sample(2).shape == (2, 1, 28, 28)


def test_batch_norm_keeps_the_examples_apart_in_evaluation():
    model, x = hvae(batch_norm=True), binary(6)
    # Up and down, at two levels.
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in model.modules()) == 4
    together, alone = (model.infer(y)[-1].q.mean[0] for y in (x, torch.cat([x[:1], 1 - x[1:]])))
    assert not torch.allclose(together, alone)
    model.eval()
    together, alone = (model.infer(y)[-1].q.mean[0] for y in (x, x[:1]))
    torch.testing.assert_close(together, alone)


def test_bfloat16_is_near_float32_in_training_and_not_used_for_likelihoods():
    x = load("mnist6k", "test").binarized(seed=0)[:64]
    torch.manual_seed(0)
    model = HVAE(batch_norm=False)
    torch.manual_seed(1)
    exact = model.loss(x).value
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        rough = model.loss(x).value
        torch.manual_seed(2)
        inside = model.importance_bound(x, 4)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.01, atol=0)  # bfloat16 has eight bits
    torch.manual_seed(2)
    levels = model.infer(x, 4)
    pixels = Independent(Bernoulli(logits=model.decoder(levels[0].z.flatten(0, 1)).unflatten(0, (4, 64))), 3)
    weights = pixels.log_prob(x) + sum(
        (level.p.log_prob(level.z) - level.q.log_prob(level.z)).sum(-1) for level in levels
    )
    torch.testing.assert_close(inside, weights.logsumexp(0).detach() - math.log(4), atol=1e-3, rtol=0)


def test_outliers_do_not_overflow():
    model = hvae(likelihood="gaussian").float()
    assert torch.isfinite(model.loss(torch.full((1, *EVENT), 1e6)).value).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none")
@pytest.mark.parametrize("inference", KINDS)
def test_cuda_gives_the_numbers_of_the_processor(inference):
    model, x = hvae(inference=inference), binary(8)
    on_processor = model.importance_bound(x, 4000)
    torch.manual_seed(0)
    on_card = model.cuda().importance_bound(x.cuda(), 4000).cpu()
    torch.testing.assert_close(on_card, on_processor, atol=0.3, rtol=0)
    assert model.sample(3, generator=torch.Generator("cuda").manual_seed(0)).is_cuda
    assert torch.isfinite(model.loss(x.cuda()).value).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inference": "sideways"}, "inference must be 'ladder' or 'bottom-up', got 'sideways'"),
        ({"network": "resnet"}, "network must be 'mlp' or 'conv', got 'resnet'"),
        ({"likelihood": "poisson"}, "likelihood must be 'bernoulli' or 'gaussian', got 'poisson'"),
        ({"decoder_scale": 0.5}, "decoder_scale is for a Gaussian decoder"),
        ({"latent_dims": (8, 0)}, "latent_dims must be a positive integer, got 0"),
        ({"latent_dims": (8, 4, 2)}, "a number for each level, got 3 and 2"),
        ({"latent_dims": (), "hidden": ()}, "a number for each level, got 0 and 0"),
        ({"depth": -1}, "depth must be an integer of at least 0, got -1"),
        ({"depth": 0, "network": "conv"}, "depth is 0, which means linear maps"),
        ({"warm_up": 1.5}, r"warm_up must be an integer of at least 0, got 1\.5"),
        ({"free_bits": -1.0}, r"free_bits must be a finite number, not negative, got -1\.0"),
        ({"free_bits": math.nan}, "free_bits must be a finite number, not negative, got nan"),
        ({"network": "conv", "event_shape": (1, 30, 30)}, "sides divisible by 4"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HVAE(**arguments)


def test_bad_input_is_refused():
    model = hvae()
    with pytest.raises(ValueError, match=r"x must hold only 0 and 1, got 0\.5; binarise it first"):
        model.loss(torch.full((1, *EVENT), 0.5).double())
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 1, 4, 4\), got \(1, 16\)"):
        model.elbo(torch.zeros(1, 16).double())
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN or infinite"):
        model.infer(binary(1).index_put((torch.tensor(0), torch.tensor(0), torch.tensor(1), torch.tensor(2)), NAN))
    with pytest.raises(ValueError, match="level must be from 1 to 2, got 3"):
        model.descend(torch.zeros(1, 1).double(), level=3)
    with pytest.raises(ValueError, match=r"z must have shape \(batch, 1\), got \(1, 2\)"):
        model.descend(torch.zeros(1, 2).double())
    with pytest.raises(ValueError, match=r"z must have shape \(batch, 2\), got \(1, 3\)"):
        model.decode(torch.zeros(1, 3).double())
    with pytest.raises(ValueError, match="samples must be a positive integer, got 0"):
        model.importance_bound(binary(), 0)
    with pytest.raises(ValueError, match="n must be a positive integer, got 0"):
        model.sample(0)
