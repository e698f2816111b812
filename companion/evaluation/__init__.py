"""Measures of models and of their codes, each usable without the rest."""

from companion.evaluation.disentanglement import mutual_information_gap
from companion.evaluation.kde import KernelDensity, choose_bandwidth, leave_one_out
from companion.evaluation.likelihood import bits_per_dim, histogram_bits_per_dim
from companion.evaluation.modes import ModeCoverage, mode_coverage
from companion.evaluation.two_sample import energy_distance

__all__ = [
    "KernelDensity",
    "ModeCoverage",
    "bits_per_dim",
    "choose_bandwidth",
    "energy_distance",
    "histogram_bits_per_dim",
    "leave_one_out",
    "mode_coverage",
    "mutual_information_gap",
]
