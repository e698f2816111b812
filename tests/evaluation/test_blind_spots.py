"""What each measure of samples does not see, constructed, and which other one sees it.

| blind spot | not seen by | seen by |
| --- | --- | --- |
| the training set as samples | Fréchet distance, KID, MMD, precision, recall, coverage | memorisation |
| normals for clusters | Fréchet distance, MMD at the median distance | KID, precision, coverage, classifier |
| signs for normals | Fréchet distance, KID | recall, MMD with a narrow kernel, classifier |
| one image for each class | Inception Score | recall, coverage, Fréchet distance |
| 99 % noise | log-likelihood (log 100 of it) | precision, Fréchet distance, MMD, classifier |
| copies with a little noise | precision, Fréchet distance | log-likelihood of held-out data, memorisation |
| centroids, in 784 dimensions | the kernel density estimate | recall, coverage, memorisation |
"""

import math

import pytest
import torch
from sklearn.cluster import KMeans

from companion.data import load
from companion.evaluation import (
    GaussianKernel,
    KernelDensity,
    choose_bandwidth,
    classifier_two_sample,
    cubic_kernel,
    density_coverage,
    extract,
    frechet_distance,
    inception_score,
    kernel_inception_distance,
    median_heuristic,
    memorisation,
    mmd,
    precision_recall,
)
from companion.zoo import pretrained


