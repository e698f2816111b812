"""What any probability model should pass: of this package, of a reader's own, or of another library.

The functions take callables, so that nothing has to inherit from anything:

    normalised_by_quadrature(flow.log_prob, reach=6, dim=2).raise_if_failed()
    assert score_matches_gradient(network, target.log_prob, x)

`check(model)` runs those that apply to the methods a model has, and returns a report.
"""

from companion.conformance.bounds import (
    bound_below_exact,
    bound_matches_code,
    bound_monotone,
    bound_within_unit_mass,
    bounds_agree,
    posterior_matches_bayes,
)
from companion.conformance.checking import check
from companion.conformance.densities import (
    all_binary,
    normalised_by_enumeration,
    normalised_by_quadrature,
    normalised_in_expectation,
    sampler_agrees,
    sampler_agrees_by_gradient,
    sampler_repeatable,
)
from companion.conformance.diffusion import (
    denoiser_matches_score,
    sampler_without_final_noise,
    schedule_consistent,
)
from companion.conformance.layers import autoregressive, log_det_matches_autograd
from companion.conformance.losses import loss_in_unit
from companion.conformance.outcomes import ConformanceError, Outcome, Report
from companion.conformance.scores import energy_matches_log_prob, score_matches_gradient

__all__ = [
    "ConformanceError",
    "Outcome",
    "Report",
    "all_binary",
    "autoregressive",
    "bound_below_exact",
    "bound_matches_code",
    "bound_monotone",
    "bound_within_unit_mass",
    "bounds_agree",
    "check",
    "denoiser_matches_score",
    "energy_matches_log_prob",
    "log_det_matches_autograd",
    "loss_in_unit",
    "normalised_by_enumeration",
    "normalised_by_quadrature",
    "normalised_in_expectation",
    "posterior_matches_bayes",
    "sampler_agrees",
    "sampler_agrees_by_gradient",
    "sampler_repeatable",
    "sampler_without_final_noise",
    "schedule_consistent",
    "score_matches_gradient",
]
