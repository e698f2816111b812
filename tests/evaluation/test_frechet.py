"""The Fréchet distance against 40-digit arithmetic, optimal transport in closed form, quadrature, and peers."""

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from companion.evaluation import (
    Features,
    Moments,
    frechet,
    frechet_distance,
    gaussian_frechet_distance,
    unbiased_frechet_distance,
)

F64 = torch.float64


def draws(n, dim, seed=0, dtype=F64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(dim, seed=0):
    return torch.linalg.qr(draws(dim, dim, seed))[0]


def covariance(dim, digits, seed=0):
    """With eigenvalues from 1 down to 10^-digits, symmetric to the last digit."""
    q = rotation(dim, seed)
    c = (q * 10.0 ** -torch.linspace(0, digits, dim, dtype=F64)) @ q.T
    return (c + c.T) / 2


def mapped(dim, seed=0):
    """A Gaussian, its image under the gradient of a convex function, and the cost of that map, which is optimal."""
    first, a = covariance(dim, 1, seed), draws(dim, dim, seed + 1)
    t = a @ a.T / dim + 0.1 * torch.eye(dim, dtype=F64)
    mean, shift = draws(2, dim, seed + 2)
    move = t - torch.eye(dim, dtype=F64)
    second = t @ first @ t
    cost = shift.square().sum() + (move @ first @ move).trace()
    return (mean, first, mean + shift, (second + second.T) / 2), cost.item()


def exact(mean, first, mean2, second):
    """The distance and the traces to 40 digits, by the symmetric root of the first."""
    with mpmath.workdps(40):
        mean, first, mean2, second = (
            a if isinstance(a, mpmath.matrix) else mpmath.matrix(a.tolist()) for a in (mean, first, mean2, second)
        )
        values, vectors = mpmath.eigsy(first)
        root = vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
        roots = sum(mpmath.sqrt(max(v, 0)) for v in mpmath.eigsy(root * second * root, eigvals_only=True))
        traces = sum(c[i, i] for c in (first, second) for i in range(c.rows))
        squares = sum((a - b) ** 2 for a, b in zip(mean, mean2, strict=True))
        return float(squares + traces - 2 * roots), float(traces)


def exact_moments(x):
    """Of samples whose values are short enough to be exact."""
    with mpmath.workdps(40):
        n, dim = x.shape
        m = mpmath.matrix(x.tolist())
        mean = mpmath.matrix([sum(m[:, j]) / n for j in range(dim)])
        centred = mpmath.matrix([[m[i, j] - mean[j] for j in range(dim)] for i in range(n)])
        return mean, centred.T * centred / (n - 1)


# Against other ways


@pytest.mark.parametrize("digits", [0, 4, 8, 11, 13])
@pytest.mark.parametrize("dim", [1, 2, 6])
def test_agrees_with_forty_digits(dim, digits):
    first, second = covariance(dim, digits), covariance(dim, digits, 1)
    mean, mean2 = draws(2, dim, 2)
    # The last pair: all that is left of traces of one are 1e-6.
    for arguments in ((mean, first, mean2, second), (mean, first, mean + 1e-3, first)):
        expected, traces = exact(*arguments)
        assert gaussian_frechet_distance(*arguments) == pytest.approx(expected, rel=1e-14, abs=1e-14 * traces)


@pytest.mark.parametrize(("rank", "rank2"), [(3, 5), (5, 2), (2, 2), (0, 3), (3, 0), (0, 0)])
def test_singular_covariances_agree_with_forty_digits(rank, rank2):
    """Of integers, which makes them singular exactly."""
    first, second = ((4 * draws(r, 5, s)).round() for r, s in ((rank, 0), (rank2, 1)))
    mean, mean2 = draws(2, 5, 2)
    arguments = mean, first.T @ first, mean2, second.T @ second
    expected, traces = exact(*arguments)
    assert gaussian_frechet_distance(*arguments) == pytest.approx(expected, abs=1e-14 * traces)


@pytest.mark.parametrize(("n", "m", "route"), [(4, 5, "gram"), (4, 20, "gram"), (20, 7, "gram"), (20, 15, "cholesky")])
def test_samples_agree_with_forty_digits(n, m, route):
    x, reference = (4 * draws(n, 7)).round() / 4, (4 * draws(m, 7, 1)).round() / 4 + 1
    expected, traces = exact(*exact_moments(x), *exact_moments(reference))
    for first, second in ((x, reference), (reference, x)):
        result = frechet_distance(first, second)
        assert result.value == pytest.approx(expected, abs=1e-14 * traces)
        assert (result.route, result.dim) == (route, 7)


@pytest.mark.parametrize("dim", [2, 9, 300])
def test_commuting_covariances_have_distances_of_standard_deviations(dim):
    q, (s, s2) = rotation(dim), draws(2, dim, 1).abs() + 0.1
    mean, mean2 = draws(2, dim, 2)
    cost = (mean - mean2).square().sum() + (s - s2).square().sum()
    found = gaussian_frechet_distance(mean, (q * s**2) @ q.T, mean2, (q * s2**2) @ q.T)
    assert found == pytest.approx(cost.item(), rel=1e-12)


@pytest.mark.parametrize("dim", [2, 7, 300])
def test_agrees_with_the_cost_of_the_optimal_map(dim):
    arguments, cost = mapped(dim)
    assert gaussian_frechet_distance(*arguments) == pytest.approx(cost, rel=1e-12)


def test_in_one_dimension_it_is_the_distance_of_quantile_functions():
    m, s, m2, s2 = 0.3, 0.5, -1.0, 2.0
    cost, _ = scipy.integrate.quad(
        lambda u: (scipy.stats.norm.ppf(u, m, s) - scipy.stats.norm.ppf(u, m2, s2)) ** 2, 0, 1
    )
    arguments = ([m], [[s**2]], [m2], [[s2**2]])
    assert gaussian_frechet_distance(*map(np.array, arguments)) == pytest.approx(cost, rel=1e-8)


@pytest.mark.parametrize(("n", "dim"), [(400, 16), (3000, 64)])
def test_agrees_with_peers_on_the_same_features(torchvision, n, dim):
    mix = draws(dim, dim, 5)
    x, reference = (draws(n, dim) @ mix).relu(), (1.1 * draws(n + 50, dim, 1) @ mix + 0.2).relu()
    ours = frechet_distance(x, reference).value
    moments = [f(y) for y in (x, reference) for f in (lambda y: y.mean(0), lambda y: y.T.cov())]
    compute_fid = pytest.importorskip("torchmetrics.image.fid")._compute_fid
    assert ours == pytest.approx(compute_fid(*moments).item(), rel=1e-6)
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [fidelity.fid_features_to_statistics(y) for y in (x, reference)]
    assert ours == pytest.approx(
        fidelity.fid_statistics_to_metric(*statistics, False)[fidelity.KEY_METRIC_FID], rel=1e-6
    )
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    assert ours == pytest.approx(fid_score.calculate_frechet_distance(*(m.numpy() for m in moments)), rel=1e-6)


# The routes


def test_routes_agree():
    x, reference = draws(40, 12), 1.5 * draws(50, 12, 1) + 0.3
    # Two features more than there are, made of the others.
    wide = rotation(90)[:12]
    full = frechet_distance(x, reference)
    gram = frechet_distance(x @ wide, reference @ wide)
    mixed = frechet_distance(x @ wide, Moments.of(reference @ wide))
    singular = frechet_distance(Moments.of(x @ wide), Moments.of(reference @ wide))
    assert [r.route for r in (full, gram, mixed, singular)] == ["cholesky", "gram", "gram", "eigenvalues"]
    for other in (gram, mixed, singular):
        assert other.value == pytest.approx(full.value, rel=1e-12)


def test_the_fast_way_is_taken_where_its_rounding_does_not_matter(monkeypatch):
    for digits, fast in ((2, True), (6, True), (13, False)):
        first, second = covariance(30, digits), covariance(30, digits, 1)
        assert (frechet._fast_root_trace(first, second, 30 * frechet._EPS) is not None) == fast
        found = gaussian_frechet_distance(torch.zeros(30), first, torch.zeros(30), second)
        monkeypatch.setattr(frechet, "_ACCURACY", -1)
        careful = gaussian_frechet_distance(torch.zeros(30), first, torch.zeros(30), second)
        monkeypatch.undo()
        assert found == pytest.approx(careful, rel=1e-12)
    # One direction that both hardly have: the square of its standard deviation is below the rounding of the others.
    tiny = torch.diag(torch.tensor([1.0, 1e-13], dtype=F64))
    assert frechet._fast_root_trace(tiny, tiny, frechet._EPS) is None


def test_blocks_change_nothing(monkeypatch):
    lower, c = draws(23, 23).tril(), covariance(23, 2)
    for block in (1, 5, 22, 23, 256):
        monkeypatch.setattr(frechet, "_BLOCK", block)
        torch.testing.assert_close(
            frechet._congruence(lower, c).tril(), (lower.T @ c @ lower).tril(), rtol=0, atol=1e-13
        )


def test_few_samples_of_many_features_need_no_covariance():
    """One of these would take 320 GB."""
    x = draws(6, 200_000)
    q = torch.linalg.qr(x.T)[0]
    assert frechet_distance(x, 2 * x).value == pytest.approx(frechet_distance(x @ q, 2 * x @ q).value, rel=1e-10)


def test_units_of_features_may_differ_widely():
    """Full rank is not a matter of scale."""
    units = 10.0 ** torch.linspace(-9, 9, 4, dtype=F64)
    c, c2 = (torch.diag(units) @ covariance(4, 1, s) @ torch.diag(units) for s in (0, 1))
    assert frechet._cholesky(c, frechet._EPS) is not None
    mean = torch.zeros(4, dtype=F64)
    expected, traces = exact(mean, c, mean, c2)
    assert gaussian_frechet_distance(mean, c, mean, c2) == pytest.approx(expected, abs=1e-14 * traces)


def test_a_feature_that_is_the_sum_of_others_is_singular():
    """Cholesky would go through half of the time, on rounding."""
    for seed in range(20):
        x = draws(50, 3, seed)
        x = torch.cat([x, x.sum(1, keepdim=True)], 1)
        assert frechet._cholesky(Moments.of(x).covariance, 7 * frechet._EPS) is None
        assert frechet_distance(x, 2 * x).value == pytest.approx(
            x.mean(0).square().sum().item() + x.var(0).sum().item(), rel=1e-12
        )


@pytest.mark.parametrize("n", [1000, 1_000_000])
def test_many_rows_round_more(n):
    """Two features that are one, at some sizes to the last digits only: still singular, and no negative eigenvalue."""
    x = draws(n, 1)
    x = torch.cat([x, 0.1 * x + 0.3], 1)
    moments = Moments.of(x)
    result = frechet_distance(moments, Moments.of(x.flip(1)))
    assert result.route == "eigenvalues"
    # Rank one: along (1, 0.1) and (0.1, 1), whose cosine is 0.2 / 1.01.
    variance, cosine = moments.covariance.trace().item(), 0.2 / 1.01
    expected = (moments.mean - moments.mean.flip(0)).square().sum().item() + 2 * variance * (1 - cosine)
    assert result.value == pytest.approx(expected, rel=1e-12)


# What a distance is


@pytest.mark.parametrize(("n", "dim"), [(60, 5), (60, 100), (3, 100), (60, 60)])
def test_is_a_squared_distance(n, dim):
    x, y, z, q = draws(n, dim), 1.3 * draws(n + 1, dim, 1) + 0.1, draws(n, dim, 2) ** 3, rotation(dim, 3)

    def distance(a, b):
        return frechet_distance(a, b).value

    base = distance(x, y)
    assert base > 0
    assert distance(y, x) == pytest.approx(base, rel=1e-12)
    assert distance(x @ q + 7, y @ q + 7) == pytest.approx(base, rel=1e-11)
    assert distance(3 * x, 3 * y) == pytest.approx(9 * base, rel=1e-12)
    assert distance(x, z) ** 0.5 <= distance(x, y) ** 0.5 + distance(y, z) ** 0.5
    scale = 2 * x.var(0).sum().item()
    for a, b in ((x, x), (Moments.of(x), Moments.of(x)), (x, x.flip(0))):
        assert 0 <= distance(a, b) <= 1e-13 * scale
    assert distance(x, x + 1e-3) == pytest.approx(1e-6 * dim, abs=1e-13 * scale)


def test_rounding_below_zero_is_zero():
    values = [
        gaussian_frechet_distance(torch.zeros(4), covariance(4, 3, s), torch.zeros(4), covariance(4, 3, s))
        for s in range(30)
    ]
    assert min(values) == 0 and max(values) < 1e-13


# Moments


@pytest.mark.parametrize("sizes", [(1, 1, 98), (100,), (37, 63), (1,) * 100])
def test_streaming_is_the_same_as_one_batch(sizes):
    x = draws(100, 6) @ draws(6, 6, 1) + 5
    moments = Moments()
    for part in x.split(list(sizes)):
        moments.update(part)
    assert len(moments) == 100
    np.testing.assert_allclose(moments.mean, np.mean(x.numpy(), 0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(x.numpy(), rowvar=False), rtol=0, atol=1e-12)
    reference = draws(80, 6, 2)
    assert frechet_distance(moments, reference).value == pytest.approx(frechet_distance(x, reference).value, rel=1e-12)


def test_moments_far_from_the_origin_are_as_exact():
    """Sums of squares of 10¹⁶ would leave no digit of a variance of one."""
    x = (draws(1000, 3) * 2**20).round() / 2**20
    near, far = Moments.of(x), Moments()
    for part in (x + 2**27).split(10):
        far.update(part)
    torch.testing.assert_close(far.covariance, near.covariance, rtol=0, atol=1e-7)
    torch.testing.assert_close(Moments.of(x + 2**27).covariance, near.covariance, rtol=0, atol=1e-7)


def test_moments_in_chunks_and_of_single_precision(monkeypatch):
    x = draws(50, 4, dtype=torch.float32) + 3
    whole = Moments.of(x)
    assert whole.covariance.dtype == F64
    torch.testing.assert_close(whole.covariance, x.double().T.cov(), rtol=1e-13, atol=1e-13)
    for chunk in (1, 4, 30):
        monkeypatch.setattr(frechet, "_CHUNK", chunk)
        torch.testing.assert_close(Moments.of(x.numpy()).covariance, whole.covariance, rtol=1e-12, atol=1e-12)


def test_moments_keep_the_names_and_leave_gradients_behind():
    features = Features(draws(9, 2).requires_grad_(), "a net", "a set")
    moments = Moments.of(features)
    assert (moments.net, moments.images, moments.mean.requires_grad) == ("a net", "a set", False)
    moments.update(features)
    assert len(moments) == 18
    with pytest.raises(ValueError, match="'a net', got those of 'another'"):
        moments.update(Features(draws(3, 2), "another"))


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        (torch.zeros(3), ValueError, "shape"),
        (torch.zeros(0, 2), ValueError, "neither of them 0"),
        (torch.zeros(3, 5), ValueError, "dimension 2"),
        (torch.full((3, 2), torch.inf), ValueError, "finite"),
        (torch.zeros(3, 2, dtype=torch.int64), TypeError, "floating"),
        ([[0.0, 1.0]], TypeError, "torch.Tensor"),
    ],
)
def test_moments_refuse(batch, error, words):
    moments = Moments.of(draws(4, 2))
    with pytest.raises(error, match=words):
        moments.update(batch)
    assert len(moments) == 4


