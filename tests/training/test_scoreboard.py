"""The scoreboard: each number against the metric computed here, its files against the page, and its resuming."""

import json
import math
import re
from pathlib import Path

import nbformat
import pytest
import torch

from companion import zoo
from companion.data import load
from companion.evaluation import frechet_distance, inception_score, precision_recall
from companion.experiments import scoreboard as board
from companion.models import DDPM, EBM, GAN, VAE, VDM, ConsistencyModel, LatentDiffusion, ScoreModel
from companion.presets import find, fixed, splits

ROOT = Path(__file__).parents[2]
KEYS = {"name", "config", "versions", "hardware", "seconds", "rows", "commit"}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(board, "IMAGES", 20)
    monkeypatch.setattr(board, "SAMPLES", 100)
    monkeypatch.setattr(board, "BATCH", 50)
    monkeypatch.setitem(board.ENTRIES, "vae", board.Entry("VAE", lambda model: 1, draws=7))


def test_a_row_is_what_the_metrics_say(small, tmp_path):
    row, samples = board.measure("vae", "quick", 3, 2, tmp_path, "cpu")
    model = find("vae", "quick").make()
    board.load_model(model, tmp_path / "model.safetensors")
    test = splits("mnist6k")[2]
    x, generator = test.binarized(seed=0), torch.Generator().manual_seed(3)
    drawn = torch.cat([model.sample(50, generator) for _ in range(2)])
    assert torch.equal(samples, drawn[:20])
    network = zoo.pretrained("digit_classifier")
    with torch.no_grad():
        fake, real = network.features(drawn), network.features(x)
        assert row["fid"] == pytest.approx(frechet_distance(fake, real).value, rel=1e-5)
        assert row["precision"] == precision_recall(fake, real).precision
        assert row["recall"] == precision_recall(fake, real).recall
        assert row["inception_score"] == pytest.approx(inception_score(network(drawn), splits=1).value, rel=1e-5)
        torch.manual_seed(3)
        nats = -model.importance_bound(x[:20], 7).double()
    assert row["nats"] == pytest.approx(nats.mean().item(), rel=1e-6)
    assert row["nats_error"] == pytest.approx(nats.std().item() / 20**0.5, rel=1e-6)
    assert row["bits_per_dim"] == pytest.approx(row["nats"] / (784 * math.log(2)), rel=1e-6)
    assert row["likelihood"] == "bound" and row["estimator"] == "importance-weighted, K = 7"
    assert row["parameters"] == sum(p.numel() for p in model.parameters()) and row["training_steps"] == 2
    assert row["fid_grey"] is None and (row["data"], row["train"]) == ("binary", "mnist6k")
    # Measured once more, from the weights that are kept: nothing is trained, and the seconds are those of then.
    again, _ = board.measure("vae", "quick", 3, 2, tmp_path, "cpu")
    changing = {"samples_per_second", "peak_memory"}
    assert {k: v for k, v in again.items() if k not in changing} == {k: v for k, v in row.items() if k not in changing}
    for seed, steps, other in ((4, 2, "seed"), (3, 5, "steps")):
        with pytest.raises(
            ValueError, match=rf"model\.safetensors holds a model of another {other}; give another folder"
        ):
            board.measure("vae", "quick", seed, steps, tmp_path, "cpu")


def test_grey_samples_are_measured_as_they_are_and_binarised(small):
    row, samples = board.measure("gan", "quick", 0, 1, None, "cpu")
    assert row["data"] == "grey" and row["likelihood"] == "none" and row["nats"] is None
    assert row["fid"] > 0 and row["fid_grey"] > 0 and row["fid"] != row["fid_grey"]
    assert samples.shape == (20, 1, 28, 28) and ((samples > 0) & (samples < 1)).any()


def test_an_autoencoder_draws_codes_with_the_moments_of_those_of_the_data():
    x = fixed(splits("mnist6k")[0], "no")
    model = board.GaussianCodes(find("autoencoder", "quick").make(), x)
    model.autoencoder.decoder = torch.nn.Identity()
    model.autoencoder.reconstruct = lambda z: z
    codes, drawn = model.autoencoder.code(x), model.sample(200_000, torch.Generator().manual_seed(0))
    scale = codes.std(0)
    assert ((drawn.mean(0) - codes.mean(0)).abs() < 5 * scale / 200_000**0.5).all()
    error = (drawn.T.cov() - codes.T.cov()).abs() / torch.outer(scale, scale)
    assert error.max() < 5 * 2**0.5 / 200_000**0.5


@pytest.mark.parametrize(
    ("name", "kind", "network"),
    [
        ("vae", VAE, "decoder"),
        ("gan", GAN, "generator"),
        ("ddpm", DDPM, "network"),
        ("vdm", VDM, "network"),
        ("score_model", ScoreModel, "network"),
        ("ebm", EBM, "network"),
        ("latent_diffusion", LatentDiffusion, "diffusion.network"),
        ("consistency", ConsistencyModel, "network"),
    ],
)
def test_calls_of_the_network_are_counted_right(name, kind, network):
    model = find(name, "quick").make().eval()
    assert isinstance(model, kind)
    if name == "latent_diffusion":
        model.fit_scale(load("mnist6k", "validation").binarized(seed=0))
    calls = []
    module = model.get_submodule(network)
    module.forward = lambda *args, inner=module.forward: calls.append(1) or inner(*args)
    model.sample(1, torch.Generator().manual_seed(0))
    # A latent diffusion calls its decoder too.
    assert board.ENTRIES[name].calls(model) == len(calls) + (name == "latent_diffusion")


