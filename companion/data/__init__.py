"""Data: two-dimensional densities with a known log-density, and images of 28 × 28 grey values."""

from companion.data.densities import DENSITIES, density
from companion.data.factors import Factors, factors
from companion.data.images import IMAGES, Images, binarize, load

__all__ = ["DENSITIES", "IMAGES", "Factors", "Images", "binarize", "density", "factors", "load"]