# Conditions and errors


def test_prints_its_conditions():
    x, reference = Features(draws(30, 4), "a net", "samples, seed 3"), Features(draws(40, 4, 1), "a net", "a test set")
    for first in (x, Moments.of(x)):
        text = str(frechet_distance(first, reference))
        for part in ("30 of samples, seed 3", "40 of a test set", "a net", "dimension 4", "cholesky"):
            assert part in text
    text = str(unbiased_frechet_distance(x, Moments.of(reference), [20, 10, 30], seed=7))
    for part in ("30 of samples, seed 3", "40 of a test set", "seed 7", "3 sizes from 10 to 30", "±"):
        assert part in text


def test_refuses_what_cannot_be_compared():
    x = draws(9, 2)
    with pytest.raises(ValueError, match="one net, got 'a' and 'b'"):
        frechet_distance(Features(x, "a"), Moments.of(Features(x, "b")))
    with pytest.raises(ValueError, match="same dimension, got 2 and 3"):
        frechet_distance(x, draws(9, 3))
    one = Moments()
    with pytest.raises(ValueError, match="reference must be of two rows or more, got 0"):
        frechet_distance(x, one)
    one.update(x[:1])
    with pytest.raises(ValueError, match="x must be of two rows or more, got 1"):
        frechet_distance(one, x)
    with pytest.raises(ValueError, match="two rows or more, got 1"):
        _ = one.covariance
    with pytest.raises(ValueError, match="reference: values must be finite"):
        frechet_distance(x, x * torch.nan)