def draws(n, dim, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def digits():
    """Two halves of training digits and held-out ones, as pixels in rows."""
    train, test = (load("mnist6k", split).intensities().flatten(1).double() for split in ("train", "test"))
    return train[:1000], train[1000:2000], test


@pytest.fixture(scope="module")
def net():
    return pretrained("digit_classifier")


def test_total_memorisation_has_the_best_distances_of_all(digits):
    train, other, test = digits
    # Against the data that the model has learnt from: zero, where fresh data has more.
    assert frechet_distance(train, train).value < 1e-6 < 1 < frechet_distance(other, train).value
    samples = train[torch.randint(1000, (1000,), generator=torch.Generator().manual_seed(0))]
    everything = precision_recall(train, train)
    assert (everything.precision, everything.recall, density_coverage(train, train).coverage) == (1, 1, 1)
    assert kernel_inception_distance(samples, train, 300, 5).mean < 1e-3 and mmd(train, train, permutations=99).p == 1
    # Against held-out data it is as good as fresh data, which no measure of distance can hold against it.
    assert frechet_distance(train, test).value < 1.1 * frechet_distance(other, test).value
    assert precision_recall(train, test).precision > precision_recall(other, test).precision - 0.05
    # Neighbours see it.
    copies, fresh = memorisation(samples, train, test), memorisation(other, train, test)
    assert (copies.copies, copies.nearer) == (1, 1) and copies.z < -30
    assert fresh.copies == 0 and abs(fresh.nearer - fresh.expected_nearer) < 0.1 and abs(fresh.z) < 5


def test_normals_with_the_moments_of_features_have_distance_zero(digits, net):
    """Nonsense: the features of real digits lie in ten clusters, and a normal lies mostly between them."""
    test = extract(net.features, digits[2].float().unflatten(1, (1, 28, 28))).values.double()
    white = draws(1000, 64)
    white = (white - white.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(white.T.cov())).T
    value, vector = torch.linalg.eigh(test.T.cov())
    nonsense = test.mean(0) + white @ (vector * value.clamp(min=0).sqrt()).T
    scale = test.var(0).sum()
    assert frechet_distance(nonsense, test).value < 1e-9 * scale
    # Other measures look at more than two moments.
    other = extract(net.features, digits[0].float().unflatten(1, (1, 28, 28))).values.double()
    fine, bad = density_coverage(other, test), density_coverage(nonsense, test)
    assert bad.density < 0.5 * fine.density and bad.coverage < 0.7 * fine.coverage
    # At the median distance a Gaussian kernel is so wide that it sees little but two moments, at half of it much more.
    median = median_heuristic(nonsense, test)
    assert mmd(nonsense, test, permutations=99).p > 0.05
    assert mmd(nonsense, test, GaussianKernel(median / 2), permutations=99).p == 0.01
    assert classifier_two_sample(nonsense, test).accuracy > 0.7
    fine, bad = (kernel_inception_distance(x, test, 500, 10).mean for x in (other, nonsense))
    assert bad > 3 * abs(fine)


def test_signs_for_normals_are_seen_by_neither_frechet_nor_kernel_inception_distance():
    """Independent signs have the first three moments of a standard normal. So has, up to the fifth, each coordinate on
    0, 0, 0, 0, √3 and -√3, which stands for it here, without the randomness of samples."""
    signs = torch.cartesian_prod(*3 * [torch.tensor([-1.0, 1.0], dtype=torch.float64)]).repeat(27, 1)
    normal = torch.cartesian_prod(*3 * [3**0.5 * torch.tensor([0, 0, 0, 0, 1, -1], dtype=torch.float64)])
    assert frechet_distance(signs, normal).value < 1e-12

    def population(kernel):
        return (kernel(signs, signs) + kernel(normal, normal) - 2 * kernel(signs, normal)).mean().item()

    assert abs(population(cubic_kernel)) < 1e-12 and population(GaussianKernel(0.5)) > 0.1
    x, reference = draws(600, 3).sign(), draws(600, 3, 1)
    found = kernel_inception_distance(x, reference, 300, 50)
    assert abs(found.mean) < 2 * found.std
    assert precision_recall(x, reference).recall == 0
    assert classifier_two_sample(x, reference).accuracy > 0.9
    # Narrow, as the median distance is far too wide for what happens around ±1.
    assert mmd(x, reference, GaussianKernel(0.3), permutations=99).p == 0.01


def test_one_image_for_each_class_has_a_perfect_inception_score(digits, net):
    """Ten images, copied, score higher than all that exist; by the definition's upper bound, as many as classes."""
    assert inception_score(1e4 * torch.eye(10).repeat(7, 1), splits=1).value == pytest.approx(10, rel=1e-9)
    train, _, test = (x.float().unflatten(1, (1, 28, 28)) for x in digits)
    with torch.no_grad():
        logits = net(train)
        best = logits.log_softmax(1).argmax(0)  # of each class, the image that is most clearly one
        few = train[best].repeat(100, 1, 1, 1)
        score, real = (inception_score(net(x), splits=1).value for x in (few, test))
    assert score > 9.99 > 9.9 > real
    few, real, reference = (extract(net.features, x) for x in (few, train, test))
    found = precision_recall(few, reference)
    assert found.precision > 0.6 and found.recall == 0
    assert density_coverage(few, reference).coverage < 0.2 < 0.8 < density_coverage(real, reference).coverage
    assert frechet_distance(few, reference).value > 5 * frechet_distance(real, reference).value


def test_a_model_of_noise_in_99_of_100_samples_loses_log_100_nats_at_most():
    """In 50 dimensions it has a better likelihood than a model whose samples are only half too wide."""

    def log_prob(x, scale):
        return torch.distributions.Normal(0, scale).log_prob(x).sum(1)

    data, n = draws(1000, 50), 1000
    noisy = torch.logaddexp(math.log(0.01) + log_prob(data, 1.0), math.log(0.99) + log_prob(data, 10.0))
    assert (log_prob(data, 1.0) - noisy <= math.log(100) + 1e-9).all()
    assert noisy.mean() > log_prob(data, 1.5).mean()
    # Of 1,000 samples ten are of the data's distribution; the other model's are much more like the data.
    scale = torch.full((n, 1), 10.0, dtype=torch.float64)
    scale[:10] = 1
    samples, wide, reference = scale * draws(n, 50, 1), 1.5 * draws(n, 50, 2), draws(n, 50, 3)
    assert precision_recall(samples, reference).precision <= 0.01
    assert density_coverage(samples, reference).coverage < 0.2 < 0.8 < density_coverage(data, reference).coverage
    assert frechet_distance(samples, reference).value > 100 * frechet_distance(wide, reference).value
    assert mmd(samples, reference).p == 0.001 and classifier_two_sample(samples, reference).accuracy > 0.9


def test_copies_with_a_little_noise_look_perfect_and_have_a_terrible_likelihood(digits, net):
    train, _, test = digits
    copying, blurred = KernelDensity(train, 0.01), KernelDensity(train.mean(0, keepdim=True).repeat(2, 1), 0.3)
    # Each image once, as a stratified sample has them.
    samples, blobs = train + 0.01 * draws(1000, 784), blurred.sample(1000, torch.Generator().manual_seed(0))
    # Held-out digits are worth less to the copies than to a single blob of the mean digit.
    assert copying.log_prob(test).mean() < -1e5 < -1e3 < blurred.log_prob(test).mean()
    perfect, real, bad, reference = (
        extract(net.features, x.float().unflatten(1, (1, 28, 28))) for x in (samples, train, blobs, test)
    )
    assert frechet_distance(perfect, reference).value < 1.05 * frechet_distance(real, reference).value
    assert precision_recall(perfect, reference).precision > precision_recall(real, reference).precision - 0.02
    assert frechet_distance(bad, reference).value > 10 * frechet_distance(perfect, reference).value
    # Noise hides the copies from a comparison by equality, and from no other.
    found = memorisation(samples, train, test)
    assert found.copies == 0 and found.nearer == 1 and found.z < -30


def test_parzen_windows_take_a_hundred_centroids_for_a_better_model_than_the_data_itself(digits):
    """1,000 fresh digits are samples of the best model there is. In 784 dimensions a kernel density of them, at the
    bandwidth that suits them best, gives held-out digits less than one of 100 centroids does at that bandwidth."""
    train, fresh, test = digits
    centroids = KMeans(100, n_init=1, max_iter=10, init="random", random_state=0).fit(train.float()).cluster_centers_
    centroids = torch.from_numpy(centroids).double()
    bandwidth = choose_bandwidth(fresh, [0.1, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3])
    real, blurred = (KernelDensity(x, bandwidth).log_prob(test).mean().item() for x in (fresh, centroids))
    assert blurred > real + 10
    # At every bandwidth from the narrowest to the widest of use.
    for bandwidth in (0.1, 0.15, 0.2, 0.25, 0.3):
        assert (
            KernelDensity(centroids, bandwidth).log_prob(test).mean()
            > KernelDensity(fresh, bandwidth).log_prob(test).mean()
        )
    # As many digits, for a fair count of neighbours.
    few = fresh[:100]
    assert precision_recall(centroids, test).precision > 0.95  # which blurred centroids do not lose
    assert precision_recall(centroids, test).recall < 0.5 * precision_recall(few, test).recall
    assert memorisation(centroids, train, test).z < -5 < memorisation(few, train, test).z
    assert mmd(centroids, few, permutations=99).p == 0.01
