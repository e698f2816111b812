"""Every checker accepts a right answer, found by another route than its own or as in the book's solution, and names the
mistake in plausible wrong ones."""

import json
import math
import re
from collections import deque
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, special
from scipy.stats import norm

from companion.exercises import CHECKERS, check
from companion.exercises.checking import NotYet, checks, expect
from companion.exercises.evaluation import distances

BOOK = Path(__file__).parents[1] / "book"

joint = np.array([[0.10, 0.25, 0.05], [0.30, 0.10, 0.20]])
q = np.array([0.5, 0.3, 0.2])
W = joint[0] / q


def kl(a, b):
    return a @ np.log(a / b)


def terms(mean, log_variance):
    return -0.5 * (1 + log_variance - mean**2 - log_variance.exp())


def frechet(m, S, n, T, both):
    return (m - n) @ (m - n) + torch.trace(S + T) - 2 * both


def root(c):
    values, vectors = torch.linalg.eigh(c)
    return vectors * values.sqrt() @ vectors.T


def covered(n, m, k, others=1):
    return 1 - math.prod((n + 1 - others - i) / (m + n + 1 - others - i) for i in range(1, k + 1))


def levels_needed(beta, square, d, goal=0.01):
    n = 1
    while True:
        a = (1 - beta) ** n
        if 0.5 * (a * square - d * a - d * np.log1p(-a)) < goal:
            return n
        n += 1


def share_above(k):
    """The share of N(0, k²) where N(0, 1) is higher: |z| < √(2 log k/(1 - 1/k²))."""
    return 2 * norm.cdf(math.sqrt(2 * math.log(k) / (1 - k**-2)) / k) - 1


def grey(p):
    return (2 * p - 1) / math.log(p / (1 - p))


def moments(t, p):
    mean = np.average(t, weights=p)
    return mean, np.average((t - mean) ** 2, weights=p)


def queue(signal, w_0, w_1, delta, length=None):
    memory, out = deque([0.0] * (length or delta)), []
    for value in signal:
        out.append(w_0 * value + w_1 * memory.popleft())
        memory.append(value)
    return out


def late_queue(signal, w_0, w_1, delta):
    memory, out = deque([0.0] * delta), []
    for value in signal:
        memory.append(value)
        memory.popleft()
        out.append(w_0 * value + w_1 * memory[0])
    return out


def coupling(x, log_det):
    a, b = torch.tanh(2 * x[:, :1]), torch.sin(x[:, :1])
    return torch.cat([x[:, :1], (x[:, 1:] + b) * a.exp()], 1), log_det(a, b)[:, 0]


def bowl(x, m, lam):
    r = x - m
    return math.sqrt(2 * math.pi / lam), -lam * r, lam * r, 1 / (2 * lam) - r**2 / 2


def sliced(H):
    off = H - np.diag(np.diag(H))
    return 2 * (off**2).sum(), 2 * (H**2).sum()


def swap(E_k, E_l, T_k, T_l):
    return min(1.0, math.exp((1 / T_k - 1 / T_l) * (E_k - E_l)))


def step_back(c, bar, previous):
    beta = 1 - bar / previous
    left_over = c * (1 - bar) / (bar * c + 1 - bar)
    return (1 - previous) / (1 - bar) * beta + previous * beta**2 / (1 - bar) ** 2 * left_over


def ancestral(x, eps, noise, t, beta, bar, sigma, last=1):
    mean = (x - beta * eps / math.sqrt(1 - bar)) / math.sqrt(1 - beta)
    return mean if t <= last else mean + sigma * noise


def from_v(x_t, v, bar, sign=1):
    a, s = math.sqrt(bar), math.sqrt(1 - bar)
    eps = s * x_t + sign * a * v
    return eps, a * x_t - sign * s * v, -eps / s