EYE = torch.eye(2, dtype=F64)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(2, 2), EYE, torch.zeros(2), EYE), ValueError, "mean must have shape"),
        ((torch.zeros(0), EYE, torch.zeros(2), EYE), ValueError, "mean must have as many rows"),
        ((torch.zeros(2), EYE, torch.zeros(3), EYE), ValueError, "mean2 must have as many rows as the mean"),
        ((torch.zeros(2), EYE[:1], torch.zeros(2), EYE), ValueError, "covariance must have as many rows"),
        ((torch.zeros(2), EYE, torch.zeros(2), torch.eye(3)), ValueError, "covariance2 must have shape"),
        ((torch.zeros(2), EYE, torch.zeros(2), EYE * torch.nan), ValueError, "covariance2 must be finite"),
        ((torch.zeros(2), EYE.long(), torch.zeros(2), EYE), TypeError, "covariance must have a floating"),
        (([0.0], EYE, torch.zeros(2), EYE), TypeError, "mean must be a torch.Tensor"),
        ((torch.zeros(2), EYE + EYE.flip(0).tril() / 1e9, torch.zeros(2), EYE), ValueError, "covariance must be symm"),
        ((torch.zeros(2), EYE, torch.zeros(2), EYE.flip(0)), ValueError, "covariance2 must have no eigenvalue below"),
        ((torch.zeros(2), torch.diag(EYE[0] - 1e-9), torch.zeros(2), EYE), ValueError, "covariance must have no eig"),
    ],
)
def test_refuses_what_is_no_gaussian(arguments, error, words):
    with pytest.raises(error, match=words):
        gaussian_frechet_distance(*arguments)


