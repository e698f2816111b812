import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal, constraints

from companion.data import DENSITIES, density
from companion.data.densities import Checkerboard, NoisyCurves, Rings

F64 = torch.float64
MIXTURES = ("eight_gaussians", "grid25")
OWN_CLASSES = [name for name in DENSITIES if name not in MIXTURES]

# 22 panels of width 1/2 with 8 Gauss-Legendre nodes each: their edges are also the checkerboard's. A panel holds ten
# standard deviations of a Gaussian of the grid, from its centre outwards: 8 nodes miss them, 20 do not.
PANELS, NODES = 22, {name: 20 if name == "grid25" else 8 for name in DENSITIES}


def as_f64(number):
    return torch.tensor(number, dtype=F64)


@pytest.fixture(scope="module", params=DENSITIES)
def on_grid(request):
    """The density, its log_prob on a grid over [-5.5, 5.5]² and the quadrature weights of the grid."""
    p = density(request.param, dtype=F64)
    node, weight = np.polynomial.legendre.leggauss(NODES[request.param])
    axis = torch.from_numpy((-5.25 + 0.5 * np.arange(PANELS)[:, None] + 0.25 * node).ravel())
    weights = torch.from_numpy(np.tile(0.25 * weight, PANELS))
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    log_p = torch.stack([p.log_prob(row) for row in grid])
    return p, log_p, weights[:, None] * weights


def test_integrates_to_one(on_grid):
    _, log_p, weights = on_grid
    assert (weights * log_p.exp()).sum().item() == pytest.approx(1, abs=1e-6)


