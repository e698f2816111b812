"""The mixture of prototypes against enumeration and plain loops, the linear-Gaussian bound against samples."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

from companion.data import load
from companion.models import BernoulliMixture, ProbabilisticPCA
from companion.models.elbo import linear_gaussian_elbo, mean_field

IMAGES = torch.tensor(list(np.ndindex(2, 2, 2, 2)), dtype=torch.float64).reshape(16, 1, 2, 2)


def mixture(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = BernoulliMixture(3, (1, 2, 2), generator=generator).double()
    with torch.no_grad():
        model.pixel_logits.mul_(15)
        model.log_weights.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    return model


def joint(model):
    """p(k, x) over all images, (16, 3), by plain products."""
    mu = model.pixel_logits.sigmoid().detach().reshape(3, 4)
    x = IMAGES.reshape(16, 1, 4)
    return (mu**x * (1 - mu) ** (1 - x)).prod(-1) * model.log_weights.exp().detach()


def test_density_posterior_and_normalisation_by_enumeration():
    model = mixture()
    table = joint(model)
    torch.testing.assert_close(model.log_prob(IMAGES).detach(), table.sum(1).log())
    torch.testing.assert_close(model.encode(IMAGES).probs.detach(), table / table.sum(1, keepdim=True))
    assert model.log_prob(IMAGES).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_bound_is_below_the_evidence_and_touches_it_at_the_posterior():
    model = mixture()
    torch.testing.assert_close(model.elbo(IMAGES), model.log_prob(IMAGES))
    for seed in range(5):
        q = Categorical(torch.distributions.Dirichlet(torch.ones(3)).sample((16,)).double())
        torch.manual_seed(seed)
        gap = model.log_prob(IMAGES) - model.elbo(IMAGES, q)
        table = joint(model)
        posterior = table / table.sum(1, keepdim=True)
        torch.testing.assert_close(gap.detach(), (q.probs * (q.probs / posterior).log()).sum(1))


def test_loss_is_in_nats():
    model = mixture()
    loss = model.loss(IMAGES)
    assert loss.unit == "nats" and torch.equal(loss.value, -model.log_prob(IMAGES))


def test_sampler_agrees_with_density():
    model, n = mixture(), 40_000
    samples = model.sample(n, generator=torch.Generator().manual_seed(0))
    codes = (samples.flatten(1) @ torch.tensor([8.0, 4, 2, 1]).double()).long()
    expected = joint(model).sum(1) * n
    chi_square = ((torch.bincount(codes, minlength=16) - expected) ** 2 / expected).sum().item()
    assert chi_square < 15 + 5 * np.sqrt(2 * 15)


@pytest.mark.parametrize("pseudo_count", [0.0, 0.5])
def test_em_step_is_that_of_plain_loops(pseudo_count):
    model = mixture()
    x = IMAGES[torch.tensor([0, 1, 3, 7, 9, 10, 15, 15, 12, 5])]
    q = model.encode(x).probs.detach()
    before = model.log_prob(x).detach()
    assert torch.equal(model.em_step(x, pseudo_count=pseudo_count), before)
    for k in range(3):
        assert model.log_weights[k].exp().item() == pytest.approx(q[:, k].mean().item())
        on = sum(q[n, k] * x[n] for n in range(10)) + pseudo_count
        total = q[:, k].sum() + 2 * pseudo_count
        torch.testing.assert_close(model.pixel_logits[k].sigmoid().detach(), on / total)


def test_em_never_lowers_the_evidence_of_digits():
    x = load("mnist6k", "test").binarized(seed=0).double()
    model = BernoulliMixture(8, (1, 28, 28), generator=torch.Generator().manual_seed(0)).double()
    evidences = torch.stack([model.em_step(x).mean() for _ in range(12)])
    assert (evidences.diff() > -1e-9).all()
    assert evidences[-1] > evidences[1] + 10


def test_em_refuses_a_component_without_data():
    model = mixture()
    with torch.no_grad():
        model.log_weights.copy_(torch.tensor([0.0, -800.0, -800.0]))
    with pytest.raises(ValueError, match="component 1 has no data left"):
        model.em_step(IMAGES)
    with pytest.raises(ValueError, match="pseudo_count must not be negative, got -1"):
        model.em_step(IMAGES, pseudo_count=-1)


def test_grey_images_are_refused():
    with pytest.raises(ValueError, match=r"only 0 and 1, got 0\.25; binarise"):
        mixture().log_prob(torch.full((1, 1, 2, 2), 0.25).double())


def linear_gaussian():
    torch.manual_seed(0)
    model = ProbabilisticPCA(4, 2).double()
    with torch.no_grad():
        model.log_scale.fill_(-0.2)
    return model, torch.randn(3, 4, dtype=torch.float64)


def test_linear_gaussian_bound_agrees_with_samples_of_q():
    model, x = linear_gaussian()
    q = Normal(torch.randn(3, 2).double(), torch.rand(3, 2).double() + 0.3)
    z = q.sample((200_000,))
    log_w = Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
    log_w = log_w + Normal(z @ model.weight.T + model.mean, model.log_scale.exp()).log_prob(x).sum(-1)
    error = (log_w.mean(0) - linear_gaussian_elbo(model, x, q)).abs()
    assert (error < 5 * log_w.std(0) / 200_000**0.5).all()


def test_mean_field_is_the_best_diagonal_gaussian():
    model, x = linear_gaussian()
    best = mean_field(model, x)
    top = linear_gaussian_elbo(model, x, best)
    assert (top <= model.log_prob(x)).all()
    for mean, scale in ((0.05, 1.0), (-0.05, 1.0), (0.0, 1.05), (0.0, 0.95)):
        assert (linear_gaussian_elbo(model, x, Normal(best.mean + mean, best.stddev * scale)) < top).all()
