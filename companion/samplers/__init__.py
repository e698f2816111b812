"""Samplers, separate from the models they sample: they take energies, scores, noise and conditionals as callables."""

from companion.samplers.ais import LogPartition, Path, ais, geometric_path, reverse_ais
from companion.samplers.annealed_langevin import annealed_langevin
from companion.samplers.chains import Chains, effective_sample_size, split_r_hat
from companion.samplers.diffusion import (
    Grid,
    ancestral,
    ddim,
    dpm_solver,
    euler,
    heun,
    predictor_corrector,
)
from companion.samplers.gibbs import gibbs
from companion.samplers.mcmc import hmc, langevin, leapfrog, mala
from companion.samplers.probability_flow import flow_log_prob, probability_flow

__all__ = [
    "Chains",
    "Grid",
    "LogPartition",
    "Path",
    "ais",
    "ancestral",
    "annealed_langevin",
    "ddim",
    "dpm_solver",
    "effective_sample_size",
    "euler",
    "flow_log_prob",
    "geometric_path",
    "gibbs",
    "heun",
    "hmc",
    "langevin",
    "leapfrog",
    "mala",
    "predictor_corrector",
    "probability_flow",
    "reverse_ais",
    "split_r_hat",
]
