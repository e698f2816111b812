"""The commands from training to evaluation, as a user gives them."""

import json
import math

import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

from companion import cli, experiments
from companion.evaluation import histogram_bits_per_dim
from companion.models import IndependentPixels, Loss, Player
from companion.models.autoregressive import FVSBN
from companion.presets import PRESETS, Preset, find, fixed, splits
from companion.training import Settings, load_model


@pytest.fixture
def companion(monkeypatch, tmp_path, capfd):
    """Runs a command line in an empty folder; gives the exit code, the output and the errors."""
    monkeypatch.chdir(tmp_path)

    def call(line):
        monkeypatch.setattr("sys.argv", ["companion", *line.split()])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return exit.value.code or 0, *capfd.readouterr()

    return call


LEARNERS = [name for name, presets in PRESETS.items() if presets["quick"].settings.validate_every]


@pytest.mark.parametrize("name", LEARNERS)
def test_train_sample_evaluate(companion, tmp_path, name):
    code, out, err = companion(f"train {name} --steps 3 --device cpu --out run")
    assert code == 0 and "3/3" in err
    assert "trained for 3 steps" in out and "companion evaluate run" in out
    files = {"model.safetensors", "config.json", "history.json", "checkpoint.safetensors"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == files
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert history[-1]["step"] == 3 and history[-1]["validation"] > 0

    code, out, err = companion("sample run --n 10 --out pictures/grid.png")
    if name == "autoencoder":
        assert code == 2 and "autoencoder cannot draw images" in err
    else:
        picture = imread(tmp_path / "pictures" / "grid.png")
        assert code == 0 and picture.shape == (3 * 28 * 3, 4 * 28 * 3, 4)
        assert (picture[2 * 84 :, 2 * 84 :, :3] == 1).all() and (picture[:84, :, :3] == 0).any()

    code, out, err = companion("evaluate run --importance-samples 2 --device cpu")
    assert code == 0, err
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["images"] == 1000 and result["data"] == "mnist6k"
    for row in result["rows"]:
        assert f"{row['mean']:8.3f}  {row['standard_error']:6.3f}  {row['unit']}" in out


class Darts(torch.nn.Module):
    """A game without likelihood: the thrower moves towards the mean image, the target away from the thrower."""

    def __init__(self):
        super().__init__()
        self.dart, self.target = torch.nn.Parameter(torch.zeros(1, 28, 28)), torch.nn.Parameter(torch.ones(1, 28, 28))

    def players(self):
        def throw(x):
            return Loss((x - self.dart).square().sum((1, 2, 3)), {}, "none")

        def flee(x):
            return Loss(-(self.target - self.dart.detach()).square().sum().expand(len(x)), {}, "none")

        return {"thrower": Player([self.dart], throw), "target": Player([self.target], flee, updates=2)}

    def sample(self, n, generator=None):
        return self.dart.detach().expand(n, 1, 28, 28).clamp(0, 1)


def test_game_is_trained_and_drawn_but_not_measured(companion, tmp_path, monkeypatch):
    preset = Preset("Darts.", Darts, Settings(steps=9), data="mnist6k", binarised="no")
    monkeypatch.setitem(PRESETS, "darts", {"quick": preset})
    code, out, err = companion("train darts --steps 3 --device cpu --out run")
    assert code == 0, err
    (row,) = json.loads((tmp_path / "run" / "history.json").read_text())
    assert row["step"] == 3 and row["target loss"] < -784
    assert f"run: thrower loss {row['thrower loss']:.2f}, target loss {row['target loss']:.2f}\n" in out
    assert "companion sample run" in out and "companion evaluate" not in out
    # The same command again: the settings in config.json are compared although JSON has no tuples.
    assert companion("train darts --steps 3 --device cpu --out run")[0] == 0
    code, _, err = companion("sample run --n 4")
    assert code == 0 and imread(tmp_path / "samples.png").shape == (2 * 84, 2 * 84, 4), err
    code, _, err = companion("evaluate run --device cpu")
    message = "darts cannot be measured on test images: it has no likelihood, no bound on one, and no loss to compare"
    assert code == 2 and err == f"companion evaluate: {message}\n"


def test_evaluation_is_right(companion, tmp_path):
    companion("train bernoulli_mixture --steps 3 --device cpu")
    code, _, _ = companion("evaluate runs/bernoulli_mixture --device cpu")
    assert code == 0
    rows = json.loads((tmp_path / "runs" / "bernoulli_mixture" / "evaluation.json").read_text())["rows"]
    model = find("bernoulli_mixture", "quick").make()
    load_model(model, tmp_path / "runs" / "bernoulli_mixture" / "model.safetensors")
    train, _, test = splits("mnist6k")
    x = fixed(test, "static")
    with torch.no_grad():
        exact, floor = -model.log_prob(x), -IndependentPixels((1, 28, 28)).fit(fixed(train, "static")).log_prob(x)
    for row, values in zip(rows, (exact, floor, exact - floor), strict=True):
        assert row["mean"] == pytest.approx(values.mean().item(), rel=1e-5)
        assert row["standard_error"] == pytest.approx(values.std().item() / 1000**0.5, rel=1e-4)
        assert row["unit"] == "nats"


def test_grey_digits_are_measured_in_bits(companion, tmp_path):
    companion("train nice --steps 2 --device cpu")
    assert companion("evaluate runs/nice --importance-samples 1 --device cpu --seed 3")[0] == 0
    rows = json.loads((tmp_path / "runs" / "nice" / "evaluation.json").read_text())["rows"]
    model, (train, _, test) = find("nice", "quick").make(), splits("mnist6k")
    load_model(model, tmp_path / "runs" / "nice" / "model.safetensors")
    torch.manual_seed(3)
    with torch.no_grad():
        bits = -torch.cat([model.eval().elbo(part) for part in test.intensities().split(100)]) / (784 * math.log(2))
    floor = histogram_bits_per_dim(train.pixels, test.pixels)
    # The bound with one draw is the same with the same seed.
    for row, values in zip(rows, (bits, bits, floor, bits - floor), strict=True):
        assert row["mean"] == pytest.approx(values.mean().item(), rel=1e-4) and row["unit"] == "bits/dim"
        assert row["standard_error"] == pytest.approx(values.std().item() / 1000**0.5, rel=1e-3)


def test_labels_from_training_to_samples(companion, tmp_path, monkeypatch):
    settings = Settings(steps=30, batch_size=50, learning_rate=0.05, validate_every=10)
    preset = Preset("Ten.", lambda: FVSBN(classes=10), settings, "mnist6k", "static", labelled=True)
    monkeypatch.setitem(PRESETS, "ten", {"quick": preset})
    code, out, err = companion("train ten --device cpu")
    assert code == 0 and "(nats)" in out, err
    assert companion("evaluate runs/ten --device cpu")[0] == 0
    row = json.loads((tmp_path / "runs" / "ten" / "evaluation.json").read_text())["rows"][0]
    model, test = preset.make(), splits("mnist6k")[2]
    load_model(model, tmp_path / "runs" / "ten" / "model.safetensors")
    with torch.no_grad():
        right, wrong = (-model.log_prob(fixed(test, "static"), y).mean().item() for y in (test.labels, 9 - test.labels))
    assert row["mean"] == pytest.approx(right, rel=1e-5) and right < wrong - 5
    # In turn, or all alike.
    for line, labels in (("", torch.arange(4)), (" --label 7", torch.full((4,), 7))):
        assert companion(f"sample runs/ten --n 4{line}")[0] == 0
        picture = torch.from_numpy(imread(tmp_path / "samples.png")[::3, ::3, 0]).unfold(0, 28, 28).unfold(1, 28, 28)
        expected = model.sample(4, torch.Generator().manual_seed(0), labels)
        assert torch.equal(1 - picture.reshape(4, 1, 28, 28).round(), expected)
    code, _, err = companion("sample runs/ten --n 4 --label 10")
    assert code == 2 and "from 0 to 9, got 10" in err


def test_same_command_goes_on_and_another_is_refused(companion, tmp_path):
    line = "train bernoulli_mixture --steps 3 --device cpu --seed 4"
    companion(line)
    first = load_file(tmp_path / "runs" / "bernoulli_mixture" / "model.safetensors")
    code, _, err = companion(line)
    assert code == 0 and "3/3" in err
    again = load_file(tmp_path / "runs" / "bernoulli_mixture" / "model.safetensors")
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
    code, _, err = companion("train bernoulli_mixture --steps 5 --device cpu --seed 4")
    assert code == 2 and "holds a model of another settings; give another folder with --out" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train nothing", f"companion train: there is no model 'nothing'; there are {', '.join(PRESETS)}"),
        ("train vae --steps 0", "companion train: steps must be a positive integer, got 0"),
        (
            "sample nowhere",
            "companion sample: there is no config.json in nowhere; `companion train NAME",
        ),
        ("evaluate nowhere", "companion evaluate: there is no config.json in nowhere"),
        ("run nothing", "companion run: there is no experiment 'nothing'; there are vae_beta"),
        ("verify --label nothing", "companion verify: "),
    ],
)
def test_mistakes_end_in_one_line(companion, line, message):
    code, _, err = companion(line)
    assert code == 2 and err.startswith(message) and err.count("\n") == 1


