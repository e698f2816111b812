"""The VAE against torch.distributions, quadrature and a model with a closed evidence."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from companion.data import load
from companion.models import VAE, Autoencoder, ProbabilisticPCA

EVENT = (1, 4, 4)


def vae(seed=0, **arguments):
    """A small VAE in float64 whose networks do something: weights three times as large as at the start."""
    torch.manual_seed(seed)
    model = VAE(EVENT, latent_dim=2, hidden=16, **arguments).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


def binary(n=5, seed=1):
    return torch.randint(0, 2, (n, *EVENT), generator=torch.Generator().manual_seed(seed)).double()


def linear_gaussian():
    """A Gaussian VAE with linear networks, and the probabilistic PCA that it equals, posterior included."""
    torch.manual_seed(3)
    pca = ProbabilisticPCA(16, 2).double()
    model = VAE(EVENT, latent_dim=2, likelihood="gaussian", decoder_scale=0.7).double()
    with torch.no_grad():
        pca.mean.normal_()
        pca.log_scale.fill_(math.log(0.7))
        # Orthogonal columns make the posterior diagonal, so that the encoder can hit it.
        pca.weight.copy_(torch.linalg.qr(torch.randn(16, 2).double()).Q * torch.tensor([1.5, 0.6]))
    decoder = nn.Linear(2, 16).double()
    encoder = nn.Linear(16, 4).double()
    precision = pca.posterior_precision()
    with torch.no_grad():
        decoder.weight.copy_(pca.weight)
        decoder.bias.copy_(pca.mean)
        gain = torch.linalg.solve(precision, pca.weight.T) / 0.49
        encoder.weight.copy_(torch.cat([gain, torch.zeros(2, 16)]))
        encoder.bias.copy_(torch.cat([-gain @ pca.mean, -precision.diagonal().log()]))
    model.encoder = nn.Sequential(nn.Flatten(), encoder)
    model.decoder = nn.Sequential(decoder, nn.Unflatten(1, EVENT))
    return model, pca


def test_bound_is_the_evidence_when_the_encoder_is_the_posterior():
    model, pca = linear_gaussian()
    x = torch.randn(4, *EVENT, dtype=torch.float64)
    exact = pca.log_prob(x.flatten(1))
    # Every importance weight is then the evidence itself; one draw of the bound varies, its mean does not.
    torch.testing.assert_close(model.importance_bound(x, 3), exact.detach())
    torch.manual_seed(0)
    draws = torch.stack([model.elbo(x) for _ in range(4000)]).detach()
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 4000**0.5).all()


def test_bounds_are_ordered_below_the_evidence():
    model, pca = linear_gaussian()
    with torch.no_grad():
        model.encoder[1].bias[2:] += 1.5  # a posterior that is too wide
    x = torch.randn(4, *EVENT, dtype=torch.float64)
    exact = pca.log_prob(x.flatten(1)).detach()
    torch.manual_seed(0)
    means, errors = [], []
    for samples in (1, 5, 50):
        draws = torch.stack([model.importance_bound(x, samples) for _ in range(400)])
        means.append(draws.mean(0))
        errors.append(draws.std(0) / 20)
    assert (means[0] + 5 * errors[0] < means[1]).all() and (means[1] + 2 * errors[1] < means[2]).all()
    assert (means[2] < exact + 5 * errors[2]).all()
    assert (exact - means[0] > 0.5).all()


@pytest.mark.parametrize("arguments", [{}, {"likelihood": "gaussian", "decoder_scale": 0.3}])
def test_loss_is_that_of_torch_distributions(arguments):
    model, x = vae(**arguments), binary()
    torch.manual_seed(5)
    loss = model.loss(x)
    torch.manual_seed(5)
    q = model.encode(x)
    z = q.rsample((1,))[0]
    output = model.decoder(z)
    if arguments:
        decoder = Independent(Normal(output, 0.3), 3)
    else:
        decoder = Independent(Bernoulli(logits=output), 3)
    kl = kl_divergence(q.base_dist, Normal(torch.zeros(2), torch.ones(2))).sum(-1)
    torch.testing.assert_close(loss.parts["reconstruction"], -decoder.log_prob(x))
    torch.testing.assert_close(loss.parts["prior matching"], kl)
    torch.testing.assert_close(loss.value, sum(loss.parts.values()))
    assert loss.unit == "nats" and loss.value.shape == (5,)
    torch.testing.assert_close(model.decode(z).log_prob(x), decoder.log_prob(x))
    torch.manual_seed(5)
    torch.testing.assert_close(model.elbo(x), -loss.value)


def test_evidence_by_quadrature_lies_above_the_bounds_and_near_the_best():
    model, x = vae(), binary()
    axis = torch.linspace(-8, 8, 161, dtype=torch.float64)
    nodes = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log_prior = Normal(0.0, 1.0).log_prob(nodes).sum(-1)
    with torch.no_grad():
        log_likelihood = torch.stack([model.decode(nodes).log_prob(row) for row in x])
    exact = (log_prior + log_likelihood).logsumexp(1) + 2 * math.log(0.1)
    torch.manual_seed(0)
    bounds = torch.stack([model.elbo(x) for _ in range(2000)]).detach()
    assert (bounds.mean(0) < exact + 5 * bounds.std(0) / 2000**0.5).all()
    weights = model.log_weights(x, 100_000).exp()
    error = weights.std(0) / 100_000**0.5
    assert ((weights.mean(0) - exact.exp()).abs() < 5 * error).all()


def test_density_of_all_images_adds_up_to_one():
    torch.manual_seed(0)
    model = VAE((1, 2, 2), latent_dim=1, hidden=8).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    axis = torch.linspace(-9, 9, 301, dtype=torch.float64)[:, None]
    images = (
        torch.tensor([[i >> 3 & 1, i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(16)]).double().reshape(16, 1, 2, 2)
    )
    with torch.no_grad():
        log_p = torch.stack([model.decode(axis).log_prob(x) + Normal(0.0, 1.0).log_prob(axis[:, 0]) for x in images])
    exact = log_p.exp().sum(1) * 0.06
    assert exact.sum().item() == pytest.approx(1, abs=1e-10)
    n = 40_000
    samples = model.sample(n, generator=torch.Generator().manual_seed(0)).flatten(1)
    counts = torch.bincount((samples @ torch.tensor([8.0, 4, 2, 1]).double()).long(), minlength=16)
    chi_square = ((counts - n * exact) ** 2 / (n * exact)).sum().item()
    assert chi_square < 15 + 5 * math.sqrt(30)


def test_gaussian_samples_have_the_moments_of_the_model():
    model, pca = linear_gaussian()
    samples = model.sample(50_000, generator=torch.Generator().manual_seed(0)).flatten(1)
    losses = -pca.log_prob(samples).detach()
    covariance = pca.weight @ pca.weight.T + 0.49 * torch.eye(16)
    entropy = 0.5 * (torch.logdet(covariance) + 16 * math.log(2 * math.pi * math.e)).item()
    assert abs(losses.mean() - entropy) < 5 * losses.std() / 50_000**0.5


def test_importance_weighted_loss_is_the_bound_with_gradients():
    model, x = vae(samples=8), binary()
    torch.manual_seed(2)
    loss = model.loss(x)
    torch.manual_seed(2)
    torch.testing.assert_close(loss.value.detach(), -model.importance_bound(x, 8))
    loss.value.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


def test_chunks_make_no_difference_to_the_estimate(monkeypatch):
    model, x = vae(), binary(3)
    exact = model.importance_bound(x, 20_000)
    monkeypatch.setattr("companion.models.vae.ROWS", 7)
    assert model.log_weights(x, 25).shape == (25, 3)
    torch.testing.assert_close(model.importance_bound(x, 20_000), exact, atol=0.2, rtol=0)


def test_beta_weighs_the_divergence_and_says_so():
    x = binary()
    torch.manual_seed(1)
    plain = vae().loss(x)
    model = vae(beta=4.0)
    torch.manual_seed(1)
    first = vae()
    model.load_state_dict(first.state_dict())
    torch.manual_seed(7)
    plain = first.loss(x)
    torch.manual_seed(7)
    weighted = model.loss(x)
    torch.testing.assert_close(weighted.parts["prior matching"], 4 * plain.parts["prior matching"])
    torch.testing.assert_close(weighted.parts["reconstruction"], plain.parts["reconstruction"])
    assert weighted.unit == "nats, the KL weighted by 4"


def test_learned_scale_finds_the_noise_of_the_data():
    torch.manual_seed(0)
    data = torch.randn(4096, 1).expand(-1, 16).reshape(-1, *EVENT) + 0.3 * torch.randn(4096, *EVENT)
    model = VAE(EVENT, latent_dim=1, hidden=32, likelihood="gaussian", decoder_scale="learned")
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(600):
        loss = model.loss(data[torch.randint(0, 4096, (256,))]).value.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.log_scale.exp().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_both_networks_learn_real_digits(network):
    x = load("mnist6k", "test").binarized(seed=0)
    torch.manual_seed(0)
    model = VAE(network=network, latent_dim=8, hidden=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        loss = model.loss(x[step * 16 % 992 :][:64]).value.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 230  # from 543 nats, a coin for every pixel
    assert model.sample(2).shape == (2, 1, 28, 28)


def test_bfloat16_is_near_float32_in_training_and_not_used_for_likelihoods():
    x = load("mnist6k", "test").binarized(seed=0)[:64]
    torch.manual_seed(0)
    model = VAE()
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
    assert torch.equal(inside, model.importance_bound(x, 4))


def test_outliers_do_not_overflow():
    model = vae(likelihood="gaussian")
    assert torch.isfinite(model.float().loss(torch.full((1, *EVENT), 1e6)).value).all()


def test_autoencoder_has_a_code_and_a_squared_error():
    torch.manual_seed(0)
    model, x = Autoencoder(EVENT, latent_dim=3, hidden=8), torch.rand(5, *EVENT)
    loss = model.loss(x)
    reconstruction = model.reconstruct(model.code(x))
    torch.testing.assert_close(loss.value, ((reconstruction - x) ** 2).sum((1, 2, 3)))
    assert model.code(x).shape == (5, 3) and loss.unit == "squared error"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "resnet"}, "network must be 'mlp' or 'conv', got 'resnet'"),
        ({"likelihood": "poisson"}, "likelihood must be 'bernoulli' or 'gaussian', got 'poisson'"),
        ({"decoder_scale": 0.5}, "decoder_scale is for a Gaussian decoder"),
        (
            {"likelihood": "gaussian", "decoder_scale": 0.0},
            "decoder_scale must be a positive number or 'learned', got 0",
        ),
        ({"beta": -1.0}, r"beta must be a finite number, not negative, got -1\.0"),
        ({"beta": 2.0, "samples": 5}, "the importance-weighted bound has no beta"),
        ({"latent_dim": 0}, "latent_dim must be a positive integer, got 0"),
        ({"network": "conv", "event_shape": (1, 30, 30)}, "sides divisible by 4"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE(**arguments)


def test_bad_input_is_refused():
    model = vae()
    with pytest.raises(ValueError, match=r"x must hold only 0 and 1, got 0\.5; binarise it first"):
        model.loss(torch.full((1, *EVENT), 0.5).double())
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 1, 4, 4\), got \(1, 16\)"):
        model.elbo(torch.zeros(1, 16).double())
    with pytest.raises(ValueError, match=r"z must have shape \(batch, 2\), got \(1, 3\)"):
        model.decode(torch.zeros(1, 3).double())
    with pytest.raises(ValueError, match="samples must be a positive integer, got 0"):
        model.importance_bound(binary(), 0)
