"""`check` passes our models, fails broken twins with the fault's name, and says what it left out."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    Normal,
    StudentT,
    Uniform,
)

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


class Wrapped(nn.Module):
    """A distribution of torch as a stranger would bring it, in float32."""

    def __init__(self, distribution, factor=1.0, stretch=1.0):
        super().__init__()
        self.distribution, self.factor, self.stretch = distribution, factor, stretch

    def log_prob(self, x):
        return self.distribution.log_prob(x) + math.log(self.factor)

    def sample(self, n):
        return self.stretch * self.distribution.sample((n,))


def plane(family, *parameters):
    return Independent(family(*parameters, validate_args=False), 1, validate_args=False)


STRANGERS = {
    "Laplace": lambda: plane(Laplace, torch.tensor([0.02, -0.1]), 0.5),
    "StudentT": lambda: plane(StudentT, 3.0, torch.zeros(2), 1.0),
    "Uniform": lambda: plane(Uniform, torch.tensor([-1.0, 0.2]), torch.tensor([0.7, 1.9])),
    "narrow mixture": lambda: MixtureSameFamily(
        Categorical(torch.ones(8)), plane(Normal, 2 * torch.randn(8, 2, generator=torch.manual_seed(0)), 0.01)
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_distributions_of_torch_pass_and_their_twins_fail(name):
    shape = {"event_shape": (2,), "support": "real"}
    report = check(Wrapped(STRANGERS[name]()), **shape)
    assert report.passed and all(report.outcomes) and len(report.outcomes) == 3, report
    for factor in (0.99, 1.01):
        report = check(Wrapped(STRANGERS[name](), factor), **shape)
        assert [failure.name for failure in report.failures] == ["log_prob integrates to 1"], report
    report = check(Wrapped(STRANGERS[name](), stretch=1.1), **shape)
    assert [failure.name for failure in report.failures] == ["sample agrees with log_prob"], report


def test_events_of_any_shape_with_one_or_two_values():
    normal = Wrapped(Normal(torch.tensor(0.3), 1.0))
    assert len(check(normal, event_shape=(), support="real").raise_if_failed().outcomes) == 3
    image = Wrapped(Independent(Normal(torch.zeros(1, 2, 1), 1.0), 3))
    assert len(check(image, event_shape=(1, 2, 1), support="real").raise_if_failed().outcomes) == 3


def test_a_support_that_raises_is_undecided_and_the_report_says_what_to_do():
    report = check(
        Wrapped(Independent(LogNormal(torch.zeros(1), 1.0, validate_args=True), 1)), event_shape=(1,), support="real"
    )
    assert not report.failures and "validate_args=False" in repr(report), report
    report = check(Wrapped(plane(LogNormal, torch.zeros(1), 1.0)), event_shape=(1,), support="real")
    assert "It must be -inf where the density is zero" in repr(report.failures[0])


def test_categorical_pixels():
    states = torch.cartesian_prod(*[torch.arange(4)] * 3)
    logits = torch.randn(3, 4, generator=torch.manual_seed(0))
    assert check(Wrapped(Independent(Categorical(logits=logits), 1)), states=states).raise_if_failed()
    with pytest.raises(ValueError, match=r"x has the dtype torch\.int64: give all states of a discrete model"):
        check(Wrapped(Independent(Categorical(logits=logits), 1)), states[:5])


def test_methods_of_other_conventions_are_skipped_with_their_signature():
    class Denoiser(Score):
        def score(self, x, t):
            return -x

        def log_prob(self, x):
            return -x.square().sum(1) / 2

        def sample(self, *, count):
            return torch.randn(count, 2)

        def loss(self, x):
            return x.square().mean()

    report = check(Denoiser(1), torch.randn(5, 2))
    assert "score(x) does not fit score(x, t), missing a required argument: 't'" in report.skipped["score"]
    assert "sample(n) does not fit sample(*, count)" in report.skipped["sample"]
    assert [failure.name for failure in report.failures] == ["log_prob integrates to 1"]
    # A question without an answer is no error of the caller.
    report = check(Wrapped(plane(Normal, torch.zeros(5), 1.0)), event_shape=(5,), support="real")
    assert report.skipped["log_prob is normalised"].endswith("these events have 5")


def test_faults_that_raise_say_what_was_expected():
    class Shaped(Wrapped):
        sample = property(lambda self: self.distribution.sample)

    shape = {"event_shape": (2,), "support": "real"}
    report = repr(check(Shaped(plane(Normal, torch.zeros(2), 1.0)), **shape))
    assert "for torch.distributions it is sample((16,))" in report

    class Lines(Wrapped):
        def log_prob(self, x):
            raise RuntimeError("one\ntwo")

    report = check(Lines(plane(Normal, torch.zeros(2), 1.0)), **shape)
    assert "RuntimeError: one" in repr(report) and "two" not in repr(report)

    class Tuples(VAE):
        def encode(self, x):
            return x.flatten(1) @ self.enc, 1.0

    report = check(Tuples(), support="binary", repeats=20)
    assert "encode(x) must be a distribution, as of torch.distributions, got tuple" in repr(report)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"event_shape": 2}, TypeError, r"event_shape must be a tuple of integers, such as \(2,\), got 2"),
        ({"event_shape": (3,), "x": torch.zeros(4, 2)}, ValueError, r"event_shape must be \(2,\) as for x, got \(3,\)"),
        ({"x": torch.zeros(0, 2)}, ValueError, "x must be a tensor with an event in each row, got the shape"),
        ({"x": [[0.0, 1.0]]}, ValueError, "x must be a tensor with an event in each row, got list"),
        ({"reach": -1.0}, ValueError, "reach must be positive and finite, got -1.0"),
        ({"points": 2}, ValueError, "points must be an integer of at least 3, got 2"),
        ({"repeats": 1}, ValueError, "repeats must be an integer of at least 2, got 1"),
        ({"n": 0}, ValueError, "n must be an integer of at least 2, got 0"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        check(
            ours("gaussians"), **{"support": "real", **({} if "x" in arguments else {"event_shape": (2,)}), **arguments}
        )
    with pytest.raises(TypeError, match="model must be an object, got the class GaussianMixture"):
        check(GaussianMixture, event_shape=(2,), support="real")


def test_a_printed_report_fits_on_a_page_and_says_the_same():
    """What pytest shows of a failure stays on one line."""

    class Wrong:
        def log_prob(self, x):
            return torch.distributions.Normal(0.0, 1.1).log_prob(x).sum(1)

        def score(self, x):
            return x

    report = check(Wrong(), torch.randn(5, 1, dtype=torch.float64))
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 84 and len(lines) > len(repr(report).splitlines()) == 3
    assert str(report).split() == repr(report).split()
    (failure,) = report.failures
    assert "\n    " in str(failure) and str(failure).split() == repr(failure).split()
