"""Samplers, separate from the models they sample: they take energies, scores and conditionals as callables."""

from companion.samplers.ais import LogPartition, Path, ais, geometric_path, reverse_ais
from companion.samplers.annealed_langevin import annealed_langevin
from companion.samplers.chains import Chains, effective_sample_size, split_r_hat
from companion.samplers.gibbs import gibbs
from companion.samplers.mcmc import hmc, langevin, leapfrog, mala

__all__ = [
    "Chains",
    "LogPartition",
    "Path",
    "ais",
    "annealed_langevin",
    "effective_sample_size",
    "geometric_path",
    "gibbs",
    "hmc",
    "langevin",
    "leapfrog",
    "mala",
    "reverse_ais",
    "split_r_hat",
]
