"""Diffusion models: DDPM, and its limit of continuous time, the variational diffusion model."""

from companion.models.ddpm.ddpm import DDPM
from companion.models.ddpm.decoder import discretised_gaussian
from companion.models.ddpm.predictions import Prediction, from_eps, to_eps
from companion.models.ddpm.schedules import alpha_bars, cosine_schedule, linear_schedule
from companion.models.ddpm.vdm import VDM

__all__ = [
    "DDPM",
    "VDM",
    "Prediction",
    "alpha_bars",
    "cosine_schedule",
    "discretised_gaussian",
    "from_eps",
    "linear_schedule",
    "to_eps",
]
