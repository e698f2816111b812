"""The closed-form models against SciPy, scikit-learn and enumeration."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bernoulli, multivariate_normal
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as PeerMixture

from companion.models import GaussianMixture, IndependentPixels, ProbabilisticPCA

IMAGES = torch.tensor(list(np.ndindex(2, 2, 2, 2)), dtype=torch.float64).reshape(16, 1, 2, 2)


def pixels():
    data = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.float64).reshape(3, 1, 2, 2)
    return IndependentPixels((1, 2, 2)).double().fit(data), data


def mixture(seed=0):
    torch.manual_seed(seed)
    model = GaussianMixture(3, 2).double()
    with torch.no_grad():
        model.logits.copy_(torch.tensor([0.3, -0.5, 0.1]))
        model.log_scales.copy_(torch.randn(3, 2) / 3)
    return model


def pca(seed=0, dim=5, latent_dim=2):
    torch.manual_seed(seed)
    model = ProbabilisticPCA(dim, latent_dim).double()
    with torch.no_grad():
        model.mean.copy_(torch.randn(dim))
        model.log_scale.fill_(-0.3)
    return model


class TestIndependentPixels:
    def test_probabilities_of_all_images_add_up_to_one(self):
        model, _ = pixels()
        assert model.log_prob(IMAGES).exp().sum().item() == pytest.approx(1, abs=1e-12)

    def test_log_prob_is_that_of_scipy(self):
        model, data = pixels()
        mean = (data.sum(0) + 1) / 5
        expected = bernoulli.logpmf(IMAGES.numpy(), mean.numpy()).sum((1, 2, 3))
        np.testing.assert_allclose(model.log_prob(IMAGES).detach(), expected, atol=1e-12)

    def test_loss_is_the_negative_log_likelihood_in_nats(self):
        model, data = pixels()
        loss = model.loss(data)
        assert loss.unit == "nats" and torch.equal(loss.value, -model.log_prob(data))
        assert torch.equal(sum(loss.parts.values()), loss.value)

    def test_sampler_agrees_with_density(self):
        model, _ = pixels()
        n = 40_000
        samples = model.sample(n, generator=torch.Generator().manual_seed(0))
        codes = (samples.flatten(1) @ torch.tensor([8.0, 4, 2, 1]).double()).long()
        expected = model.log_prob(IMAGES).exp().detach() * n
        chi_square = ((torch.bincount(codes, minlength=16) - expected) ** 2 / expected).sum().item()
        assert chi_square < 15 + 5 * np.sqrt(2 * 15)

    @pytest.mark.parametrize(
        ("x", "error", "message"),
        [
            (torch.full((2, 1, 2, 2), 0.5).double(), ValueError, "x must hold only 0 and 1, got 0.5; binarise it"),
            (torch.zeros(2, 2, 2).double(), ValueError, r"x must have shape \(batch, 1, 2, 2\), got \(2, 2, 2\)"),
            (torch.full((2, 1, 2, 2), torch.nan).double(), ValueError, "x must be finite, got 8 NaN"),
            (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), TypeError, "floating dtype, got torch.uint8"),
            ([[0.0]], TypeError, "x must be a torch.Tensor, got list"),
        ],
    )
    def test_bad_input_is_refused(self, x, error, message):
        model, _ = pixels()
        for method in (model.log_prob, model.fit, model.loss):
            with pytest.raises(error, match=message):
                method(x)

    @pytest.mark.parametrize("n", [0, -1, 2.0, True])
    def test_bad_counts_are_refused(self, n):
        with pytest.raises(ValueError, match="n must be a positive integer"):
            pixels()[0].sample(n)

    def test_bad_pseudo_count_is_refused(self):
        model, data = pixels()
        with pytest.raises(ValueError, match="pseudo_count must be positive, got 0"):
            model.fit(data, pseudo_count=0)


class TestGaussianMixture:
    def test_log_prob_and_posterior_are_those_of_scikit_learn(self):
        model = mixture()
        peer = PeerMixture(3, covariance_type="diag")
        peer.weights_ = model.logits.softmax(0).detach().numpy()
        peer.means_ = model.means.detach().numpy()
        peer.precisions_cholesky_ = (-model.log_scales).exp().detach().numpy()
        x = torch.randn(20, 2, dtype=torch.float64)
        np.testing.assert_allclose(model.log_prob(x).detach(), peer.score_samples(x), atol=1e-12)
        np.testing.assert_allclose(model.encode(x).probs.detach(), peer.predict_proba(x), atol=1e-12)

    def test_sampler_agrees_with_density(self):
        model = mixture()
        n = 100_000
        x = model.sample(n, generator=torch.Generator().manual_seed(0))
        weights = model.logits.softmax(0).detach()
        mean = weights @ model.means.detach()
        second = weights @ (model.means.square() + (2 * model.log_scales).exp()).detach()
        for values, expected in ((x, mean), (x.square(), second)):
            z = (values.mean(0) - expected) / (values.std(0) / n**0.5)
            assert z.abs().max() < 5
        # E[-log p] over its own samples against quadrature.
        axis = torch.linspace(-8, 8, 400, dtype=torch.float64)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        log_p = model.log_prob(grid).detach()
        entropy = -(log_p.exp() * log_p).sum() * (axis[1] - axis[0]) ** 2
        losses = -model.log_prob(x).detach()
        assert abs(losses.mean() - entropy) < 5 * losses.std() / n**0.5

    def test_start_uses_different_points(self):
        x = torch.randn(5, 2)
        model = GaussianMixture(5, 2).start_at(x)
        assert sorted(model.means.tolist()) == sorted(x.tolist())
        with pytest.raises(ValueError, match="x must hold at least 5 points, one for each component, got 4"):
            model.start_at(x[:4])

    @given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(lambda s: len(s) != 2 or s[1] != 2))
    def test_wrong_shapes_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"x must have shape \(batch, 2\)"):
            mixture().log_prob(torch.zeros(shape, dtype=torch.float64))

    @pytest.mark.parametrize("arguments", [(0, 2), (3, -1), (2.5, 2)])
    def test_bad_sizes_are_refused(self, arguments):
        with pytest.raises(ValueError, match="must be a positive integer"):
            GaussianMixture(*arguments)


class TestProbabilisticPCA:
    def test_log_prob_is_that_of_the_full_covariance(self):
        model, x = pca(), torch.randn(7, 5, dtype=torch.float64)
        w, mu, s = model.weight.detach().numpy(), model.mean.detach().numpy(), model.log_scale.exp().item()
        expected = multivariate_normal(mu, w @ w.T + s**2 * np.eye(5)).logpdf(x)
        np.testing.assert_allclose(model.log_prob(x).detach(), expected, atol=1e-11)

    def test_fit_is_that_of_scikit_learn(self):
        torch.manual_seed(1)
        x = torch.randn(50, 3).double() @ torch.randn(3, 6).double() + 0.3 * torch.randn(50, 6).double()
        peer = PCA(2).fit(x)
        model = ProbabilisticPCA(6, 2).double().fit(x)
        ours = model.weight @ model.weight.T + (2 * model.log_scale).exp() * torch.eye(6)
        # The peer divides by N - 1 where maximum likelihood divides by N.
        np.testing.assert_allclose(ours.detach(), peer.get_covariance() * 49 / 50, atol=1e-10)

    def test_posterior_is_the_regression_of_z_on_x(self):
        model, x = pca(), torch.randn(3, 5, dtype=torch.float64)
        w, s2 = model.weight.detach(), (2 * model.log_scale).exp().item()
        gain = w.T @ torch.linalg.inv(w @ w.T + s2 * torch.eye(5))
        torch.testing.assert_close(model.encode(x).mean.detach(), (x - model.mean.detach()) @ gain.T)
        covariance = torch.eye(2).double() - gain @ w
        torch.testing.assert_close(model.encode(x).covariance_matrix[0].detach(), covariance)

    def test_sampler_agrees_with_density(self):
        model, n = pca(), 100_000
        losses = -model.log_prob(model.sample(n, generator=torch.Generator().manual_seed(0))).detach()
        covariance = model.weight @ model.weight.T + (2 * model.log_scale).exp() * torch.eye(5)
        entropy = 0.5 * (torch.logdet(covariance) + 5 * np.log(2 * np.pi * np.e)).item()
        assert abs(losses.mean() - entropy) < 5 * losses.std() / n**0.5
        mean = model.sample(n, generator=torch.Generator().manual_seed(1)).mean(0)
        assert ((mean - model.mean).abs() < 5 * covariance.diagonal().sqrt() / n**0.5).all()

    def test_decode_has_the_mean_and_the_noise(self):
        model, z = pca(), torch.randn(3, 2, dtype=torch.float64)
        decoded = model.decode(z)
        torch.testing.assert_close(decoded.mean, z @ model.weight.T + model.mean)
        torch.testing.assert_close(decoded.stddev, model.log_scale.exp().expand(3, 5))

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="latent_dim must be smaller than dim = 3, got 3"):
            ProbabilisticPCA(3, 3)
        with pytest.raises(ValueError, match="nothing is left for the noise"):
            line = torch.randn(10, 1).double() @ torch.randn(1, 4).double()
            ProbabilisticPCA(4, 2).double().fit(line)
        with pytest.raises(ValueError, match=r"x must have shape \(batch, 5\), got \(2, 4\)"):
            pca().log_prob(torch.zeros(2, 4).double())
        with pytest.raises(ValueError, match=r"z must have shape \(batch, 2\), got \(2, 5\)"):
            pca().decode(torch.zeros(2, 5).double())