def test_samples_fall_into_boxes_as_the_density_says(on_grid):
    p, log_p, weights = on_grid
    boxes = (weights * log_p.exp()).reshape(11, len(weights) // 11, 11, -1).sum((1, 3))
    torch.manual_seed(0)
    n = 200_000
    index = (p.sample((n,)) + 5.5).floor().long()
    assert ((index >= 0) & (index < 11)).all()
    frequency = torch.bincount(index @ torch.tensor([11, 1]), minlength=121).reshape(11, 11) / n
    # A box that expects less than a few samples is not normal: it may have five of them.
    assert ((frequency - boxes).abs() <= 5 * (boxes / n).sqrt() + 5 / n).all()


def test_samples_have_the_entropy_of_the_density(on_grid):
    p, log_p, weights = on_grid
    density_ = log_p.exp()
    entropy = -(weights * torch.xlogy(density_, density_)).sum()
    torch.manual_seed(1)
    surprise = -torch.cat([p.log_prob(p.sample((2000,))) for _ in range(10)])
    standard_error = surprise.std() / len(surprise) ** 0.5
    assert abs(surprise.mean() - entropy) <= 5 * standard_error + 1e-5


CIRCLE = [[3 * math.cos(i * math.pi / 4), 3 * math.sin(i * math.pi / 4)] for i in range(8)]
GRID = list(itertools.product([-4, -2, 0, 2, 4], repeat=2))


@pytest.mark.parametrize(("name", "means", "scale"), [("eight_gaussians", CIRCLE, 0.3), ("grid25", GRID, 0.05)])
def test_gaussians_are_the_plain_mixture(name, means, scale):
    p = density(name, dtype=F64)
    assert type(p) is MixtureSameFamily
    assert type(p.mixture_distribution) is Categorical
    assert type(p.component_distribution) is Independent
    x = np.concatenate([np.random.default_rng(0).uniform(-4, 4, (50, 2)), np.add(means, (scale, -2 * scale))])
    expected = logsumexp(norm.logpdf(x[:, None], means, scale).sum(-1), axis=-1) - math.log(len(means))
    np.testing.assert_allclose(p.log_prob(torch.from_numpy(x)), expected, rtol=1e-12)


@pytest.mark.parametrize("name", DENSITIES)
def test_lies_where_the_module_says(name):
    torch.manual_seed(2)
    assert density(name).sample((20_000,)).abs().max() < 4.5


def reference_curves(name, t):
    """The curves once more, from their description."""
    if name == "moons":
        upper = np.stack([-1 + 2 * np.cos(np.pi * t), -0.5 + 2 * np.sin(np.pi * t)], axis=-1)
        lower = np.stack([1 - 2 * np.cos(np.pi * t), 0.5 - 2 * np.sin(np.pi * t)], axis=-1)
        return [upper, lower]
    r = np.sqrt(0.5**2 + (3.5**2 - 0.5**2) * t)
    return [np.stack([sign * r * np.cos(np.pi * r), sign * r * np.sin(np.pi * r)], axis=-1) for sign in (1, -1)]


def reference_log_prob(name, scale, x):
    """By adaptive quadrature between 64 breakpoints, relative to the largest value of the integrand."""
    edges = np.linspace(0, 1, 65)
    peak = max(-((x - c) ** 2).sum(-1).min() for c in reference_curves(name, np.linspace(0, 1, 4001)))
    total = 0.0
    for k in range(2):

        def integrand(t, k=k):
            return math.exp((-((x - reference_curves(name, t)[k]) ** 2).sum() - peak) / (2 * scale**2))

        for a, b in itertools.pairwise(edges):
            # A panel that cannot matter in double precision is left out.
            if integrand(a) + integrand(b) + integrand((a + b) / 2) > 1e-40:
                total += quad(integrand, a, b, epsabs=1e-15, epsrel=1e-12)[0]
    return math.log(total / 2) + peak / (2 * scale**2) - math.log(2 * math.pi * scale**2)


@pytest.mark.parametrize(("name", "scale"), [("moons", 0.2), ("spirals", 0.15)])
def test_noisy_curves_agree_with_adaptive_quadrature(name, scale):
    corners = np.array([[8.0, 8.0], [-8.0, 8.0], [8.0, -8.0], [0.0, 0.0]])
    x = np.concatenate([corners, np.random.default_rng(0).uniform(-8, 8, (12, 2))])
    x = np.concatenate([x, np.random.default_rng(1).uniform(-4, 4, (12, 2))])
    expected = [reference_log_prob(name, scale, point) for point in x]
    log_p = density(name, dtype=F64).log_prob(torch.from_numpy(x))
    np.testing.assert_allclose(log_p, expected, rtol=0, atol=1e-9)


def test_noisy_curves_with_closed_forms():
    x = 2 * torch.randn(50, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    scale = as_f64(0.7)
    normal = NoisyCurves(lambda t: torch.zeros(*t.shape, 1, 2, dtype=t.dtype), scale, nodes=3)
    torch.testing.assert_close(normal.log_prob(x), Normal(0, scale).log_prob(x).sum(-1))
    # A segment from (-1, 0) to (1, 0), and the same one moved up by 3, as often as the first.
    segments = NoisyCurves(
        lambda t: torch.stack([torch.stack([2 * t - 1, torch.full_like(t, y)], -1) for y in (0, 3)], -2),
        scale,
        nodes=40,
    )
    # In the left tail, where the difference of two probabilities loses no digits.
    left = -x[:, 0].abs().numpy() / 0.7
    across = torch.from_numpy(norm.cdf(left + 1 / 0.7) - norm.cdf(left - 1 / 0.7)) / 2
    along = (Normal(0, scale).log_prob(x[:, 1]).exp() + Normal(3, scale).log_prob(x[:, 1]).exp()) / 2
    torch.testing.assert_close(segments.log_prob(x), (across * along).log())


def test_rings_have_the_weights_and_radii_of_the_mixture():
    p = density("rings", dtype=F64)

    def at_distance(r):
        # Any direction will do.
        return 2 * math.pi * r * p.log_prob(as_f64([0.6 * r, -0.8 * r])).exp().item()

    for radius in (1, 2, 3):
        mass = quad(at_distance, radius - 0.5, radius, epsabs=1e-10)[0]
        mass += quad(at_distance, radius, radius + 0.5, epsabs=1e-10)[0]
        assert mass == pytest.approx(radius / 6, abs=1e-6)


def test_rings_fold_a_negative_radius():
    radius = Normal(as_f64(0.3), as_f64(0.5))
    p = Rings(radius)
    torch.manual_seed(0)
    distance = p.sample((100_000,)).norm(dim=-1)
    for inner in (0.1, 0.3, 0.8, 5.0):
        exact = (radius.cdf(as_f64(inner)) - radius.cdf(as_f64(-inner))).item()
        inside, _ = quad(lambda r: 2 * math.pi * r * p.log_prob(as_f64([0.0, -r])).exp().item(), 0, inner)
        assert inside == pytest.approx(exact, abs=1e-9)
        frequency = (distance < inner).double().mean().item()
        assert abs(frequency - exact) <= 5 * (exact * (1 - exact) / 100_000) ** 0.5 + 1e-9


def test_rings_at_the_origin():
    assert density("rings").log_prob(torch.zeros(2)) == math.inf


def test_rings_cover_all_angles_evenly():
    torch.manual_seed(0)
    x = density("rings", dtype=F64).sample((100_000,))
    angle = torch.atan2(x[:, 1], x[:, 0])
    frequency = torch.histc(angle, bins=16, min=-math.pi, max=math.pi) / 100_000
    assert ((frequency - 1 / 16).abs() < 5 * (1 / 16 / 100_000) ** 0.5).all()


def test_checkerboard_squares_are_half_open():
    p = density("checkerboard", dtype=F64)
    black = [[0, 0], [0, 1.999], [1.999, 0], [-4, -4], [-4, 0], [2, 2], [-2, 2], [-1e-300, -1e-300], [3.999, -2]]
    white = [[2, 0], [0, 2], [-1e-300, 0], [0, -1e-300], [-2, 0], [-2.001, 2], [3.999, -2.001]]
    outside = [[4, -4], [4, 4], [-4.001, 0], [0, 4], [0, -4.001], [6, 0], [math.inf, 0], [-math.inf, math.inf]]
    torch.testing.assert_close(p.log_prob(as_f64(black)), torch.full((len(black),), -math.log(32), dtype=F64))
    assert (p.log_prob(as_f64(white)) == -math.inf).all()
    assert (p.log_prob(as_f64(outside)) == -math.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_rounding_moves_a_checkerboard_sample_off_black(monkeypatch, dtype):
    # What torch.rand can return next to each quarter, and at both ends of its range.
    step = 2.0**-24 if dtype == torch.float32 else 2.0**-53
    ends = [q / 4 + s * step for q in range(4) for s in (0, 1)] + [q / 4 - step for q in range(1, 5)]
    u = torch.cartesian_prod(torch.tensor(ends, dtype=dtype), torch.tensor(ends, dtype=dtype))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: u)
    p = density("checkerboard", dtype=dtype)
    assert p.log_prob(p.sample((len(u),))).isfinite().all()


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_what_torch_expects_of_a_distribution(name, dtype):
    p = density(name, dtype=dtype)
    assert isinstance(p, Distribution)
    assert p.batch_shape == () and p.event_shape == (2,)
    assert isinstance(p.arg_constraints, dict)
    assert p.support.event_dim == 1 and type(p).__name__ in repr(p)
    for shape in [(), (3,), (2, 3)]:
        x = p.sample(shape)
        assert x.shape == (*shape, 2) and x.dtype == dtype
        assert p.log_prob(x).shape == shape and p.log_prob(x).dtype == dtype
        assert not p.log_prob(x).isnan().any()
    assert p.sample().shape == (2,) == p.sample(torch.Size()).shape
    torch.manual_seed(5)
    first = p.sample((4,))
    torch.manual_seed(5)
    assert p.sample((4,)).equal(first) and not p.sample((4,)).equal(first)


@pytest.mark.parametrize("name", DENSITIES)
def test_single_precision_agrees_with_double(name):
    torch.manual_seed(0)
    x = density(name).sample((500,))
    torch.testing.assert_close(
        density(name).log_prob(x).double(), density(name, dtype=F64).log_prob(x.double()), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("name", DENSITIES)
def test_far_away_the_density_vanishes(name):
    assert density(name).log_prob(torch.tensor([math.inf, 0.0])) == -math.inf
    assert density(name).log_prob(torch.tensor([30.0, -30.0])) < -1000


def test_every_density_has_a_score_except_the_checkerboard():
    x = torch.tensor([[0.3, -1.2], [2.5, 0.1]], dtype=F64, requires_grad=True)
    for name in set(DENSITIES) - {"checkerboard"}:
        assert torch.autograd.gradcheck(density(name, dtype=F64).log_prob, x)


def test_parameters_may_have_a_batch_shape():
    x = torch.tensor([[0.3, -1.2], [2.5, 0.1], [-1.0, -1.0]], dtype=F64)
    numbers = as_f64([0.5, 1.0, 2.0])
    curve = density("moons").curves
    for batch, singles in [
        (Checkerboard(numbers), [Checkerboard(n) for n in numbers]),
        (NoisyCurves(curve, numbers, 64), [NoisyCurves(curve, n, 64) for n in numbers]),
        (Rings(Normal(numbers, 1.0)), [Rings(Normal(n, 1.0)) for n in numbers]),
    ]:
        assert batch.batch_shape == (3,)
        assert batch.sample((4,)).shape == (4, 3, 2)
        torch.testing.assert_close(
            batch.log_prob(x), torch.stack([p.log_prob(v) for p, v in zip(singles, x, strict=True)])
        )
        assert batch.log_prob(batch.sample((1000,))).isfinite().all()


def test_the_number_type():
    assert density("moons").sample().dtype == torch.get_default_dtype()
    with pytest.raises(TypeError, match=r"dtype is torch.int64"):
        density("moons", dtype=torch.int64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", DENSITIES)
def test_on_a_gpu(name):
    p = density(name, dtype=F64, device="cuda")
    x = p.sample((1000,))
    assert x.device.type == "cuda"
    torch.testing.assert_close(p.log_prob(x).cpu(), density(name, dtype=F64).log_prob(x.cpu()))


@given(st.one_of(st.text(), st.none(), st.integers(), st.just(["moons"])).filter(lambda name: name not in DENSITIES))
def test_unknown_name(name):
    with pytest.raises(ValueError) as error:
        density(name)
    assert str(error.value) == f"name is {name!r}; it must be one of " + ", ".join(DENSITIES)


@pytest.mark.parametrize("name", DENSITIES)
@given(shape=st.lists(st.integers(0, 4), max_size=3).filter(lambda s: s[-1:] != [2]))
def test_points_of_another_shape(name, shape):
    with pytest.raises(ValueError, match=r"points of shape \(\.\.\., 2\), got shape|must match event_shape"):
        density(name).log_prob(torch.zeros(shape))


@pytest.mark.parametrize("name", DENSITIES)
@given(st.integers(0, 5))
def test_nan(name, where):
    x = torch.ones(3, 2)
    x.view(-1)[where] = math.nan
    with pytest.raises(ValueError, match=r"NaN for 1 of 6 coordinates|invalid values"):
        density(name).log_prob(x)


@pytest.mark.parametrize("name", OWN_CLASSES)
@pytest.mark.parametrize("value", [torch.ones(3, 2, dtype=torch.int64), torch.ones(2, dtype=torch.bool), [0.0, 1.0]])
def test_points_of_another_type(name, value):
    with pytest.raises(TypeError, match=r"floating-point coordinates, got a (tensor of torch\.(int64|bool)|list)"):
        density(name).log_prob(value)


def test_parameters_are_positive():
    with pytest.raises(ValueError, match="scale"):
        NoisyCurves(lambda t: t, as_f64(-1.0), nodes=2)
    with pytest.raises(ValueError, match="side"):
        Checkerboard(as_f64(0.0))
    assert Checkerboard.support is constraints.real_vector
