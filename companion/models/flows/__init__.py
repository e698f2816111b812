"""Normalising flows: exact densities by the change of variables, and samples in one pass."""

from companion.models.flows.dequantisation import Dequantised, Logit, VariationalNoise
from companion.models.flows.flow import Flow
from companion.models.flows.glow import Glow
from companion.models.flows.maf import MAF
from companion.models.flows.nice import NICE
from companion.models.flows.realnvp import ImageRealNVP, RealNVP

__all__ = ["MAF", "NICE", "Dequantised", "Flow", "Glow", "ImageRealNVP", "Logit", "RealNVP", "VariationalNoise"]