@pytest.mark.parametrize("dim", [3, 400])
def test_one_negative_eigenvalue_is_seen(dim):
    q, values = rotation(dim), torch.ones(dim, dtype=F64)
    values[0] = -1e-8
    c = (q * values) @ q.T
    c, zero, good = (c + c.T) / 2, torch.zeros(dim, dtype=F64), torch.eye(dim, dtype=F64)
    with pytest.raises(ValueError, match="covariance2 must have no eigenvalue below zero, got -1e-08"):
        gaussian_frechet_distance(zero, good, zero, c)
    with pytest.raises(ValueError, match="covariance must have no eigenvalue"):
        gaussian_frechet_distance(zero, c, zero, good)


def test_covariances_of_single_precision_may_have_its_rounding():
    x = draws(40, 6) @ draws(6, 20, 1)
    c = x.T.cov().float()
    c[0, 1] *= 1 + 1e-6
    found = gaussian_frechet_distance(torch.zeros(20), c, torch.zeros(20), torch.eye(20))
    expected = frechet_distance(Moments.of(x - x.mean(0)), _standard(30, 20)).value
    assert found == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="symmetric"):
        gaussian_frechet_distance(torch.zeros(20), c.double(), torch.zeros(20), torch.eye(20))


# Extrapolation


def _standard(n, dim, seed=9):
    """Samples whose mean is 0 and whose covariance is the identity, by whitening."""
    x = draws(n, dim, seed)
    x = x - x.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T


