"""The page of common mistakes: complete, without ids in what is read, and every number on the right side."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from companion.derivations import CHECKS, mistakes
from companion.derivations.mistakes import NUMBERS

ROOT = Path(__file__).parents[1]
GROUPS = yaml.safe_load((ROOT / "book/appendix/mistakes.yml").read_text())
MISTAKES = [mistake for group in GROUPS for mistake in group["mistakes"]]
# Wrong equations, wrong claims, overstatements and contradictions.
COLLECTED = """
E000-02 E000-03 E000-07 E000-08 E000-10 E000-11 E000-12 E001-01 E001-02 E001-03 E001-04 E001-05 E001-07 E001-08
E001-09 E001-10 E001-11 E001-12 E001-14 E002-01 E002-02 E002-03 E002-04 E002-05 E002-06 E002-07 E002-08 E002-09
E002-10 E002-11 E002-12 E002-13 E002-14 E003-02 E003-03 E003-04 E003-05 E003-06 E003-07 E003-09 E003-10 E003-11
E003-12 E003-13 E003-14 E003-15 E003-16 E003-17 E003-18 E003-19 E003-20 E003-21 E003-22 E003-23 E003-24 E003-25
E003-27 E003-28 E003-29 E003-30 E003-31 E003-32 E003-33 E004-01 E004-02 E004-03 E004-05 E004-06 E004-07 E004-08
E004-09 E004-10 E004-11 E004-12 E004-16 E004-17 E004-18 E004-19 E004-22 E004-23
""".split()
# Slips of notation and of fact that mislead.
MISLEADING = "E000-05 E000-06 E000-09 E001-06 E001-13 E003-08 E003-26 E004-13".split()


def first_words(mistake):
    return mistake["errata"][0]


@pytest.fixture(scope="module")
def results():
    """The results of the checks that the page quotes."""
    labels = {m["refuted_by"]["label"] for m in MISTAKES if "label" in m["refuted_by"]}
    return {label: CHECKS[label].run() for label in labels}


@pytest.fixture(scope="module")
def extension():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "book/_ext")
        yield importlib.import_module("mistakes")


def test_every_collected_mistake_is_there_once():
    errata = [erratum for mistake in MISTAKES for erratum in mistake["errata"]]
    assert sorted(errata) == sorted([*COLLECTED, *MISLEADING])


@pytest.mark.parametrize("mistake", MISTAKES, ids=first_words)
def test_what_refutes_it_exists_and_does(mistake, results):
    match mistake["refuted_by"]:
        case {"label": label, "mutant": name}:
            [mutant] = [m for m in results[label].mutants if m.name == name]
            assert mutant.rejected and results[label].passed
            # Wrong variants say where they were found; no other of this check was found there.
            found_there = [m.name for m in results[label].mutants if m.erratum in mistake["errata"]]
            assert mutant.erratum in (None, *mistake["errata"]) and (name in found_there or not found_there)
        case {"number": name}:
            assert name in NUMBERS
        case {"basis": text}:
            assert text.endswith(".")
        case other:
            pytest.fail(f"refuted by {other}")


def test_only_what_cannot_be_computed_rests_on_a_basis():
    assert [m["errata"] for m in MISTAKES if "basis" in m["refuted_by"]] == [["E004-22"]]


@pytest.mark.parametrize("mistake", MISTAKES, ids=first_words)
def test_the_text_names_no_id_and_its_mathematics_stands_in_the_line(mistake, results, extension):
    ledger = {label: result.to_dict() for label, result in results.items()}
    text = " ".join(
        [mistake["mistake"], mistake["right"], extension.refutation(mistake["refuted_by"], ledger, "ledger.html")]
    )
    assert not re.search(r"E\d{3}-?\d*", text)
    assert "$$" not in text and "\\[" not in text.replace("\\[]", "") and text.count("$") % 2 == 0
    assert mistake["mistake"].endswith(".") and mistake["right"].rstrip(")").endswith(".")
    for label in re.findall(r"\]\(#([^)]+)\)", text):
        assert label in CHECKS, label


def test_refutations_say_what_was_found(extension):
    ledger = {"x": {"tolerance": 1e-10, "mutants": [{"name": "a^b_c", "error": 0.256}]}}
    text = extension.refutation({"label": "x", "mutant": "a^b_c"}, ledger, "l.html")
    assert text == ('Equation [](#x) with <a href="l.html#check-x">“a\\^b\\_c”</a> is off by 0.256; 1e-10 is allowed.')
    text = extension.refutation({"number": "largest_log_variance"}, {}, "")
    assert text.endswith("precision: 88.7. By the mistake it would be infinite.")
    assert extension.refutation({"number": "normaliser_error"}, {}, "").endswith(
        ": less than 10⁻⁶. By the mistake it would be 1."
    )
    assert extension.refutation({"basis": "So."}, {}, "") == "So."
    with pytest.raises(ValueError, match="refuted_by is"):
        extension.refutation({}, {}, "")
    with pytest.raises(KeyError):
        extension.refutation({"label": "y", "mutant": "a"}, ledger, "")


# --- the numbers, by another way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_far_from_what_the_mistake_claims(name):
    found = NUMBERS[name]
    assert abs(found.function() - found.claimed) >= found.margin > 0


def test_every_number_is_on_the_page():
    assert {m["refuted_by"]["number"] for m in MISTAKES if "number" in m["refuted_by"]} == set(NUMBERS)


def mixture_divergence(m):
    """KL from the two peaks to N(0, 1+m²), by Gauss-Hermite quadrature around a peak."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    x, weights = m + nodes, weights / weights.sum()
    log_peak = -0.5 * nodes**2 - 0.5 * np.log(2 * np.pi) + np.log1p(np.exp(-2 * m * x)) - np.log(2)
    return weights @ (log_peak + 0.5 * x**2 / (1 + m**2) + 0.5 * np.log(2 * np.pi * (1 + m**2)))


def score_function_variance(mean, dim):
    """Equation `reparameterization-variance` with σ = 1, over 4."""
    norm2 = mean @ mean
    return (norm2**2 + 2 * (dim + 4) * norm2 + 4 * mean[0] ** 2 + (dim + 2) * (dim + 4)) / 4


@pytest.mark.parametrize(
    ("name", "expected", "tolerance"),
    [
        ("autoencoder_spread", 10.0**2, 1e-9),
        ("unfilled_dimensions", 1.0, 0.0),
        ("two_peaks_from_a_gaussian_prior", mixture_divergence(3.0), 1e-6),
        ("posterior_gap", 0.5 * np.log(11**2 / (11**2 - 8**2)), 1e-12),
        ("largest_log_variance", np.log(np.finfo(np.float32).max), 1e-5),
        ("gradient_variance_ratio", score_function_variance(np.array([0.7, -0.7]), 2), 1e-10),
        ("horizontal_hits", 2.0, 0.0),
        ("recovered_latents", 4.0, 0.0),
        ("normaliser_error", 0.0, 1e-6),
        ("reverse_means_apart", 4 * 0.3, 1e-12),
    ],
)
def test_numbers(name, expected, tolerance):
    assert NUMBERS[name].function() == pytest.approx(expected, abs=tolerance)


def test_divergence_of_two_peaks_is_to_the_best_gaussian():
    assert mistakes.two_peaks_from_a_gaussian_prior(0.0) == pytest.approx(0, abs=1e-6)


def test_posterior_gap_vanishes_for_orthogonal_columns():
    assert mistakes.posterior_gap(0.0) == pytest.approx(0, abs=1e-12)
