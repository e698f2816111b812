"""Short sounds of four timbres, and the μ-law by which a level of a few bits stands for an amplitude.

sounds = waves(1000)              # amplitudes (1000, 1024) on [-1, 1], labels (1000,)
x = quantise(sounds.amplitudes)   # the nearest of 256 levels, as WaveNet wants them
sounds.floor().mean()             # nats per sample that no model of these levels can go below
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from companion.validate import require_positive_int

WAVES = ("sine", "triangle", "sawtooth", "square")
SAMPLE_RATE = 8000

# Two octaves, periods of 80 down to 20 samples.
LOWEST_PITCH, HIGHEST_PITCH = 100.0, 400.0
QUIETEST, LOUDEST = 0.3, 0.9
NOISE = 0.01
# The noise is cut off at so many of its standard deviations: with the loudest sound it stays below 1.
REACH = 4.0


@dataclass(frozen=True, eq=False)
class Waves:
    """Sounds on [-1, 1]: `amplitudes` is `clean` plus the noise, and a label is the place of its timbre in WAVES."""

    amplitudes: Float[Tensor, "n length"]
    clean: Float[Tensor, "n length"]
    labels: Int64[Tensor, " n"]

    def floor(self, levels: int = 256) -> Float[Tensor, " n"]:
        """-log p of each sound's levels, `quantise(amplitudes, levels)`, given its clean signal; in nats per sample.

        Given timbre, pitch, phase and loudness only the noise is random, and its distribution function gives the
        probability of each level. No model can do better on average, as it knows less.
        """
        codes = mu_law_encode(self.amplitudes, levels)
        below, above = (
            ((edge[codes] - self.clean) / NOISE).clamp(-REACH, REACH) for edge in _edges(levels, codes.device)
        )
        phi = torch.special.ndtr
        mass = (phi(above) - phi(below)) / (2 * phi(torch.tensor(REACH, dtype=torch.float64)) - 1)
        return -mass.log().mean(1)


def waves(n: int, length: int = 1024, generator: torch.Generator | None = None) -> Waves:
    """Sounds of random timbre, pitch, phase and loudness: a sum of harmonics below half of SAMPLE_RATE, plus noise.

        s(t) = loudness · Σ_h (1 - h / (H + 1)) a_h sin(2πh (pitch · t + phase)),   h = 1 … H

    a_h are the Fourier coefficients of a wave between -1 and 1, of which Fejér's weights 1 - h / (H + 1) make an
    average with positive weights: it does not overshoot. The logarithm of the pitch is uniform from 100 to 400 Hz,
    the loudness uniform from 0.3 to 0.9. The noise is normal, of standard deviation 0.01 and cut off at 4 of them,
    so that no amplitude leaves [-1, 1].

    Args:
        length: samples of each sound, 8000 of them a second.
        generator: on the CPU; torch's global one if None.

    Raises ValueError unless n and length are positive integers.

    >>> from companion.data import waves
    >>> sounds = waves(3, length=256)
    >>> sounds.amplitudes.shape
    torch.Size([3, 256])
    """
    require_positive_int(n, "n")
    require_positive_int(length, "length")
    labels = torch.randint(len(WAVES), (n,), generator=generator)
    pitch, phase, loudness = torch.rand(3, n, 1, generator=generator, dtype=torch.float64)
    pitch = LOWEST_PITCH * (HIGHEST_PITCH / LOWEST_PITCH) ** pitch
    loudness = QUIETEST + (LOUDEST - QUIETEST) * loudness
    # In cycles. The whole ones are dropped while the type is wide, as harmonics multiply the error.
    phase = ((pitch / SAMPLE_RATE * torch.arange(length) + phase) % 1).float()
    harmonics = (SAMPLE_RATE / 2 / pitch).ceil() - 1
    clean = torch.zeros(n, length)
    for h in range(1, int(harmonics.max()) + 1):
        weight = loudness * _coefficients(h)[labels, None] * (1 - h / (harmonics + 1)).clamp(min=0)
        heard = weight[:, 0] != 0
        clean[heard] += weight[heard].float() * (2 * math.pi * h * phase[heard]).sin()
    uniform = torch.rand(n, length, generator=generator, dtype=torch.float64)
    tail = torch.special.ndtr(torch.tensor(-REACH, dtype=torch.float64))
    noise = NOISE * torch.special.ndtri(tail + (1 - 2 * tail) * uniform)
    return Waves(clean + noise.float(), clean, labels)


def _coefficients(h: int) -> Float[Tensor, " timbres"]:
    """Of the sine sin(2πhφ) in each of WAVES, all of which rise from 0 at φ = 0."""
    odd, sign = h % 2, (-1) ** (h // 2)
    sine, triangle = float(h == 1), 8 * odd * sign / (math.pi * h) ** 2
    sawtooth, square = -2 * (-1) ** h / (math.pi * h), 4 * odd / (math.pi * h)
    return torch.tensor([sine, triangle, sawtooth, square], dtype=torch.float64)


# μ-law (ITU-T G.711), with the smooth curve of van den Oord et al. (2016c), sec. 2.2:
#     f(x) = sign(x) ln(1 + μ|x|) / ln(1 + μ),   μ = levels - 1


def mu_law_encode(amplitudes: Float[Tensor, "*shape"], levels: int = 256) -> Int64[Tensor, "*shape"]:
    """The code of the nearest level, 0 to levels - 1: nearest after f, which makes levels dense around 0.

    Between two levels the greater one is taken.

    Raises:
        TypeError: `amplitudes` is not a floating-point tensor.
        ValueError: it has a value outside [-1, 1] or a NaN, or levels is no integer from 2 to 256.

    >>> import torch
    >>> from companion.data import mu_law_decode, mu_law_encode
    >>> codes = mu_law_encode(torch.tensor([-1.0, 0.0, 1.0]), 256)
    >>> codes
    tensor([  0, 128, 255])
    >>> [round(x, 2) for x in mu_law_decode(codes, 256).tolist()]
    [-1.0, 0.0, 1.0]
    """
    return (mu_law_position(amplitudes, levels) + 0.5).floor().long()


def mu_law_position(amplitudes: Float[Tensor, "*shape"], levels: int = 256) -> Float[Tensor, "*shape"]:
    """Where on the scale of the codes amplitudes lie, (f(x) + 1) / 2 · μ: `mu_law_encode` before it is rounded.

    Raises as `mu_law_encode`.
    """
    _require_levels(levels)
    if not isinstance(amplitudes, Tensor) or not amplitudes.is_floating_point():
        found = f"a tensor of {amplitudes.dtype}" if isinstance(amplitudes, Tensor) else type(amplitudes).__name__
        raise TypeError(f"amplitudes must be a floating-point tensor, got {found}")
    if not (amplitudes.abs() <= 1).all():
        wrong = amplitudes[~(amplitudes.abs() <= 1)]
        raise ValueError(f"amplitudes must lie in [-1, 1], got {wrong[0].item():.6g}")
    mu = levels - 1
    f = amplitudes.sign() * (mu * amplitudes.abs()).log1p() / math.log1p(mu)
    return (f + 1) / 2 * mu


def mu_law_decode(
    codes: Int[Tensor, "*shape"], levels: int = 256, dtype: torch.dtype | None = None
) -> Float[Tensor, "*shape"]:
    """The amplitude of each code, sign(y) ((1 + μ)^|y| - 1) / μ at y = 2 · code / μ - 1. Codes 0 and μ give ±1.

    Args:
        dtype: of the amplitudes; torch's default where None.

    Raises:
        TypeError: `codes` is not an integer tensor.
        ValueError: a code outside 0 to levels - 1, or levels is no integer from 2 to 256.
    """
    _require_levels(levels)
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        found = f"a tensor of {codes.dtype}" if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"codes must be an integer tensor, got {found}")
    wrong = (codes < 0) | (codes >= levels)
    if wrong.any():
        raise ValueError(f"codes must lie in 0..{levels - 1}, got {codes[wrong][0].item()}")
    table = _expand(torch.arange(levels, dtype=torch.float64), levels)
    return table.to(codes.device, torch.get_default_dtype() if dtype is None else dtype)[codes.long()]


def quantise(amplitudes: Float[Tensor, "*shape"], levels: int = 256) -> Float[Tensor, "*shape"]:
    """Each amplitude's nearest level by the μ-law, in the same dtype. Raises as `mu_law_encode`."""
    return mu_law_decode(mu_law_encode(amplitudes, levels), levels, amplitudes.dtype)


def _expand(position: Float[Tensor, "*shape"], levels: int) -> Float[Tensor, "*shape"]:
    """The amplitude at a position on the scale of the codes."""
    mu = levels - 1
    y, scale = 2 * position / mu - 1, math.log1p(mu)
    # The same function above and below the line, so that ±1 come out exactly.
    return y.sign() * torch.expm1(y.abs() * scale) / torch.expm1(torch.tensor(scale, dtype=y.dtype))


def _edges(levels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The least and the greatest amplitude of each code, float64; what lies beyond ±1 belongs to the outer codes."""
    inner = _expand(torch.arange(levels - 1, dtype=torch.float64) + 0.5, levels).to(device)
    infinity = inner.new_tensor([math.inf])
    return torch.cat([-infinity, inner]), torch.cat([inner, infinity])


def _require_levels(levels: int) -> None:
    require_positive_int(levels, "levels")
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must lie in 2..256, got {levels}")