def test_run_writes_the_result(companion, tmp_path, monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny", lambda steps=5, seeds=(0,), device="cpu": [{"s": steps}])
    code, out, _ = companion("run tiny --seeds 3 4 --out results")
    result = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert code == 0 and "results/tiny.json is written" in out
    assert result["config"] == {"steps": 5, "seeds": [3, 4], "device": "cpu"} and result["rows"] == [{"s": 5}]


@pytest.mark.parametrize("command", ["", "train", "sample", "evaluate", "run", "verify"])
def test_help(companion, command):
    code, out, _ = companion(f"{command} --help")
    assert code == 0 and "usage: companion" in out


def test_run_of_the_scoreboard_writes_what_is_missing(companion, tmp_path):
    for expected in (1, 0):
        code, out, err = companion("run scoreboard --models look_up --out results")
        assert code == 0 and f"{expected} files are written to results/scoreboard" in out
    (row,) = json.loads((tmp_path / "results/scoreboard/look_up.json").read_text())["rows"]
    assert row["model"] == "look_up" and (tmp_path / "results/scoreboard/look_up.png").is_file()
    code, out, err = companion("run scoreboard --models nothing")
    assert code == 2 and "models must be among independent_pixels" in err


def test_training_in_two_stages_keeps_one_model(companion, tmp_path):
    code, _, _ = companion("train latent_diffusion --steps 2 --device cpu --out run")
    assert code == 0 and (tmp_path / "run/model.safetensors").is_file()
    code, out, _ = companion("sample run --n 4")
    assert code == 0 and "4 samples" in out
