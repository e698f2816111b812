"""The chapters keep the book's rules: every equation is checked, and git holds the notebooks' normal form."""

import json
import re
from pathlib import Path

import nbformat
import notebooks
import pytest
import yaml

from companion.derivations import CHECKS
from companion.models import capability_table

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(ROOT.glob("book/[0-9]*.ipynb"))
SLUGS = """
normalization prob-of-set prob-of-set-unnormalised inverse-cdf-sampling mle-forward-kl generator-pushforward
lipschitz-gap-mass product-rule marginal-likelihood chain-rule-evidence bayes-posterior kl-nonneg gibbs-cross-entropy
importance-identity jensen-concave elbo-jensen elbo-gap-kl kl-to-posterior-expanded elbo-recon-kl elbo-tightness
prior-standard-normal mvn-density covariance-def diag-gaussian-encoder gaussian-kl-closed-form recon-monte-carlo
gaussian-decoder-loglik reparameterization logvar-parameterization vae-loss-code beta-vae vae-ancestral-sampling
importance-weighted-bound hvae-joint hvae-posterior hvae-elbo pca-autoencoder gan-minimax gan-optimal-discriminator
gan-jsd-value jsd-definition gan-equilibrium gan-saturating-gradient gan-nonsaturating gan-nonsaturating-divergence
feature-matching minibatch-discrimination label-smoothing historical-averaging virtual-batch-norm gan-kde-density
ar-chain-rule ar-ancestral-sampling fvsbn nade made-mask pixelcnn-mask dilated-causal-conv receptive-field
flow-bijection change-of-variables flow-logdet-sum flow-training-objective flow-mle-affine jacobian-square
probability-conservation nice-additive-coupling realnvp-forward realnvp-inverse realnvp-loglik flow-sampling
glow-1x1conv glow-actnorm dequantization ebm-density boltzmann-temperature energy-ordering
score-is-minus-grad-energy fisher-divergence score-matching-implicit sliced-score-matching denoising-score-matching
ebm-mle-gradient contrastive-divergence noise-contrastive-estimation langevin-sampling
ddpm-alpha-bar ddpm-forward-step ddpm-marginal ddpm-variance-preserving ddpm-forward-joint ddpm-markov
ddpm-reverse-joint ddpm-reverse-kernel ddpm-prior-kl ddpm-path-elbo vdm-elbo-three-terms ddpm-posterior-mean
ddpm-posterior-variance ddpm-mu-eps complete-the-square ddpm-posterior-kl-mse eps-score-relation tweedie
ddpm-elbo-optimal ddpm-sampling consistency-function ode-truncation-error progressive-distillation latent-diffusion
""".split()


def read(path):
    return nbformat.read(path, as_version=4)


def prose(path):
    """The Markdown of a chapter, without exercises, their solutions and the boxes marked as wrong."""
    text = "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    boxes = re.compile(r"^:::\{(?:exercise|solution|admonition)\}.*?^:::$", re.S | re.M)
    return boxes.sub(lambda box: "" if "exercise" in box[0][:15] or "wrong" in box[0] else box[0], text)


def displayed(path):
    """(label, LaTeX) of every displayed equation of a chapter; the label is None where there is none."""
    pattern = re.compile(r"^\$\$\n(.*?)\n\$\$(?: \(([\w-]+)\))?\s*$", re.S | re.M)
    return [(label or None, latex) for latex, label in pattern.findall(prose(path))]


def squeezed(latex):
    return re.sub(r"\s+", "", latex)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_displayed_equation_has_a_label_and_a_check_that_states_it(path):
    chapter = path.stem.split("_", 1)[1]
    equations = displayed(path)
    assert equations
    # No equation hides in another form of display mathematics.
    assert prose(path).count("$$") == 2 * len(equations)
    assert r"\begin{equation" not in prose(path) and r"\begin{align}" not in prose(path) and r"\[" not in prose(path)
    for label, latex in equations:
        assert label in CHECKS, f"{label} has no check:\n{latex}"
        assert CHECKS[label].chapter == chapter
        assert squeezed(CHECKS[label].statement) == squeezed(latex), f"{label} is displayed otherwise than checked"


