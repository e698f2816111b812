"""The examples of CONTRIBUTING.md do what it says they do."""

import re
from pathlib import Path

import nbformat
import notebooks
import pytest
import repository
import torch
from scipy.stats import logistic

from companion.derivations import elbo, registry
from companion.models import answers, generative_problem

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def example(start):
    """The block of Python that starts with a line."""
    blocks = [code for code in re.findall(r"^```python\n(.*?)^```$", TEXT, re.S | re.M) if code.startswith(start)]
    assert len(blocks) == 1, start
    return blocks[0]


def test_the_equation_is_checked_and_its_wrong_variants_are_rejected(monkeypatch):
    monkeypatch.setattr(registry, "CHECKS", {})
    # The check lies in no file whose lines could be named.
    monkeypatch.setattr(registry.Check, "source", "CONTRIBUTING.md")
    exec(example("@verifies("), {**vars(elbo)})
    [check] = registry.CHECKS.values()
    result = check.run()
    assert result.ok, repr(result)
    assert check.chapter == "elbo"
    # The chapter shows what is checked.
    assert f"$$\n{check.statement}\n$$ ({check.label})" in TEXT


def test_the_model_is_what_it_says_it_is():
    names = {**vars(generative_problem)}
    exec(example("class IndependentLogistic"), names)
    exec(example("from companion.conformance"), names)
    assert names["report"].passed, names["report"]
    model = names["IndependentLogistic"](3).double()
    assert answers(model) == ["loss", "sample", "exact density"]
    with torch.no_grad():
        model.centre.copy_(torch.tensor([0.5, -1.0, 2.0]))
        model.log_scale.copy_(torch.tensor([0.1, -0.4, 0.7]))
    x = model.sample(200, torch.Generator().manual_seed(0))
    expected = logistic.logpdf(x.numpy(), model.centre.detach().numpy(), model.log_scale.exp().detach().numpy()).sum(1)
    torch.testing.assert_close(model.log_prob(x).detach(), torch.from_numpy(expected))
    with pytest.raises(ValueError, match="dim"):
        names["IndependentLogistic"](0)


def test_the_chapter_has_the_form_of_the_others(tmp_path):
    path = tmp_path / "11_copulas.ipynb"
    exec(example("import nbformat"), {"path": path})
    chapter = nbformat.read(path, as_version=4)
    assert path.read_text() == notebooks.write(notebooks.normalise(chapter))
    assert next(c.source for c in chapter.cells if c.cell_type == "code") == repository.bootstrap()
    assert "\n$$ (copula)\n" in chapter.cells[2].source + "\n"
