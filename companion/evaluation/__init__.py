"""Measures of models and of their codes, each usable without the rest."""

from companion.evaluation.disentanglement import mutual_information_gap
from companion.evaluation.kde import KernelDensity, choose_bandwidth, leave_one_out
from companion.evaluation.modes import ModeCoverage, mode_coverage

__all__ = [
    "KernelDensity",
    "ModeCoverage",
    "choose_bandwidth",
    "leave_one_out",
    "mode_coverage",
    "mutual_information_gap",
]