def test_the_line_is_that_of_scipy():
    x, reference = draws(500, 3), draws(300, 3, 1) + 0.5
    result = unbiased_frechet_distance(x, reference, [50, 400, 100, 200, 200], seed=3)
    assert result.sizes == (50, 100, 200, 200, 400)
    line = scipy.stats.linregress(1 / np.array(result.sizes), result.distances)
    assert result.value == pytest.approx(line.intercept, rel=1e-12)
    assert result.standard_error == pytest.approx(line.intercept_stderr, rel=1e-10)
    # Subsets of their own, without replacement, by the seed.
    assert result.distances[2] != result.distances[3]
    assert result.distances == unbiased_frechet_distance(x, reference, result.sizes, seed=3).distances
    assert result.distances != unbiased_frechet_distance(x, reference, result.sizes, seed=4).distances
    whole = unbiased_frechet_distance(x, Moments.of(reference), [50, 100, 500])
    assert whole.distances[-1] == pytest.approx(frechet_distance(x, reference).value, rel=1e-12)


def test_it_takes_the_bias_away():
    """Of x: the reference has none, as its moments are exact."""
    dim, reference = 4, Moments.of(_standard(100, 4))
    scale = torch.tensor([0.8, 0.9, 1.1, 1.2], dtype=F64)
    exact_distance = ((scale - 1).square().sum() + dim * 0.05**2).item()
    plain, found = [], []
    for seed in range(300):
        x = scale * draws(400, dim, 100 + seed) + 0.05
        plain.append(frechet_distance(x, reference).value)
        found.append(unbiased_frechet_distance(x, reference, [50, 80, 130, 200, 400], seed=seed).value)
    plain, found = np.array(plain) - exact_distance, np.array(found) - exact_distance
    assert plain.mean() > 10 * plain.std() / 300**0.5
    assert abs(found.mean()) < 5 * found.std() / 300**0.5


