"""`check` passes our models, fails broken twins with the fault's name, and says what it left out."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal

from companion import models
from companion.conformance import ConformanceError, check
from companion.models import BernoulliMixture, GaussianMixture, IndependentPixels, Loss, ProbabilisticPCA


def ours(name):
    torch.manual_seed(0)
    model = {
        "pixels": lambda: IndependentPixels((1, 2, 2)),
        "gaussians": lambda: GaussianMixture(3, 2),
        "pca": lambda: ProbabilisticPCA(2, 1),
        "prototypes": lambda: BernoulliMixture(3, (1, 2, 2)),
    }[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)  # at its start a model may be uniform
    return model.double()


@pytest.mark.parametrize("name", ["pixels", "gaussians", "pca", "prototypes"])
def test_our_models_pass(name):
    real = {"event_shape": (2,), "support": "real"}
    report = check(ours(name), **(real if name in ("gaussians", "pca") else {"support": "binary"}))
    assert report.passed and not report.failures and all(report.outcomes), report
    names = [outcome.name for outcome in report.outcomes]
    assert any(name.startswith("log_prob") for name in names) and "sample agrees with log_prob" in names, report


@pytest.mark.parametrize(
    "arguments",
    [
        {"event_shape": (1, 2, 2)},
        {"event_shape": (1, 2, 2), "samples": 5},
        {"event_shape": (1, 2, 2), "beta": 4.0},
        {"event_shape": (1, 4, 4), "network": "conv"},
        {"event_shape": (1, 2, 2), "likelihood": "gaussian", "decoder_scale": 0.5},
        {"event_shape": (1, 28, 28)},
    ],
    ids=str,
)
def test_our_vae_passes(arguments):
    torch.manual_seed(0)
    model = models.VAE(latent_dim=2, hidden=16, **arguments).double()
    report = check(model, support="real" if "likelihood" in arguments else "binary", repeats=50)
    assert report.passed and not report.failures and len(report.outcomes) >= 4, report


class VAE(nn.Module):
    """The smallest that answers every question of a VAE; `broken` names its fault."""

    def __init__(self, event_shape=(1, 2, 2), broken=""):
        super().__init__()
        self.event_shape, self.broken = event_shape, broken
        self.d = math.prod(event_shape)
        generator = torch.Generator().manual_seed(0)
        self.enc = nn.Parameter(0.5 * torch.randn(self.d, 4, generator=generator).double() / self.d**0.5)
        self.dec = nn.Parameter(1.5 * torch.randn(2, self.d, generator=generator).double())
        self.bias = nn.Parameter(torch.randn(self.d, generator=generator).double() - 0.5)

    def encode(self, x):
        mean, log_variance = ((x.flatten(1) - 0.5) @ self.enc + 0.2).chunk(2, -1)
        return Independent(Normal(mean, (log_variance / 2).exp()), 1)

    def decode(self, z):
        logits = (z @ self.dec + self.bias).reshape(*z.shape[:-1], *self.event_shape)
        return Independent(Bernoulli(logits=logits), len(self.event_shape))

    def terms(self, x):
        q = self.encode(x)
        kl = torch.distributions.kl_divergence(q.base_dist, Normal(torch.zeros(2).double(), 1.0)).sum(1)
        log_likelihood = self.likelihood(x, q.rsample((1,)))[0]
        return log_likelihood / (self.d if self.broken == "mean" else 1), kl * (-1 if self.broken == "sign" else 1)

    def likelihood(self, x, z):
        decoded = self.decode(z)
        if self.broken == "sigmoid twice":
            decoded = Independent(Bernoulli(logits=decoded.base_dist.probs), len(self.event_shape))
        return decoded.log_prob(x)

    def elbo(self, x):
        reconstruction, kl = self.terms(x)
        return reconstruction - kl

    def importance_bound(self, x, samples):
        q = self.encode(x)
        z = q.rsample((samples,))
        prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        weights = self.likelihood(x, z) + prior - q.log_prob(z)
        return weights.mean(0) if self.broken == "mean of logs" else weights.logsumexp(0) - math.log(samples)

    def loss(self, x):
        reconstruction, kl = self.terms(x)
        parts = {"reconstruction": -reconstruction, "prior matching": kl}
        if self.broken == "loss":
            parts["reconstruction"] = parts["reconstruction"] / self.d
        return Loss(sum(parts.values()), parts, "nats")

    @torch.no_grad()
    def sample(self, n, generator=None):
        decoded = self.decode(torch.randn(n, 2, generator=generator, dtype=torch.float64))
        if self.broken == "sampler":
            return decoded.mean
        if self.broken == "cold":
            decoded = Independent(Bernoulli(logits=2 * decoded.base_dist.logits), len(self.event_shape))
        return torch.bernoulli(decoded.mean, generator=generator)


FAULTS = {
    "sign": "the KL has the wrong sign",
    "mean": "dimensions instead of a sum",
    "sigmoid twice": "elbo is that of encode and decode",
    "mean of logs": "the mean of the logarithms",
    "loss": "the reconstruction is a mean over",
    "sampler": "means instead of draws",
}


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 28, 28)], ids=["small", "large"])
def test_a_vae_and_its_broken_twins(shape):
    report = check(VAE(shape), support="binary")
    assert report.passed and all(report.outcomes), report
    assert ("importance weights sum to 1" in repr(report)) == (shape == (1, 2, 2))
    for broken, words in FAULTS.items():
        report = check(VAE(shape, broken), support="binary", repeats=50)
        assert not report and any(words in repr(failure) for failure in report.failures), report
        with pytest.raises(ConformanceError):
            report.raise_if_failed()


def test_a_small_vae_with_a_cold_sampler():
    report = check(VAE(broken="cold"), support="binary")
    assert [failure.name for failure in report.failures] == ["sample agrees with importance_bound"], report


def test_what_cannot_be_run_is_skipped_with_its_reason():
    torch.manual_seed(0)
    report = check(IndependentPixels((1, 28, 28)), support="binary")
    assert report.passed and report.skipped == {
        "log_prob is normalised": "784 binary values have 2^784 states; at most 2^16 are enumerated"
    }
    report = check(GaussianMixture(3, 5).double(), torch.randn(4, 5).double())
    assert "quadrature is for one or two real dimensions, these events have 5" in report.skipped.values()
    assert report.passed and "sample agrees with log_prob" in repr(report)  # by gradient


class Score:
    """Not a module: a score and an energy of a Gaussian."""

    def __init__(self, sign):
        self.sign = sign

    def energy(self, x):
        return 0.5 * x.square().sum(1)

    def score(self, x):
        return self.sign * -x


def test_score_against_energy():
    assert check(Score(1), torch.randn(5, 3))
    assert "the sign is inverted" in repr(check(Score(-1), torch.randn(5, 3)))


def test_a_model_that_raises_is_reported():
    class Raises(Score):
        def log_prob(self, x):
            raise RuntimeError("no density today")

    report = check(Raises(1), torch.randn(5, 2))
    assert "RuntimeError: no density today" in repr(report.failures[0])
    assert "FAILED" in repr(report)


def test_bad_arguments():
    model = ours("pixels")
    for kwargs, words in (
        ({}, "the kind of data is not known"),
        ({"support": "complex"}, "support must be one of binary, real"),
    ):
        with pytest.raises(ValueError, match=words):
            check(model, **kwargs)
    with pytest.raises(ValueError, match="give x or event_shape"):
        check(ours("gaussians"), support="real")
    with pytest.raises(ValueError, match="answers none of the questions"):
        check(nn.Linear(2, 2), torch.randn(3, 2))