def ddim(x, eps, bar, previous, noise=None):
    x_0 = (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
    return math.sqrt(previous) * x_0 + math.sqrt(1 - (previous if noise is None else noise(bar, previous))) * eps


def tower(W1, s1, W2, s2):
    return W1 @ W2, s1**2 * np.eye(len(W1)) + s2**2 * W1 @ W1.T


def early(steps=1000):
    bars = np.cumprod(1 - np.linspace(1e-4, 0.02, steps))
    snr = bars / (1 - bars)
    weight = snr[:-1] / snr[1:] - 1
    return weight[:99].sum() / weight.sum()


def round_of(k, eta, lam):
    """The matrix of k steps of ψ and one of θ: powers of the one of ψ alone, then that of θ."""
    up = np.array([[1.0, 0.0], [eta, 1 - eta * lam]])
    return np.array([[1.0, -eta], [0.0, 1.0]]) @ np.linalg.matrix_power(up, k)


def shrinks(k, eta, lam):
    """The larger root of z² - trace z + determinant."""
    m = round_of(k, eta, lam)
    trace, determinant = m.trace(), (1 - eta * lam) ** k
    square = trace**2 / 4 - determinant
    return math.sqrt(determinant) if square < 0 else trace / 2 + math.sqrt(square)


def played(k, eta, lam, rounds=800):
    """The slope of the logarithm of the distance to zero, over the second half of the rounds."""
    x, logs = np.array([1.0, 0.0]), []
    for _ in range(rounds):
        x = round_of(k, eta, lam) @ x
        logs.append(math.log(np.linalg.norm(x)))
        x /= np.linalg.norm(x)
    return math.exp(np.mean(logs[rounds // 2 :]))


left_100 = np.prod(1 - np.linspace(1e-4, 0.02, 100))
logits = F.binary_cross_entropy_with_logits
two = sum(q[i] * q[j] * np.log((W[i] + W[j]) / 2) for i in range(3) for j in range(3))


def game(real, fake):
    return logits(real, torch.ones_like(real)) + logits(fake, torch.zeros_like(fake))


NATS = {"1e-2": 2.5375, "1e-3": 2.4908, "1e-5": 2.4961}

RIGHT = {
    "gp-1": {"Z": 2 * np.pi * special.i0(2), "P": 0.7792},
    "gp-2": {"1-u": True, "u**2": False},
    "gp-3": lambda x, means, weights: weights @ norm.pdf(x, means, 1),
    "gp-4": moments,
    "gp-5": (np.abs(5 * np.random.default_rng(0).normal(size=(200_000, 10)).sum(1) / 10**0.5) < 1).mean(),
    "elbo-1": two,
    "elbo-2": lambda q, prior, likelihood: q @ np.log(likelihood) - kl(q, prior),
    "elbo-3": lambda joint: np.eye(len(joint))[joint.argmax()],
    "elbo-4": lambda W: np.linalg.svd(W)[2].T,
    "elbo-5": (1.3300, 0.18797),
    "vae-1": grey,
    "vae-2": lambda mean, log_variance: terms(mean, log_variance).sum(1).mean(),
    "vae-3": lambda x, x_hat: (x - x_hat).square().mean(),
    "vae-4": share_above,
    "vae-5": {"eight draws": 183.6, "one draw": 122.6},
    "hvae-1": tower,
    "hvae-2": lambda m, v, n, w: (m / v + n / w) / (1 / v + 1 / w),
    "hvae-3": np.log,
    "hvae-4": lambda kl, allowance: np.maximum(kl.mean(0), allowance).sum(),
    "hvae-5": levels_needed,
    "hvae-6": {"1": 137.7, "2": 141.4, "3": 141.3},
    "gan-1": {"shared": 1 / 3, "missing": 1, "V": 0.5 * np.log(1 / 3) + np.log(2 / 3)},
    "gan-2": game,
    "gan-3": lambda x, mu: mu**2 / 2 - mu * x,
    "gan-4": lambda p, g, s: (1 - s) * p / (p + g),
    "gan-5": lambda gradients: ((gradients.norm(dim=1) - 1) ** 2).mean(),
    "gan-6": shrinks,
    "ar-1": [],
    "ar-2": lambda l, x: -torch.distributions.Bernoulli(logits=l).log_prob(x).sum(1),
    "ar-3": lambda m, d_x: (m, d_x - m),
    "ar-4": 24,
    "ar-5": queue,
    "ar-6": {"rows": 125.1, "columns": 124.6, "outwards": 125.6},
    "flow-1": lambda x: norm.pdf(np.log(x)) / x,
    "flow-2": lambda x: coupling(x, lambda a, b: a),
    "flow-3": 3,
    "flow-4": 147,
    "flow-6": 7.5e-5,
    "flow-5": {"uniform": 8, "black or not": -0.8 * np.log2(0.8) - 0.2 * np.log2(0.2 / 255)},
    "ebm-1": bowl,
    "ebm-2": lambda score, x, eps, sigma: 0.5 * (score(x + sigma * eps) + eps / sigma).square().sum(1),
    "ebm-3": lambda lam: 4 / lam,
    "ebm-4": sliced,
    "ebm-5": {"near": 0.008, "far": 0.124},
    "ebm-6": swap,
    "ddpm-1": step_back,
    "ddpm-2": ancestral,
    "ddpm-3": {"left": left_100, "nats": -784 / 2 * math.log1p(-left_100)},
    "ddpm-4": early(),
    "ddpm-5": from_v,
    "ddpm-6": {"posterior": 2.70, "forward": 0.22, "measured": 0.16},
    "fast-1": lambda x, bar, end, m: end**0.5 * m + ((1 - end) / (1 - bar)) ** 0.5 * (x - bar**0.5 * m),
    "fast-2": ddim,
    "fast-3": NATS | {"good enough": 1e-3},
    "fast-4": lambda a, b, angle: np.cos(angle) * a + np.sin(angle) * b,
    "fast-5": lambda c, s, w: (c**2 * (c**2 / s**2) ** w, c**2 / (1 + w * (1 - c**2 / s**2))),
    "fast-6": [100, 81, 67, 52, 39, 29, 19, 11, 7, 4, 0],
    "eval-1": {"two": 2, "ten": 10 * math.exp(0.91 * math.log(0.91) + 0.09 * math.log(0.01))},
    "eval-2": lambda m, S, n, T: frechet(m, S, n, T, torch.linalg.svdvals(root(S) @ root(T)).sum()),
    "eval-3": {"first": 5.1 - 0.01 * 2048 * 2053 / 40_000, "second": 4.8 - 0.01 * 2048 * 2053 / 200_000},
    "eval-4": covered,
    "eval-5": 1 - math.exp(-0.5),
    "eval-6": {"accuracy": norm.cdf(0.1), "points": math.ceil((norm.cdf(0.1) - 0.5) ** -2)},
    "eval-7": ["copies", "lost classes", "noise", "uneven classes", "blur"],
}

WRONG = [
    ("gp-1", {"Z": special.i0(2), "P": 0.7792}, "I₀(2) alone"),
    ("gp-1", {"Z": 2 * np.pi * special.i0(1), "P": 0.7792}, "factor 2 is missing"),
    ("gp-1", {"Z": 14.323, "P": 0.7792 * 14.323}, "divide by Z"),
    ("gp-1", {"Z": 14.1, "P": 0.7792}, "cover the whole interval"),
    ("gp-2", {"1-u": True, "u**2": True}, "P(u² ≤ 1/4) is not 1/4"),
    ("gp-2", {"1-u": False, "u**2": False}, "P(1 - u ≤ t)"),
    ("gp-3", lambda x, means, weights: norm.pdf(x, means, 1).mean(), "the colleague's version"),
    ("gp-3", lambda x, means, weights: norm.pdf(x, means, 1).sum(), "lacks the weights"),
    ("gp-3", lambda x, means, weights: norm.pdf(x, weights @ means, 1), "mean of the means"),
    ("gp-3", lambda x, means, weights: weights @ norm.pdf(x, means, 2), "it should be"),
    ("gp-4", lambda t, p: (moments(t, p)[0], moments(t, p)[1] ** 0.5), "standard deviation"),
    ("gp-4", lambda t, p: (moments(t, p)[0], np.average(t**2, weights=p)), "about the mean"),
    ("gp-4", lambda t, p: (t.mean(), t.var()), "weigh its points by p"),
    ("gp-4", lambda t, p: (t[p.argmax()], 1.0), "the mode"),
    ("gp-5", (np.abs(5 * np.random.default_rng(0).normal(size=(200_000, 10)).sum(1)) < 1).mean(), "length √10"),
    ("gp-5", norm.cdf(0.2) - 0.5, "0 < K v·z < 1"),
    ("gp-5", 0.84, "outside"),
    ("gp-5", 0.30, "which distribution"),
    ("elbo-1", q @ np.log(W), "single sample"),
    ("elbo-1", np.log(0.4), "inside of the average"),
    ("elbo-1", two + math.log(2), "log 2 too much"),
    ("elbo-1", two / math.log(2), "bits"),
    ("elbo-1", np.mean(np.log((W[:, None] + W) / 2)), "not equally probable"),
    ("elbo-2", lambda q, prior, likelihood: q @ np.log(likelihood) + kl(q, prior), "the reported number"),
    ("elbo-2", lambda q, prior, likelihood: q @ np.log(likelihood) - kl(prior, q), "other way round"),
    ("elbo-2", lambda q, prior, likelihood: -q @ np.log(likelihood) + kl(q, prior), "minus the bound"),
    ("elbo-2", lambda q, prior, likelihood: np.log(q @ likelihood) - kl(q, prior), "before the log"),
    ("elbo-3", lambda joint: joint / joint.sum(), "the posterior"),
    ("elbo-3", lambda joint: joint.argmax(), "index of the best z"),
    ("elbo-3", lambda joint: np.ones(len(joint)) / len(joint), "uniform"),
    ("elbo-4", lambda W: np.linalg.svd(W)[2], "transpose"),
    ("elbo-4", lambda W: np.linalg.svd(W)[2].T / np.linalg.svd(W)[1], "whitens"),
    ("elbo-4", lambda W: np.eye(3), "not orthogonal"),
    ("elbo-4", lambda W: 2 * np.linalg.svd(W)[2].T, "no rotation"),
    ("elbo-4", lambda W: np.linalg.svd(W)[0], "shape (4, 4)"),
    ("elbo-5", (1.33, np.log(0.188)), "its logarithm"),
    ("elbo-5", (1.33, 0.188**2), "the variance"),
    ("elbo-5", (0.0, 1.0), "on top of each other"),
    ("elbo-5", (1.37, 0.001), "between the points"),
    ("elbo-5", (1.2, 0.2), "smaller ones exist"),
    ("vae-1", lambda p: 1.0, "two values 0 and 1"),
    ("vae-1", lambda p: (p * (1 - p)) ** 0.5, "average the exponential"),
    ("vae-1", lambda p: 1 / grey(p), "one over"),
    ("vae-2", lambda *a: terms(*a).mean(), "bug of the text"),
    ("vae-2", lambda *a: terms(*a).sum(), "summed over the batch"),
    ("vae-2", lambda *a: terms(*a).sum(1), "each example"),
    ("vae-2", lambda *a: -terms(*a).sum(1).mean(), "sign is inverted"),
    ("vae-2", lambda m, v: terms(m, 2 * v).sum(1).mean(), "standard deviation"),
    ("vae-3", lambda x, x_hat: (x - x_hat).square().sum(1).mean(), "per pixel"),
    ("vae-3", lambda x, x_hat: (x - x_hat).square().mean().sqrt(), "the root"),
    ("vae-3", lambda x, x_hat: (x - x_hat).var(), "n - 1"),
    ("vae-3", lambda x, x_hat: (x - x_hat).var(correction=0), "about their mean"),
    ("vae-4", lambda k: 1 - share_above(k), "below log p(x)"),
    ("vae-4", lambda k: 2 * norm.cdf(math.sqrt(2 * math.log(k) / (1 - k**-2))) - 1, "draws of the posterior"),
    ("vae-4", lambda k: share_above(math.sqrt(k)), "standard deviation"),
    ("vae-4", lambda k: 0.5, "for which z"),
    ("vae-5", {"eight draws": -183.6, "one draw": 122.6}, "which is positive"),
    ("vae-5", {"eight draws": 183.6, "one draw": 784 * math.log(2)}, "fair coin"),
    ("vae-5", {"eight draws": 183.6, "one draw": 122.6 / 784}, "nats a pixel"),
    ("vae-5", {"eight draws": 183.6, "one draw": 30}, "published"),
    ("vae-5", {"eight draws": 250, "one draw": 122.6}, "independent pixels"),
    ("hvae-1", lambda W1, s1, W2, s2: (W1 @ W2, s1**2 * np.eye(4)), "goes through W1"),
    ("hvae-1", lambda W1, s1, W2, s2: (W1 @ W2, (s1**2 + s2**2) * np.eye(4)), "no multiple of I"),
    ("hvae-1", lambda W1, s1, W2, s2: (W1 @ W2, s1 * np.eye(4) + s2 * W1 @ W1.T), "not with s"),
    ("hvae-1", lambda W1, s1, W2, s2: (W1 @ W2 * 2, s1 * np.eye(4)), "before z2"),
    ("hvae-2", lambda m, v, n, w: (m * v + n * w) / (v + w), "this is the bug"),
    ("hvae-2", lambda m, v, n, w: (m / v**0.5 + n / w**0.5) / (v**-0.5 + w**-0.5), "not over its standard deviation"),
    ("hvae-2", lambda m, v, n, w: (m + n) / 2, "plain mean"),
    ("hvae-2", lambda m, v, n, w: m / v + n / w, "divided by their sum"),
    ("hvae-3", lambda s: -np.log(s), "sign"),
    ("hvae-3", lambda s: np.log(s**2), "one half"),
    ("hvae-3", lambda s: np.log(s) + 1 / s**2, "both z come from q"),
    ("hvae-4", lambda kl, allowance: np.maximum(kl, allowance).mean(0).sum(), "not of each example"),
    ("hvae-4", lambda kl, allowance: max(kl.mean(0).sum(), allowance), "not for their sum"),
    ("hvae-4", lambda kl, allowance: np.minimum(kl.mean(0), allowance).sum(), "the least that is charged"),
    ("hvae-4", lambda kl, allowance: kl.mean(0).sum(), "without free bits"),
    ("hvae-5", lambda *a: levels_needed(*a) - 1, "one too few"),
    ("hvae-5", lambda *a: levels_needed(*a, goal=1.0), "one nat"),
    ("hvae-5", lambda beta, square, d: levels_needed(beta, 0.0, d), "variance of q alone"),
    ("hvae-5", lambda beta, square, d: 10, "with ᾱ"),
    ("gan-1", {"shared": 0.5, "missing": 1, "V": -np.log(4)}, "equal densities"),
    ("gan-1", {"shared": 1 / 3, "missing": 1, "V": -np.log(4)}, "perfect generator"),
    ("gan-1", {"shared": 2 / 3, "missing": 0, "V": -np.log(4)}, "p_g/"),
    ("gan-1", {"shared": 1 / 3, "missing": 1, "V": 0.5 * np.log(1 / 3) + 0.5 * np.log(2 / 3)}, "not with a half"),
    ("gan-2", lambda real, fake: game(real.sigmoid(), fake.sigmoid()), "bug of the text"),
    ("gan-2", lambda real, fake: game(fake, real), "exchanged"),
    ("gan-2", lambda real, fake: game(real, fake) / 2, "half of it"),
    ("gan-2", lambda real, fake: torch.log1p(torch.exp(1000 * fake)).mean(), "NaN or infinite"),
    ("gan-3", lambda x, mu: mu * x - mu**2 / 2, "sign is inverted"),
    ("gan-3", lambda x, mu: 1 / (1 + np.exp(mu * x - mu**2 / 2)), "this is D*"),
    ("gan-3", lambda x, mu: -mu * x, "is missing"),
    ("gan-3", lambda x, mu: -mu * x - mu**2 / 2, "wrong sign"),
    ("gan-4", lambda p, g, s: p / (p + g), "without smoothing"),
    ("gan-4", lambda p, g, s: (1 - s) * p / ((1 - s) * p + g), "does not vanish"),
    ("gan-4", lambda p, g, s: ((1 - s) * p + s * g) / (p + g), "both sides"),
    ("gan-5", lambda g: (g.norm() - 1) ** 2, "bug of the text"),
    ("gan-5", lambda g: (g.norm(dim=1).mean() - 1) ** 2, "not the norms"),
    ("gan-5", lambda g: (g.norm(dim=1).clamp(min=1) - 1).square().mean(), "below one too"),
    ("gan-5", lambda g: ((g.norm(dim=0) - 1) ** 2).mean(), "over the batch"),
    ("gan-6", lambda k, eta, lam: shrinks(1, eta, lam), "the others are missing"),
    ("gan-6", lambda k, eta, lam: (1 - eta * lam) ** (k / 2), "while the players circle"),
    ("gan-6", lambda k, eta, lam: (1 - eta * lam) ** k, "the determinant"),
    ("gan-6", lambda *a: shrinks(*a) ** 2, "θ² + ψ²"),
    ("gan-6", lambda k, eta, lam: shrinks(k, eta, lam) ** (1 / (k + 1)), "a round has k + 1"),
    ("gan-6", lambda k, eta, lam: 1 - eta / lam, "perfect ψ"),
    ("gan-6", lambda k, eta, lam: 1, "orbit closes"),
    ("gan-6", lambda k, eta, lam: shrinks(k, eta, lam / 2), "not ½ λψ"),
    ("gan-6", lambda k, eta, lam: shrinks(k, eta, 2 * lam), "not 2 λψ"),
    ("gan-6", lambda *a: np.abs(np.linalg.eigvals(round_of(*a))).min(), "smaller eigenvalue"),
    ("gan-6", lambda *a: 1 - shrinks(*a), "it should be"),
    ("gan-6", lambda *a: np.linalg.eigvals(round_of(*a))[0], "complex"),
    ("gan-6", round_of, "has shape (2, 2)"),
    ("ar-1", [(0, 1, 2)], "exclusive or"),
    ("ar-1", [(2, 0, 1), (2, 1, 0)], "in the order (2, 0, 1)"),
    ("ar-1", [(0, 1)], "is no order"),
    ("ar-2", lambda l, x: logits(l.sigmoid(), x, reduction="none").sum(1), "bug of the text"),
    ("ar-2", lambda l, x: logits(l, x, reduction="none").mean(1), "sum over pixels"),
    ("ar-2", lambda l, x: logits(l, x), "mean over images and pixels"),
    ("ar-2", lambda l, x: -logits(l, x, reduction="none").sum(1), "sign"),
    ("ar-3", lambda m, d_x: (m - 1, d_x - m), "one too few"),
    ("ar-3", lambda m, d_x: (m, d_x - m + 1), "one too many"),
    ("ar-3", lambda m, d_x: (d_x - m, m), "exchanged"),
    ("ar-4", 23, "one too few"),
    ("ar-4", 27, "first kernel counts"),
    ("ar-4", 12, "not two"),
    ("ar-4", 100, "how many rows"),
    ("ar-5", lambda x, a, b, delta: queue(x, a, b, delta, delta + 1), "too long"),
    ("ar-5", late_queue, "too short"),
    ("ar-5", lambda x, a, b, delta: queue(x, b, a, delta), "exchanged"),
    ("ar-5", lambda x, a, b, delta: [a * x[t] + b * x[t - delta] for t in range(len(x))], "raised TypeError"),
    ("flow-1", lambda x: norm.pdf(np.log(x)), "is missing"),
    ("flow-1", lambda x: norm.pdf(np.log(x)) * x, "not its inverse"),
    ("flow-1", lambda x: norm.pdf(np.exp(x)) * np.exp(x), "not into f"),
    ("flow-2", lambda x: coupling(x, lambda a, b: a + b), "bug of the text"),
    ("flow-2", lambda x: coupling(x, lambda a, b: -a), "sign"),
    ("flow-2", lambda x: coupling(x, lambda a, b: a.exp()), "its logarithm"),
    ("flow-2", lambda x: (x, torch.zeros(len(x))), "as in the text"),
    ("flow-3", 2, "after two"),
    ("flow-3", 4, "fewer are"),
    ("flow-4", 49, "a third of c³"),
    ("flow-4", 21, "applied at each"),
    ("flow-4", 74, "not 2c³/3"),
    ("flow-5", {"uniform": 8 * np.log(2), "black or not": 2.32}, "nats"),
    ("flow-5", {"uniform": 8, "black or not": 0.722}, "which of the other"),
    ("flow-5", {"uniform": 8, "black or not": 2.2}, "the sum of"),
    ("ebm-1", lambda x, m, lam: (*bowl(x, m, lam)[:3], -((x - m) ** 2) / 2), "Z depends on λ"),
    ("ebm-1", lambda x, m, lam: ((2 * np.pi * lam) ** 0.5, *bowl(x, m, lam)[1:]), "variance is 1/λ"),
    ("ebm-1", lambda x, m, lam: (bowl(x, m, lam)[0], lam * (x - m), *bowl(x, m, lam)[2:]), "score: the sign"),
    ("ebm-1", lambda x, m, lam: (*bowl(x, m, lam)[:2], x - m, bowl(x, m, lam)[3]), "factor λ"),
    (
        "ebm-2",
        lambda score, x, eps, sigma: 0.5 * (score(x + sigma * eps) - eps / sigma).square().sum(1),
        "bug of the text",
    ),
    ("ebm-2", lambda score, x, eps, sigma: 0.5 * (score(x + sigma * eps) + eps / sigma**2).square().sum(1), "once"),
    ("ebm-2", lambda score, x, eps, sigma: 0.5 * (score(x) + eps / sigma).square().sum(1), "not at x"),
    ("ebm-2", lambda score, x, eps, sigma: (score(x + sigma * eps) + eps / sigma).square().sum(1), "one half"),
    ("ebm-3", lambda lam: 2 / lam, "jumps to the middle"),
    ("ebm-3", lambda lam: 4 * lam, "the smaller the step"),
    ("ebm-3", lambda lam: 3.5 / lam, "between which values"),
    ("ebm-4", lambda H: (2 * (H**2).sum(), 2 * (H**2).sum()), "diagonal has no part"),
    ("ebm-4", lambda H: sliced(H)[::-1], "exchanged"),
    ("ebm-4", lambda H: (sliced(H)[0] / 2, sliced(H)[1] / 2), "factor of two is missing"),
    ("ebm-6", lambda a, b, s, t: min(1.0, math.exp(-(1 / s - 1 / t) * (a - b))), "sign of the exponent"),
    ("ebm-6", lambda a, b, s, t: math.exp((1 / s - 1 / t) * (a - b)), "minimum of one"),
    ("ebm-6", lambda a, b, s, t: (1 / s - 1 / t) * (a - b), "logarithm"),
    ("ebm-6", lambda a, b, s, t: min(1.0, math.exp((a - b) / s)), "equally frequent"),
    ("ebm-6", lambda a, b, s, t: 0.5, "constant"),
    ("ebm-6", lambda a, b, s, t: 0.0, "never swap"),
    ("ddpm-1", lambda c, bar, previous: step_back(0, bar, previous), "this is β̃"),
    ("ddpm-1", lambda c, bar, previous: 1 - bar / previous, "this is β,"),
    ("ddpm-1", lambda *a: step_back(*a) ** 0.5, "standard deviation"),
    ("ddpm-2", lambda *a: ancestral(*a, last=0), "bug of the text"),
    ("ddpm-2", lambda *a: ancestral(*a, last=99), "at all times"),
    ("ddpm-2", lambda *a: ancestral(*a, last=2), "one step before"),
    ("ddpm-2", lambda *a: ancestral(*a[:-1], a[-1] ** 2), "multiply it by σ"),
    ("ddpm-3", {"left": left_100**0.5, "nats": 177}, "√ᾱ_T"),
    ("ddpm-3", {"left": left_100, "nats": 177 / 784}, "one dimension"),
    ("ddpm-3", {"left": left_100, "nats": 392 * left_100}, "means alone"),
    ("ddpm-3", {"left": 4.0e-5, "nats": 177}, "T = 1,000"),
    ("ddpm-4", 0.1, "drawn evenly"),
    ("ddpm-4", 0.61, "later times"),
    ("ddpm-4", 0.25, "add up the weights"),
    ("ddpm-5", lambda x, v, bar: from_v(x, v, bar, -1), "v has the other sign"),
    ("ddpm-5", lambda x, v, bar: from_v(x, v, 1 - bar), "exchanged"),
    ("ddpm-5", lambda x, v, bar: (*from_v(x, v, bar)[:2], -from_v(x, v, bar)[0]), "divided by √(1-ᾱ)"),
    ("ddpm-6", {"posterior": 2.70, "forward": -0.22, "measured": 0.16}, "above -entropy"),
    ("ddpm-6", {"posterior": 2.70, "forward": 0.22, "measured": 0.5}, "minimises each term"),
    ("flow-6", 0.02, "a single flow"),
    ("flow-6", 0.9999, "outside"),
    ("flow-6", -9.5, "logarithm"),
    ("ebm-5", {"near": 0.124, "far": 0.008}, "exchanged"),
    ("ebm-5", {"near": 0.008, "far": 0.124**2}, "the variance"),
    ("ebm-5", {"near": 0.008, "far": 0.5}, "is the training over"),
    ("ebm-5", {"near": 1e-6, "far": 0.124}, "drawn anew"),
    ("hvae-6", {"1": 137.7, "2": 141.4, "3": 543.4}, "fair coin"),
    ("hvae-6", {"1": 137.7, "2": 210, "3": 141}, "independent pixels"),
    ("ar-6", {"rows": 125.1, "columns": -124.6, "outwards": 125.6}, "which is positive"),
    ("ar-6", {"rows": 125.1, "columns": 0.159, "outwards": 125.6}, "nats a pixel"),
    ("fast-1", lambda x, bar, end, m: end**0.5 * m + x - bar**0.5 * m, "the old level"),
    ("fast-1", lambda x, bar, end, m: 0 * x + m, "at ᾱ = 1 only"),
    ("fast-1", lambda x, bar, end, m: 0 * x + end**0.5 * m, "this is the mean"),
    ("fast-2", lambda *a: ddim(*a, noise=lambda bar, previous: bar), "bug of the text"),
    ("fast-2", lambda *a: ddim(*a, noise=lambda bar, previous: 1), "both parts"),
    ("fast-2", lambda x, eps, bar, previous: (x - (1 - bar) ** 0.5 * eps) / bar**0.5, "this is x̂_0"),
    ("fast-3", {name: -value for name, value in NATS.items()} | {"good enough": 1e-3}, "this is log p"),
    ("fast-3", {name: value / 2 for name, value in NATS.items()} | {"good enough": 1e-3}, "the entropy of the moons"),
    ("fast-3", {name: value / math.log(2) for name, value in NATS.items()} | {"good enough": 1e-3}, "bits"),
    ("fast-3", NATS | {"good enough": 1e-2}, "0.041 nats off"),
    ("fast-3", NATS | {"good enough": 1e-5}, "with 1e-3 your mean is 0.005 nats off"),
    ("fast-3", NATS | {"good enough": 1e-4}, "one of the three"),
    ("fast-3", NATS, "the keys are '1e-2', '1e-3', '1e-5'"),
    ("fast-3", NATS | {"1e-2": [2.5, 2.6], "good enough": 1e-3}, "'1e-2' holds 2 numbers"),
    ("fast-4", lambda a, b, angle: a + angle / (np.pi / 2) * (b - a), "straight line"),
    ("fast-4", lambda a, b, angle: np.sin(angle) * a + np.cos(angle) * b, "from b to a"),
    ("fast-4", lambda a, b, angle: a + angle * (b - a), "angle itself"),
    ("fast-5", lambda *a: RIGHT["fast-5"](*a)[::-1], "exchanged"),
    ("fast-5", lambda *a: tuple(v**0.5 for v in RIGHT["fast-5"](*a)), "standard deviations"),
    ("fast-5", lambda c, s, w: (c**2 * (c / s) ** w, RIGHT["fast-5"](c, s, w)[1]), "ratio of variances"),
    ("fast-5", lambda c, s, w: (RIGHT["fast-5"](c, s, w)[0], c**2 / (1 + w)), "without p(x)"),
    ("fast-6", list(range(100, -1, -10)), "even in t"),
    ("fast-6", [100, 91, 80, 68, 53, 35, 18, 7, 3, 1, 0], "even in log SNR"),
    ("fast-6", [100, 99, 98, 97, 96, 95, 94, 93, 92, 91, 0], "0.119 with times even in t and 0.161"),
    ("fast-6", list(range(0, 101, 10)), "rise"),
    ("fast-6", [*range(99, -1, -10), 0], "from 100 to 0"),
    ("fast-6", [100, 90, 80, 70, 60, 50, 50, 30, 20, 10, 0], "each once"),
    ("fast-6", [1.0 - 0.1 * i for i in range(11)], "not whole numbers"),
    ("fast-6", [100, 50, 0], "got 3 times"),
    ("eval-1", {"two": math.log(2), "ten": 1.8}, "its exponential"),
    ("eval-1", {"two": 2, "ten": 10}, "doubtful about each image"),
    ("eval-1", {"two": 10, "ten": 6.06}, "only two classes"),
    ("eval-2", lambda m, S, n, T: frechet(m, S, n, T, torch.trace(root(S) @ root(T))), "bug of the text"),
    (
        "eval-2",
        lambda m, S, n, T: frechet(m, S, m, T, torch.linalg.svdvals(root(S) @ root(T)).sum()),
        "means are missing",
    ),
    ("eval-2", lambda *a: RIGHT["eval-2"](*a).sqrt(), "its square"),
    ("eval-3", {"first": 5.1, "second": 4.8}, "what was reported"),
    ("eval-3", {"first": 5.1 + 1.05, "second": 4.8 + 0.21}, "too large"),
    ("eval-3", {"first": 5.1 - 0.21, "second": 4.8 - 1.05}, "exchanged"),
    ("eval-3", {"first": 5.1 - 1.05, "second": 4.8}, "what was reported"),
    ("eval-4", lambda *a: 1 - covered(*a), "missed"),
    ("eval-4", lambda *a: covered(*a, others=0), "n - 1 others"),
    ("eval-4", lambda n, m, k: 1 - (n / (m + n)) ** k, "many points"),
    ("eval-5", math.exp(-0.5), "good model"),
    ("eval-5", 1 - 2**-0.5, "bits"),
    ("eval-5", 39.3, "percentage"),
    ("eval-6", {"accuracy": norm.cdf(0.2), "points": 631}, "half-way"),
    ("eval-6", {"accuracy": 0.0797, "points": 631}, "total variation"),
    ("eval-6", {"accuracy": norm.cdf(0.1), "points": 158}, "one standard error"),
    ("eval-6", {"accuracy": norm.cdf(0.1), "points": 25}, "the root"),
    ("eval-7", ["copies", "blur", "noise", "lost classes", "uneven classes"], "the trained classifier"),
    ("eval-7", ["blur", "uneven classes", "noise", "lost classes", "copies"], "is the smallest first"),
    ("eval-7", ["copies", "blur", "lost classes", "noise", "uneven classes"], "'blur' comes before 'lost classes'"),
    ("eval-7", ["lost classes", "copies", "noise", "uneven classes", "blur"], "'lost classes' comes before 'copies'"),
    ("eval-7", ["copies", "lost classes", "noise", "blur"], "the entries are"),
    ("eval-7", {"copies": 1.1e-4, "lost classes": 2.1e-4}, "got a dict"),
    ("ar-1", {}, "got a dict"),
    ("ebm-6", lambda a, b, s, t: [0.5, 0.5], "holds 2 numbers"),
    ("ebm-5", {"near": [0.008, 0.009], "far": 0.124}, "'near' holds 2 numbers"),
    ("vae-5", {"eight draws": [183.6, 170.0], "one draw": 122.6}, "'eight draws' holds 2 numbers"),
    ("hvae-6", {"1": 137.7, "2": 141.4 / 2, "3": 141.3}, "no published model"),
    ("gp-3", lambda x, means, weights: means, "has shape (3,), not ()"),
]


def exercises(notebook):
    """(label, text, solution, what the solution printed) of every exercise."""
    cells = json.loads(notebook.read_text())["cells"]
    for cell, after in pairwise(cells):
        text, solution = ("".join(part["source"]) for part in (cell, after))
        for label in re.findall(r"^:label: (\S+)$", text, re.M):
            yield label, text, solution, "".join("".join(out.get("text", "")) for out in after.get("outputs", ()))


@pytest.mark.parametrize("label", CHECKERS)
def test_the_right_answer_is_right(label):
    verdict = check(label, RIGHT[label])
    assert verdict, verdict
    assert repr(verdict) == f"{label}: right"


@pytest.mark.parametrize(("label", "answer", "hint"), WRONG, ids=[f"{label}-{hint}" for label, _, hint in WRONG])
def test_a_wrong_answer_gets_the_hint_that_fits(label, answer, hint):
    verdict = check(label, answer)
    assert not verdict
    assert repr(verdict).startswith(f"{label}: not yet: ")
    assert hint.lower() in verdict.hint.lower(), verdict


def test_at_least_two_wrong_answers_of_each_exercise_are_tried():
    tried = [label for label, _, _ in WRONG]
    assert {label for label in CHECKERS if tried.count(label) < 2} == set()
    assert set(RIGHT) == set(CHECKERS)


@pytest.mark.parametrize("notebook", sorted(BOOK.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_exercise_can_be_checked_and_its_solution_is_right(notebook):
    stem = notebook.stem.partition("_")[2]
    found = list(exercises(notebook))
    here = [label for label, checker in CHECKERS.items() if checker.__module__ == f"companion.exercises.{stem}"]
    assert sorted(label for label, *_ in found) == sorted(here)
    for label, text, solution, printed in found:
        call = f'exercises.check("{label}", '
        assert re.search(rf"^(Check yours|See whether yours (is|are) plausible) with `{re.escape(call)}", text, re.M), (
            text
        )
        assert re.search(rf'exercises\.check\(\s*"{label}",', solution), solution
        assert f"{label}: right\n" in printed


@pytest.mark.parametrize("label", CHECKERS)
@pytest.mark.parametrize("answer", ["text", None, object(), [[1.0, "a"]], {"a": 1}, lambda *a: None, lambda *a: 1 / 0])
def test_another_form_is_told_which_is_meant(label, answer):
    verdict = check(label, answer)
    assert not verdict
    form = " ".join(CHECKERS[label].__doc__.partition("\n\n")[0].split())
    assert verdict.hint.endswith(f"The answer asked for: {form}")


@pytest.mark.parametrize("label", CHECKERS)
def test_nothing_that_a_reader_may_hand_in_raises(label):
    functions = [lambda *a, out=out: out for out in ([], {}, (1.0, 2.0), math.nan, np.zeros((2, 2)), "text", 1.0, 1j)]
    for answer in (math.nan, 1e9, -1.0, 10**400, 1j, b"text", {1, 2}, {}, dict, np.zeros((2, 3, 4)), *functions):
        assert not check(label, answer)


@pytest.mark.parametrize("label", [label for label, answer in RIGHT.items() if isinstance(answer, dict)])
def test_a_dictionary_has_one_number_for_each_key(label):
    right = RIGHT[label]
    first = next(iter(right))
    for wrong in ({}, [1.0, 2.0], None, "text", math.nan):
        assert repr(first) in check(label, right | {first: wrong}).hint
    assert "the keys are" in check(label, right | {"more": 1.0}).hint
    assert not check(label, {name: value for name, value in right.items() if name != first})


def test_an_unknown_label_raises_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"label is 'vae-99'.*vae-1, vae-2"):
        check("vae-99", 1.0)


def test_a_label_is_registered_once():
    with pytest.raises(ValueError, match="registered twice"):
        checks("gp-1")


def test_the_function_of_a_reader_cannot_change_the_test():
    def spoils(kl, allowance):
        found = np.maximum(kl.mean(0), allowance).sum()
        kl *= 0
        return found

    assert check("hvae-4", spoils)


def test_lists_arrays_and_tensors_are_all_numbers():
    for convert in (
        float,
        np.float32,
        np.array,
        torch.tensor,
        lambda v: [v],
        lambda v: torch.tensor([v]).requires_grad_(),
    ):
        assert check("flow-4", convert(147.0))
    assert check("elbo-3", lambda joint: torch.eye(len(joint))[int(joint.argmax())])
    assert "truth value" in check("flow-3", True).hint
    assert "NaN" in check("flow-4", float("nan")).hint


def test_a_game_that_is_played_shrinks_as_its_matrix_says():
    assert check("gan-6", played)


@pytest.mark.parametrize("power", [1.25, 1.5, 1.75])
def test_any_power_between_the_two_spacings_beats_both(power):
    assert check("fast-6", [round(100 * (1 - i / 10) ** power) for i in range(11)])


def test_a_looser_tolerance_may_be_good_enough():
    assert check("fast-3", {"1e-2": 2.5, "1e-3": 2.498, "1e-5": 2.497, "good enough": 0.01})


def test_what_differs_between_random_networks_may_stand_in_any_order():
    for last in permutations(["noise", "uneven classes", "blur"]):
        assert check("eval-7", ["copies", "lost classes", *last])


def test_the_checks_leave_the_generator_of_the_reader_alone():
    before = torch.random.get_rng_state()
    distances.__wrapped__()
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_tolerance_holds_on_both_sides():
    for off in (-0.99, 0.99):
        expect({"": 2 + off * 0.2}, {"": 2.0}, {}, "no", relative=0.05, absolute=0.1)
    for off in (-1.01, 1.01):
        with pytest.raises(NotYet, match="no"):
            expect({"": 2 + off * 0.2}, {"": 2.0}, {}, "no", relative=0.05, absolute=0.1)


def test_quadrature_agrees_with_the_closed_form_of_the_grey_pixels():
    """The one closed form of this file that is not in the book."""
    for p in (0.1, 0.3, 0.8):
        assert grey(p) == pytest.approx(integrate.quad(lambda x, p=p: p**x * (1 - p) ** (1 - x), 0, 1)[0])
