"""Data: two-dimensional densities with a known log-density, images of 28 × 28 grey values, and short sounds."""

from companion.data.densities import DENSITIES, density
from companion.data.factors import Factors, factors
from companion.data.images import IMAGES, Images, binarize, load
from companion.data.waves import SAMPLE_RATE, WAVES, Waves, mu_law_decode, mu_law_encode, quantise, waves

__all__ = [
    "DENSITIES",
    "IMAGES",
    "SAMPLE_RATE",
    "WAVES",
    "Factors",
    "Images",
    "Waves",
    "binarize",
    "density",
    "factors",
    "load",
    "mu_law_decode",
    "mu_law_encode",
    "quantise",
    "waves",
]