def test_a_run_goes_on_with_what_is_missing(tmp_path):
    names = ("independent_pixels", "look_up")
    written = board.scoreboard(models=names, out=tmp_path)
    assert [path.name for path in written] == ["independent_pixels.json", "look_up.json"]
    before = written[1].read_text()
    written[0].unlink()
    assert board.scoreboard(models=names, out=tmp_path) == [written[0]] and written[1].read_text() == before
    # Nothing in these two depends on training: they are the rows that the package holds.
    for path in (tmp_path / f"{name}.json" for name in names):
        found, kept = json.loads(path.read_text()), json.loads((board.FOLDER / path.name).read_text())
        assert set(found) == KEYS and found["config"] == kept["config"]
        for key, value in kept["rows"][0].items():
            if key not in ("samples_per_second", "peak_memory"):
                close = pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
                assert found["rows"][0][key] == close, key
    with pytest.raises(ValueError, match=r"models must be among independent_pixels, look_up, .*, got 'nothing'"):
        board.scoreboard(models=("nothing",))


def test_every_family_has_its_file():
    found = board.results("quick")
    assert list(found) == list(board.ENTRIES)
    keys = list(found["vae"]["rows"][0])
    for preset, files in (("quick", found), ("paper", board.results("paper"))):
        for name, result in files.items():
            (row,) = result["rows"]
            assert set(result) == KEYS and list(row) == keys and row["model"] == result["name"] == name
            assert result["commit"] and "dirty" not in result["commit"], f"{name} was run from a changed tree"
            assert result["config"]["preset"] == preset and row["train"] == (
                "mnist6k" if preset == "quick" else "mnist"
            )
            assert (result["config"]["settings"] is None) == (row["training_steps"] == 0)
            assert (row["likelihood"] == "none") == (row["nats"] is None) == (row["bits_per_dim"] is None)
            assert (row["data"] == "grey") == (row["fid_grey"] is not None)
            assert row["samples"] == board.SAMPLES and row["evaluations"] > 0 and row["parameters"] >= 0
            drawn = board.samples(name, preset)
            assert drawn.shape == (20, 1, 28, 28) and 0 <= drawn.min() < drawn.max() <= 1
            # A latent diffusion draws its decoder's means.
            assert row["data"] == "grey" or name == "latent_diffusion" or set(drawn.unique().tolist()) == {0.0, 1.0}
    assert {name for name, entry in board.ENTRIES.items() if entry.zoo} <= set(board.results("paper"))


def test_a_picture_holds_its_samples():
    x = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    image = board.picture(x)
    assert image.size == (280, 56)
    pixel = image.getpixel((28 * 3 + 5, 28 + 7))  # the fourth of the second row
    assert pixel == round(255 * (1 - x[13, 0, 7, 5].item()))


def test_the_page_is_made_from_the_files():
    notebook = nbformat.read(ROOT / "book/10_evaluation.ipynb", as_version=4)
    shown = [
        output["data"]["text/markdown"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    for preset in ("quick", "paper"):
        assert board.table(preset) in shown, "run `make notebooks`: the files have changed"


def test_the_table_says_what_a_number_is():
    quality, cost = (text.splitlines() for text in board.table("quick").split("\n\n"))
    assert len(quality) == len(cost) == len(board.ENTRIES) + 2
    lines = {re.split(r" *\| *|, \d", line)[1]: line for line in quality[2:]}
    columns = [cell.strip() for cell in quality[0].split("|")[1:-1]]
    for name, result in board.results("quick").items():
        (row,) = result["rows"]
        cells = [cell.strip() for cell in lines[board.ENTRIES[name].title].split("|")[1:-1]]
        found = dict(zip(columns, cells, strict=True))
        assert found["nats"].startswith("≤") == (row["likelihood"] == "bound" and row["data"] == "binary")
        assert (found["nats"] == "") == (row["data"] == "grey" or row["nats"] is None)
        assert (found["bits/dim"] == "") == (row["data"] == "binary" or row["nats"] is None)
        assert float(found["FID"].replace(",", "")) == pytest.approx(row["fid"], abs=0.051)


def test_samples_that_are_not_finite_are_counted_and_replaced(small):
    class Lossy(torch.nn.Module):
        def sample(self, n, generator):
            x = torch.rand(n, 1, 28, 28, generator=generator)
            x[::5, 0, 3, 3] = torch.nan
            return 2 * x - 0.5

    x, lost = board._draw(Lossy(), torch.Generator().manual_seed(0))
    assert x.shape == (100, 1, 28, 28) and x.min() == 0 and x.max() == 1
    assert lost == 30  # ten in each fifty, of which it takes three

    class Hopeless(torch.nn.Module):
        def sample(self, n, generator):
            return torch.full((n, 1, 28, 28), torch.inf)

    with pytest.raises(FloatingPointError, match="only 0 of 200 samples are finite"):
        board._draw(Hopeless(), torch.Generator().manual_seed(0))