def test_every_check_has_an_equation():
    labels = [label for path in CHAPTERS for label, _ in displayed(path)]
    assert sorted(labels) == sorted(CHECKS), set(CHECKS).symmetric_difference(labels)


def test_the_promised_equations_are_there():
    assert set(SLUGS) <= set(CHECKS)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_links_lead_somewhere(path):
    """`[text](#target)` names an equation, a reference, an exercise or a heading's label."""
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "book/references.bib").read_text(), re.M)
    headings = [name for path in CHAPTERS for name in re.findall(r"^\((\S+)\)=$", prose(path), re.M)]
    known = {*CHECKS, *keys, *headings, *re.findall(r"^:label: (\S+)$", text, re.M)}
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        assert target in known, target
    for target in re.findall(r"\]\(((?!https?:|#)[^)]+)\)", text):
        assert (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_at_most_three_boxes_of_mistakes(path):
    text = "\n".join(cell.source for cell in read(path).cells)
    assert len(re.findall(r"^:class: .*\bwrong\b", text, re.M)) <= 3


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_notebook_is_in_normal_form(path):
    assert path.read_text() == notebooks.write(notebooks.normalise(read(path))), "run `make notebooks`"
    assert "image/png" not in path.read_text() and "base64" not in path.read_text()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_notebook_was_run_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in read(path).cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_figures_have_captions_and_words_for_those_who_cannot_see_them(path):
    for cell in read(path).cells:
        if cell.cell_type == "code" and re.search(r"plotting\.(panels|images)\(", cell.source):
            assert "nbval-ignore-output" in cell.metadata.tags, cell.source
            assert cell.metadata.mystnb.figure.caption and cell.metadata.mystnb.image.alt, cell.source


def test_names_of_figures_and_exercises_are_the_book_s_own():
    names = []
    for path in CHAPTERS:
        for cell in read(path).cells:
            names += re.findall(r"^:label: (\S+)$", cell.source, re.M)
            if "figure" in cell.metadata.get("mystnb", {}):
                names.append(cell.metadata.mystnb.figure.name)
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_animations_are_in_cells_that_are_not_compared(path):
    for cell in read(path).cells:
        if cell.cell_type == "code" and "plotting.animate(" in cell.source:
            assert "nbval-ignore-output" in cell.metadata.tags and "alt=" in cell.source, cell.source


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_trained_numbers_are_reported_in_cells_that_are_not_compared(path):
    for cell in read(path).cells:
        if cell.cell_type == "code" and re.search(r"^\s*report\(", cell.source, re.M):
            assert "nbval-ignore-output" in cell.metadata.tags, cell.source


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_exercises_have_hidden_solutions(path):
    cells = read(path).cells
    exercises = [i for i, cell in enumerate(cells) if ":::{exercise}" in cell.source]
    assert len(exercises) >= 5
    for i in exercises:
        solution = cells[i + 1]
        assert solution.source.startswith("# @title Solution"), solution.source
        assert "hide-cell" in solution.metadata.tags and solution.metadata.cellView == "form"
        assert solution.metadata.jupyter.source_hidden


def test_contents_and_colab_links_name_files_in_the_tree():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [c["file"] for part in contents["parts"] for c in part["chapters"]]
    for file in files:
        assert list(ROOT.glob(f"{file}.*")), file
    assert [ROOT / f"{f}.ipynb" for f in files if re.match(r"book/\d", f)] == CHAPTERS
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    # With any other value the buttons would lead to a folder that is not there.
    assert config["repository"]["path_to_book"] == "" and config["repository"]["branch"] == "main"


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_capability_table_is_the_models_own(page):
    assert capability_table() in (ROOT / page).read_text(), "paste companion.models.capability_table() into it"


def test_mathematics_uses_no_macros_of_our_own():
    for path in CHAPTERS:
        for macro in re.findall(r"\\(KL|E|R|N|given|argmax)\b", prose(path)):
            raise AssertionError(f"{path.name}: \\{macro} is not LaTeX")
    assert "macros" not in json.dumps(yaml.safe_load((ROOT / "_config.yml").read_text()))
