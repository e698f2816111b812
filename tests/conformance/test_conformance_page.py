"""The page on checking one's own model: the right ones pass, and each broken twin is named."""

import ast
import re
from pathlib import Path

import pytest
from torch.distributions import Distribution

PAGE = Path(__file__).parents[2] / "book/appendix/conformance.md"


@pytest.fixture(scope="module")
def shown():
    """What each cell shows: its prints, then its last expression. All cells share their names, as in a notebook."""
    names, found = {"__name__": "page"}, []
    with pytest.MonkeyPatch.context() as patch:
        # zuko switches the checks of torch.distributions off for everyone, and here they come back.
        for name in ("_validate_args", "arg_constraints"):
            patch.setattr(Distribution, name, vars(Distribution)[name])
        for cell in re.findall(r"```\{code-cell\} ipython3\n(.*?)```", PAGE.read_text(), flags=re.S):
            lines = []
            names["print"] = lambda *values, lines=lines: lines.append(" ".join(map(str, values)))
            *body, last = ast.parse(cell).body
            exec(compile(ast.Module(body, []), str(PAGE), "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), str(PAGE), "eval"), names)
                lines += [] if value is None else [repr(value)]
            else:
                exec(compile(ast.Module([last], []), str(PAGE), "exec"), names)
            found.append("\n".join(lines))
    return found


def test_the_model_of_another_library_passes(shown):
    report, layer, *_ = shown
    assert "Spline: 3 passed, 0 failed" in report and "integrates to 1" in report
    assert layer.startswith("passed: log_det_matches_autograd")


@pytest.mark.parametrize(
    ("cell", "failure", "name"),
    [
        (2, "FAILED     log_prob integrates to 1", ": not 1 = exp("),
        (3, "FAILED: log_det_matches_autograd", "the sign is inverted"),
        (4, "FAILED     elbo is that of encode and decode", "the sigmoid is applied twice"),
        (5, "FAILED     score is the gradient", "the sign is inverted"),
        (6, "FAILED: autoregressive", "the order is reversed"),
        (7, "FAILED: sampler_without_final_noise", "noise of a standard deviation about"),
    ],
)
def test_each_twin_is_named(shown, cell, failure, name):
    assert failure in shown[cell] and name in " ".join(shown[cell].split()), shown[cell]


def test_the_right_ones_beside_the_twins_pass(shown):
    assert "DenoisingScore: 2 passed, 0 failed" in shown[5]
    assert shown[6].startswith("passed: autoregressive") and shown[7].startswith("passed: sampler_without_final_noise")