@pytest.mark.parametrize("n", [100, 400])
def test_the_bias_falls_as_one_over_n(n):
    """For a model that is the reference itself, the mean's part is dim / n and the covariance's E‖S - 1‖² / 4, which is
    dim (dim + 1) / 4 (n - 1), to leading order: the next is smaller by a factor of dim / n."""
    dim, reference = 3, Moments.of(_standard(50, 3))
    values = np.array([frechet_distance(draws(n, dim, 1000 + s), reference).value for s in range(400)])
    expected = dim / n + dim * (dim + 1) / (4 * (n - 1))
    assert abs(values.mean() - expected) < 5 * values.std() / 400**0.5 + expected * dim / n


def test_default_sizes_go_to_all_of_x_and_errors_say_what_is_wrong():
    x = draws(200, 2)
    result = unbiased_frechet_distance(x, x)
    assert len(result.sizes) == 15 and (result.sizes[0], result.sizes[-1]) == (20, 200)
    assert unbiased_frechet_distance(draws(41, 10), draws(41, 10, 1)).sizes[0] == 20
    for bad, words in (
        ([50, 100], "three or more"),
        ([50, 50, 50], "not all the same"),
        ([2, 50, 100], "above the dimension, 2"),
        ([50, 100, 201], "at most the 200 rows"),
        ([50, 100, 150.5], "positive integer"),
        ([50, 100, -1], "positive integer"),
    ):
        with pytest.raises(ValueError, match=words):
            unbiased_frechet_distance(x, x, bad)
    with pytest.raises(ValueError, match="40 rows or more, or sizes be given, got 39"):
        unbiased_frechet_distance(draws(39, 10), draws(50, 10))
    with pytest.raises(TypeError, match="x: values must be a torch"):
        unbiased_frechet_distance(Moments.of(x), x)
