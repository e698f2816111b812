"""Measures of models and of their codes, each usable without the rest."""

from companion.evaluation.discrepancy import (
    GaussianKernel,
    KernelInceptionDistance,
    MaximumMeanDiscrepancy,
    cubic_kernel,
    kernel_inception_distance,
    median_heuristic,
    mmd,
)
from companion.evaluation.disentanglement import mutual_information_gap
from companion.evaluation.features import Conditions, Features, extract
from companion.evaluation.frechet import (
    FrechetDistance,
    Moments,
    UnbiasedFrechetDistance,
    frechet_distance,
    gaussian_frechet_distance,
    unbiased_frechet_distance,
)
from companion.evaluation.inception import inception_v3
from companion.evaluation.inception_score import InceptionScore, inception_score
from companion.evaluation.kde import KernelDensity, choose_bandwidth, leave_one_out
from companion.evaluation.likelihood import Likelihood, as_bits_per_dim, bits_per_dim, histogram_bits_per_dim
from companion.evaluation.memorisation import Memorisation, memorisation
from companion.evaluation.modes import ModeCoverage, mode_coverage
from companion.evaluation.neighbours import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    expected_coverage,
    precision_recall,
)
from companion.evaluation.two_sample import ClassifierTwoSample, classifier_two_sample, energy_distance

__all__ = [
    "ClassifierTwoSample",
    "Conditions",
    "DensityCoverage",
    "Features",
    "FrechetDistance",
    "GaussianKernel",
    "InceptionScore",
    "KernelDensity",
    "KernelInceptionDistance",
    "Likelihood",
    "MaximumMeanDiscrepancy",
    "Memorisation",
    "ModeCoverage",
    "Moments",
    "PrecisionRecall",
    "UnbiasedFrechetDistance",
    "as_bits_per_dim",
    "bits_per_dim",
    "choose_bandwidth",
    "classifier_two_sample",
    "cubic_kernel",
    "density_coverage",
    "energy_distance",
    "expected_coverage",
    "extract",
    "frechet_distance",
    "gaussian_frechet_distance",
    "histogram_bits_per_dim",
    "inception_score",
    "inception_v3",
    "kernel_inception_distance",
    "leave_one_out",
    "median_heuristic",
    "memorisation",
    "mmd",
    "mode_coverage",
    "mutual_information_gap",
    "precision_recall",
    "unbiased_frechet_distance",
]
