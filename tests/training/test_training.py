"""The training loop: against loops by hand, killed and resumed, in two processes."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from companion.models.questions import Loss, Player, answers
from companion.training import CHECKPOINT, Settings, fit, load_model, save_model

HERE = Path(__file__).parent
X = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
# One thread: with more, the order of a sum is the scheduler's choice on some machines.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class Toy(nn.Module):
    """Reconstructs from noisy inputs: a loss with two parts and noise of its own."""

    def __init__(self, seed=0, width=8, noise=0.1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Dropout(0.1 * bool(noise)), nn.Linear(width, 3))
        self.noise = noise

    def loss(self, x):
        z = x + self.noise * torch.randn_like(x) if self.noise else x
        error = (self.net(z) - x).square().sum(1)
        size = 0.01 * self.net[0].weight.square().sum().expand(len(x))
        return Loss(error + size, {"error": error, "size": size}, "squared error")


class Duel(nn.Module):
    """Two players with a saddle point at (0, 0): one descends in a² + ab, the other climbs in ab - b²."""

    def __init__(self, updates=(1, 1)):
        super().__init__()
        self.updates = updates
        self.a, self.b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-0.5))

    def players(self):
        def value(x, sign, own):
            return Loss((sign * self.a * self.b + own.square()).expand(len(x)), {}, "none")

        return {
            "a": Player([self.a], lambda x: value(x, 1, self.a), self.updates[0]),
            "b": Player([self.b], lambda x: value(x, -1, self.b), self.updates[1]),
        }


def train(model, settings, **kwargs):
    data = kwargs.pop("data", X)
    return fit(model, data, settings, **({"progress": False} | kwargs))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def batches(settings):
    """The batches of a run, read off a model without noise."""
    seen = []

    class Recorder(Toy):
        def loss(self, x):
            seen.append(x.clone())
            return super().loss(x)

    train(Recorder(noise=0.0), settings)
    return seen


def by_hand(model, settings, clip=None):
    """The weights after every step of a plain loop over the same batches."""
    betas = tuple(float(b) for b in settings.betas)
    optimiser = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas, weight_decay=settings.weight_decay, fused=False
    )
    states, norms = [], []
    for x in batches(settings):
        optimiser.zero_grad()
        model.loss(x).value.mean().backward()
        norm = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
        norms.append(norm.item())
        if clip is not None and norm > clip:
            for p in model.parameters():
                p.grad *= clip / norm
        optimiser.step()
        states.append(weights(model))
    return torch.stack(states), norms


# --- the loop


@pytest.mark.parametrize(
    ("clip", "betas"), [(None, (0.9, 0.999)), (0.5, (0.9, 0.999)), (None, (0.5, 0.6)), (None, (0, 0.9))]
)
def test_steps_are_those_of_a_plain_loop(clip, betas):
    settings = Settings(
        steps=12, batch_size=16, learning_rate=0.02, weight_decay=0.1, clip_norm=clip, betas=betas, log_every=1
    )
    fitted = train(Toy(noise=0.0), settings)
    states, norms = by_hand(Toy(noise=0.0), settings, clip)
    torch.testing.assert_close(weights(fitted.model), states[-1], rtol=1e-5, atol=1e-6)
    assert [row["gradient norm"] for row in fitted.history] == pytest.approx(norms, rel=1e-4)
    assert clip is None or max(norms) > clip


def test_batches_are_rows_of_the_data_drawn_uniformly():
    seen = torch.cat(batches(Settings(steps=200, batch_size=30)))
    which = (seen[:, None] == X).all(-1)
    assert (which.sum(1) == 1).all()
    counts = which.sum(0)
    assert 50 < counts.min() and counts.max() < 160  # 100 each, six standard deviations


def test_average_is_its_closed_form():
    settings = Settings(steps=15, batch_size=16, learning_rate=0.02, ema_decay=0.8)
    states, _ = by_hand(Toy(noise=0.0), settings)
    weight = 0.8 ** torch.arange(14, -1, -1.0)
    expected = (weight[:, None] * states).sum(0) / weight.sum()
    torch.testing.assert_close(weights(train(Toy(noise=0.0), settings).model), expected, rtol=1e-5, atol=1e-6)
    assert (expected - states[-1]).abs().max() > 1e-3


def test_validation_is_of_the_averaged_weights_and_the_same_each_time():
    settings = Settings(steps=9, batch_size=16, learning_rate=0.02, ema_decay=0.8, validate_every=3)
    fitted = train(Toy(noise=0.0), settings, validation=X[:50])
    with torch.no_grad():
        expected = fitted.model.loss(X[:50]).value.mean().item()
    assert fitted.history[-1]["validation"] == pytest.approx(expected, rel=1e-6)
    still = train(Toy(), Settings(steps=4, learning_rate=1e-12, validate_every=1), validation=X)
    values = [row["validation"] for row in still.history]
    assert values == pytest.approx([values[0]] * 4, rel=1e-6)


def test_history_is_a_plain_table():
    settings = Settings(steps=7, batch_size=8, log_every=3, validate_every=2)
    fitted = train(Toy(), settings, validation=X)
    assert [row["step"] for row in fitted.history] == [2, 3, 4, 6, 7]
    for row in fitted.history:
        measured = {"validation"} if row["step"] in (2, 4, 6, 7) else set()
        assert set(row) == {"step", "loss", "error", "size", "gradient norm"} | measured
        assert row["loss"] == pytest.approx(row["error"] + row["size"], rel=1e-5)
    assert json.loads(json.dumps(fitted.history)) == fitted.history
    best = min((row for row in fitted.history if "validation" in row), key=lambda row: row["validation"])
    assert fitted.best_step == best["step"]


def test_same_seed_same_numbers_and_global_generators_are_left_alone():
    def run(seed):
        return train(Toy(), Settings(steps=5, seed=seed, log_every=1))

    torch.manual_seed(7)
    first = run(0)
    after = torch.rand(3)
    torch.manual_seed(8)
    second, third = run(0), run(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(weights(first.model), weights(second.model)) and first.history == second.history
    assert not torch.equal(weights(first.model), weights(third.model))


def test_data_and_model_noise_have_streams_of_their_own():
    noise = []

    class Noisy(Toy):
        def loss(self, x):
            noise.append((x.clone(), torch.rand(len(x), 3)))
            return super().loss(x)

    train(Noisy(), Settings(steps=1, batch_size=4), data=lambda n, g: torch.rand(n, 3, generator=g))
    assert not torch.equal(*noise[0])


def test_early_stopping_gives_the_best_weights_back():
    # A large step overshoots: the validation loss falls, then rises.
    settings = Settings(steps=400, batch_size=4, learning_rate=0.2, validate_every=2, patience=4)
    fitted = train(Toy(noise=0.0), settings, validation=X[:50])
    values = {row["step"]: row["validation"] for row in fitted.history if "validation" in row}
    assert fitted.best_step == min(values, key=values.get) == max(values) - 8 < 392
    with torch.no_grad():
        assert fitted.model.loss(X[:50]).value.mean().item() == pytest.approx(values[fitted.best_step], rel=1e-6)
    assert not fitted.model.training


def test_early_stopping_keeps_the_averaged_weights():
    settings = Settings(steps=60, batch_size=4, learning_rate=0.2, ema_decay=0.5, validate_every=2, patience=4)
    fitted = train(Toy(noise=0.0), settings, validation=X[:50])
    with torch.no_grad():
        value = fitted.model.loss(X[:50]).value.mean().item()
    assert value == pytest.approx(min(row.get("validation", 1e9) for row in fitted.history), rel=1e-6)


def test_validation_is_in_evaluation_mode():
    modes = []

    class Modes(Toy):
        def loss(self, x):
            modes.append(self.training)
            return super().loss(x)

    train(Modes(), Settings(steps=2, batch_size=60, validate_every=1), validation=X)
    assert modes == [True, False, True, False]


def test_frozen_parameters_stay_as_they_are():
    model = Toy()
    model.net[0].weight.requires_grad_(False)
    before = model.net[0].weight.clone()
    train(model, Settings(steps=3, weight_decay=0.1, ema_decay=0.5))
    assert torch.equal(model.net[0].weight, before)


def test_progress_goes_to_stderr_with_the_loss(capsys):
    fit(Toy(), X, Settings(steps=3))
    out, err = capsys.readouterr()
    assert out == "" and "3/3" in err and "loss" in err
    train(Toy(), Settings(steps=3))
    assert capsys.readouterr() == ("", "")


# --- several players


@pytest.mark.parametrize("updates", [(1, 1), (3, 1), (1, 2)])
def test_two_players_are_stepped_in_turn_each_with_its_own_gradient(updates):
    fitted = train(Duel(updates), Settings(steps=20, learning_rate=0.05, log_every=1))
    a, b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-0.5))
    first, second = (torch.optim.AdamW([p], lr=0.05, weight_decay=0.0) for p in (a, b))
    for row in fitted.history:
        assert set(row) == {"step", "a loss", "a gradient norm", "b loss", "b gradient norm"}
        for _ in range(updates[0]):
            loss = (a * b + a * a).item()
            a.grad = (b + 2 * a).detach()
            first.step()
        # Of the last update, which is the one that the row is about.
        assert row["a loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
        assert row["a gradient norm"] == pytest.approx(abs(a.grad.item()), rel=1e-4, abs=1e-6)
        for _ in range(updates[1]):
            b.grad = (-a + 2 * b).detach()
            second.step()
        assert row["b gradient norm"] == pytest.approx(abs(b.grad.item()), rel=1e-4, abs=1e-6)
    assert weights(fitted.model).tolist() == pytest.approx([a.item(), b.item()], rel=1e-5)


def test_two_players_of_a_bilinear_game_jump_across_its_saddle_point():
    """In xy; with β₁ = β₂ = 0 every update is the learning rate times the sign of the gradient."""

    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.y = nn.Parameter(torch.tensor(0.25)), nn.Parameter(torch.tensor(0.25))

        def players(self):
            def value(data, sign):
                return Loss((sign * self.x * self.y).expand(len(data)), {}, "none")

            return {"x": Player([self.x], lambda d: value(d, 1)), "y": Player([self.y], lambda d: value(d, -1))}

    path = []

    def data(n, generator):
        path.append(weights(model).tolist())
        return X[:n]

    model = Bilinear()
    train(model, Settings(steps=9, batch_size=4, learning_rate=0.5, betas=(0.0, 0.0)), data=data)
    corners = [[0.25, 0.25], [-0.25, -0.25]]
    # x moves against the sign of y, then y with the sign of the new x: to the opposite corner, and back. Were both
    # moved at once, they would visit all four.
    assert torch.tensor(path).allclose(torch.tensor((corners * 5)[:9]), atol=1e-6)


def test_first_updates_share_the_batch_and_further_ones_draw_their_own():
    seen = []

    class Recorder(Duel):
        def players(self):
            def recording(name, player):
                def loss(x):
                    seen.append((name, x.clone()))
                    return player.loss(x)

                return player._replace(loss=loss)

            return {name: recording(name, player) for name, player in super().players().items()}

    settings = Settings(steps=4, batch_size=5)
    train(Recorder(updates=(3, 2)), settings)
    assert [name for name, _ in seen] == ["a", "a", "a", "b", "b"] * 4
    fresh = batches(Settings(steps=16, batch_size=5))
    # Of each step's four batches both players see the first one; a sees the second and the third, b the fourth.
    expected = [fresh[4 * step + i] for step in range(4) for i in (0, 1, 2, 0, 3)]
    assert all(torch.equal(x, batch) for (_, x), batch in zip(seen, expected, strict=True))
    assert not any(torch.equal(fresh[i], fresh[j]) for i in range(16) for j in range(i))


def test_game_answers_how_it_learns():
    assert answers(Duel) == answers(Toy) == ["loss"]


# --- what is not finite


class Failing(Toy):
    """Its part "size" is NaN from the third step on."""

    def __init__(self, part="size"):
        super().__init__(noise=0.0)
        self.calls, self.part = 0, part

    def loss(self, x):
        self.calls += 1
        _, parts, unit = super().loss(x)
        if self.calls >= 3:
            parts[self.part] = parts[self.part] * torch.nan
        return Loss(parts["error"] + parts["size"], parts, unit)


def test_non_finite_loss_without_parts_is_named():
    class Plain(Toy):
        def loss(self, x):
            return Loss(super().loss(x).value * torch.inf, {}, "none")

    with pytest.raises(FloatingPointError, match=r"^step 1: loss is inf \(loss = inf, gradient norm = "):
        train(Plain(), Settings(steps=1))


@pytest.mark.parametrize("part", ["error", "size"])
def test_non_finite_loss_stops_before_the_weights_change(part):
    model = Failing(part)
    with pytest.raises(FloatingPointError, match=rf"^step 3: {part} is nan \(loss = nan, error = .*, size = "):
        train(model, Settings(steps=5, batch_size=16))
    assert torch.equal(weights(model), weights(train(Toy(noise=0.0), Settings(steps=2, batch_size=16)).model))


def test_non_finite_gradient_stops_before_the_weights_change():
    class Cusp(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def loss(self, x):
            return Loss(self.w.sum().sqrt().expand(len(x)), {}, "none")

    model = Cusp()
    with pytest.raises(FloatingPointError, match="step 1: gradient norm is inf"):
        train(model, Settings(steps=5))
    assert torch.equal(model.w.detach(), torch.zeros(2))


def test_non_finite_validation_stops():
    validation = X.clone()
    validation[3] = torch.inf
    with pytest.raises(FloatingPointError, match="step 2: validation loss is"):
        train(Toy(), Settings(steps=5, validate_every=2), validation=validation)


# --- precision


def test_bf16_is_near_float32():
    """bf16 keeps 8 bits: a loss of rounded activations is right to a few parts in 2⁸."""
    full, half = (
        train(Toy(width=64, noise=0.0), Settings(steps=20, log_every=1, mixed_precision=precision))
        for precision in ("no", "bf16")
    )
    losses = [[row["loss"] for row in fitted.history] for fitted in (full, half)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


# --- resuming

SETTINGS = Settings(
    steps=20,
    batch_size=16,
    learning_rate=0.02,
    weight_decay=0.01,
    clip_norm=1.0,
    ema_decay=0.9,
    log_every=2,
    validate_every=3,
    patience=6,
    checkpoint_every=4,
)


class Interrupted:
    """Draws batches with the generator, and is interrupted at one of them."""

    def __init__(self, at=None):
        self.at, self.calls = at, 0

    def __call__(self, n, generator):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return X[torch.randint(len(X), (n,), generator=generator)] + 0.1 * torch.randn(n, 3, generator=generator)


def same(one, two):
    return (
        torch.equal(weights(one.model), weights(two.model))
        and one.history == two.history
        and one.best_step == two.best_step
    )


@pytest.mark.parametrize("at", [1, 4, 5, 11, 17, 20])
@pytest.mark.parametrize("settings", [SETTINGS, Settings(steps=20, log_every=3, checkpoint_every=4)])
def test_resumes_exactly(tmp_path, at, settings):
    validation = X if settings.validate_every else None
    whole = train(Toy(), settings, data=Interrupted(), validation=validation)
    with pytest.raises(KeyboardInterrupt):
        train(Toy(), settings, data=Interrupted(at), validation=validation, folder=tmp_path)
    rest = Interrupted()
    # Another start and another global generator: all of it must come from the checkpoint.
    torch.manual_seed(at)
    resumed = train(Toy(seed=5 if at > 4 else 0), settings, data=rest, validation=validation, folder=tmp_path)
    assert same(resumed, whole)
    assert rest.calls == 20 - (at - 1) // 4 * 4
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_resumes_the_waiting_for_a_better_validation(tmp_path):
    settings = Settings(steps=400, batch_size=4, learning_rate=0.2, validate_every=2, patience=4, checkpoint_every=1)
    whole = train(Toy(), settings, data=Interrupted(), validation=X)
    last = whole.history[-1]["step"]
    assert last < 400 and whole.best_step > 2
    for at in range(whole.best_step, last, 3):
        with pytest.raises(KeyboardInterrupt):
            train(Toy(), settings, data=Interrupted(at), validation=X, folder=tmp_path / str(at))
        resumed = train(Toy(), settings, data=Interrupted(), validation=X, folder=tmp_path / str(at))
        assert same(resumed, whole)


class Rivals(nn.Module):
    """Two networks with noise of their own: one codes for the other, which wants the code to be far off."""

    def __init__(self, updates=3):
        super().__init__()
        self.one, self.two, self.updates = Toy(seed=1), Toy(seed=2), updates

    def players(self):
        def far(x):
            loss = self.two.loss(x)
            return loss._replace(value=loss.value - 0.1 * (self.one.net(x) - x).square().sum(1))

        return {
            "one": Player(self.one.parameters(), self.one.loss, self.updates),
            "two": Player(self.two.parameters(), far),
        }


@pytest.mark.parametrize("at", [1, 5, 12, 13, 14, 15, 16, 17, 30])
def test_resumes_a_game(tmp_path, at):
    """Interrupted at any of the batches, of which a step has three."""
    settings = Settings(steps=10, learning_rate=0.05, betas=(0.5, 0.9), log_every=1, checkpoint_every=2, ema_decay=0.9)
    whole = train(Rivals(), settings, data=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        train(Rivals(), settings, data=Interrupted(at), folder=tmp_path)
    rest = Interrupted()
    torch.manual_seed(at)
    resumed = train(Rivals(), settings, data=rest, folder=tmp_path)
    assert same(resumed, whole)
    assert rest.calls == 30 - (at - 1) // 6 * 6
    with pytest.raises(
        ValueError, match=r"another run: players is {'one': 3, 'two': 1} there and {'one': 2, 'two': 1} here"
    ):
        train(Rivals(updates=2), settings, folder=tmp_path)


def test_finished_run_is_not_trained_again(tmp_path):
    settings = Settings(steps=400, batch_size=4, learning_rate=0.2, validate_every=2, patience=4)
    first = train(Toy(), settings, validation=X, folder=tmp_path)
    assert first.history[-1]["step"] < 400
    again = train(Toy(seed=5), settings, data=Interrupted(1), validation=X, folder=tmp_path)
    assert same(first, again)


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
from test_training import SETTINGS, X, Toy, train
from dataclasses import replace
class Slow(Toy):
    def loss(self, x):
        time.sleep(float(sys.argv[3]))
        return super().loss(x)
settings = replace(SETTINGS, steps=200, patience=None, checkpoint_every=1)
fitted = train(Slow(), settings, validation=X, folder=sys.argv[2] or None)
print(repr((fitted.history, [p.tolist() for p in fitted.model.parameters()])))
"""


def test_survives_a_kill_at_any_moment(tmp_path):
    """Killed twice, without warning, as it writes a checkpoint at every step."""

    def start(folder, pause):
        command = [sys.executable, "-c", KILLED, str(HERE), str(folder), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)

    def written():
        return path.stat().st_mtime_ns if path.exists() else None

    whole = start("", 0)
    path, partial = tmp_path / CHECKPOINT, tmp_path / (CHECKPOINT + ".partial")
    for during in (path, partial):
        process, before, deadline = start(tmp_path, 0.005), written(), time.monotonic() + 60
        while written() == before or not during.exists():
            assert time.monotonic() < deadline and process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    resumed = start(tmp_path, 0)
    assert resumed.communicate()[0] == whole.communicate()[0] != ""
    assert resumed.returncode == whole.returncode == 0


def test_checkpoint_of_another_run_is_refused(tmp_path):
    train(Toy(), Settings(steps=2), folder=tmp_path)
    with pytest.raises(ValueError, match=r"another run: steps is 2 there and 4 here; learning_rate is 0\.001 there"):
        train(Toy(), Settings(steps=4, learning_rate=0.1), folder=tmp_path)
    with pytest.raises(ValueError, match=r"another run: betas is \[0\.9, 0\.999\] there and \[0\.5, 0\.999\] here"):
        train(Toy(), Settings(steps=2, betas=(0.5, 0.999)), folder=tmp_path)
    with pytest.raises(ValueError, match=r"another model: 'net\.0\.weight' is float32 \(8, 3\) there and .*\(9, 3\)"):
        train(Toy(width=9), Settings(steps=2), folder=tmp_path)
    with pytest.raises(ValueError, match=r"float32 \(8, 3\) there and float64 \(8, 3\) here"):
        train(Toy().double(), Settings(steps=2), folder=tmp_path)
    save_model(Toy(), tmp_path / CHECKPOINT, {"name": "toy"})
    with pytest.raises(ValueError, match="is not a checkpoint: it has no 'run'"):
        train(Toy(), Settings(steps=2), folder=tmp_path)


@pytest.mark.parametrize("damage", ["empty", "half", "one byte of a tensor", "one letter of the header", "text"])
def test_damaged_checkpoint_is_refused(tmp_path, damage):
    train(Toy(), Settings(steps=2), folder=tmp_path)
    path = tmp_path / CHECKPOINT
    content = bytearray(path.read_bytes())
    if damage == "one byte of a tensor":
        content[-5] ^= 1
    elif damage == "one letter of the header":
        content[content.index(b"gradient norm")] ^= 1
    else:
        content = {"empty": b"", "half": content[: len(content) // 2], "text": b"not a checkpoint at all"}[damage]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged \(.*\); delete it to start anew"):
        train(Toy(), Settings(steps=2), folder=tmp_path)


def test_weights_are_kept_with_their_metadata(tmp_path):
    model, other = Toy(seed=1), Toy(seed=2)
    save_model(model, tmp_path / "model.safetensors", {"name": "toy", "preset": "quick"})
    assert load_model(other, tmp_path / "model.safetensors") == {"name": "toy", "preset": "quick"}
    assert torch.equal(weights(model), weights(other))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_model(other, tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="another model"):
        load_model(Toy(width=3), tmp_path / "model.safetensors")


def test_weights_of_half_the_size_are_the_rounded_ones(tmp_path):
    model, other = Toy(seed=1), Toy(seed=2)
    for half in (False, True):
        save_model(model, tmp_path / f"{half}.safetensors", {}, half=half)
    load_model(other, tmp_path / "True.safetensors")
    assert all(t.dtype == torch.float32 for t in other.state_dict().values())
    assert torch.equal(weights(other), weights(model).bfloat16().float())
    assert not torch.equal(weights(other), weights(model))
    sizes = [sum(t.nbytes for t in load_file(tmp_path / f"{half}.safetensors").values()) for half in (False, True)]
    assert sizes[0] == 2 * sizes[1]
    with pytest.raises(ValueError, match="another model"):
        load_model(Toy(seed=1).double(), tmp_path / "True.safetensors")


def test_tied_weights_are_kept(tmp_path):
    class Tied(Toy):
        def __init__(self, seed=0):
            super().__init__(seed)
            self.same = self.net[0]

    train(Tied(), Settings(steps=2), folder=tmp_path)
    save_model(Tied(1), tmp_path / "model.safetensors", {})
    model = Tied(2)
    load_model(model, tmp_path / "model.safetensors")
    assert model.same.weight is model.net[0].weight and torch.equal(weights(model), weights(Tied(1)))


# --- several processes

DISTRIBUTED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch
import torch.distributed as dist
from test_training import X, Toy, train
from companion.training import Settings
settings = Settings(steps=12, batch_size=16, learning_rate=0.02, clip_norm=0.5, ema_decay=0.9, log_every=1,
                    validate_every=4, checkpoint_every=5, patience=8)
def run(seed):
    model = Toy(seed=seed, noise=0.0).double()
    return train(model, settings, data=X.double(), validation=X[:50].double(), folder=sys.argv[2])
# Different starts: the first process's is the one that counts.
fitted = run(int(os.environ.get("RANK", 0)))
again = run(9)
assert again.history == fitted.history
size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
weights = torch.cat([p.detach().flatten() for p in fitted.model.parameters()]).tolist()
open(f"{sys.argv[2]}/rank{rank}.txt", "w").write(repr((size, rank, fitted.history, weights)))
try:
    train(Toy(), Settings(steps=2, batch_size=15))
except ValueError as error:
    print(error)
if dist.is_initialized():
    dist.destroy_process_group()
"""


def test_two_processes_give_the_result_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    runs = {}
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        command = [*launcher, str(script), str(HERE), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
        assert done.returncode == 0, done.stderr
        runs[name] = done.stdout
    (_, _, history, expected), *_ = read_ranks(tmp_path / "one")
    ranks = read_ranks(tmp_path / "two")
    assert [rank[:2] for rank in ranks] == [(2, 0), (2, 1)]
    for _, _, other_history, other in ranks:
        assert other == pytest.approx(expected, rel=1e-12, abs=1e-12)
        for row, other_row in zip(history, other_history, strict=True):
            assert other_row == pytest.approx(row, rel=1e-12, abs=1e-12)
    assert runs["one"] == "" and runs["two"].count("must divide by the number of processes, 2, got 15") == 2


def read_ranks(folder):
    return [eval(path.read_text()) for path in sorted(folder.glob("rank*.txt"))]


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"batch_size": 1.5}, "batch_size must be a positive integer, got 1.5"),
        ({"log_every": -1}, "log_every must be a positive integer"),
        ({"validate_every": 0}, "validate_every must be a positive integer"),
        ({"checkpoint_every": True}, "checkpoint_every must be a positive integer"),
        ({"learning_rate": 0}, "learning_rate must be above 0 and finite, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0 and finite, got nan"),
        ({"learning_rate": None}, "learning_rate must be above 0 and finite, got None"),
        ({"weight_decay": -0.1}, r"weight_decay must be at least 0 and finite, got -0\.1"),
        ({"betas": 0.9}, r"betas must be a tuple of two numbers, each at least 0 and below 1, got 0\.9"),
        ({"betas": [0.9, 0.999]}, r"betas must be a tuple of two numbers, .*, got \[0\.9, 0\.999\]"),
        ({"betas": (0.9,)}, "betas must be a tuple of two numbers"),
        ({"betas": (0.9, 1)}, r"betas must be .* below 1, got \(0\.9, 1\)"),
        ({"betas": (-0.1, 0.9)}, r"betas must be .* at least 0 .*, got \(-0\.1, 0\.9\)"),
        ({"betas": (0.5, float("nan"))}, r"betas must be .*, got \(0\.5, nan\)"),
        ({"betas": (0.5, True)}, r"betas must be .*, got \(0\.5, True\)"),
        ({"clip_norm": float("inf")}, "clip_norm must be above 0 and finite, got inf"),
        ({"ema_decay": 1.0}, r"ema_decay must be above 0 and below 1, got 1\.0"),
        ({"mixed_precision": "fp16"}, "mixed_precision must be 'no' or 'bf16', got 'fp16'"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"patience": 3}, "patience is 3 validations, so validate_every must be given"),
    ],
)
def test_settings_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Settings(**({"steps": 1} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data": X.long()}, TypeError, "data must have a floating dtype, got torch.int64"),
        ({"data": X[:0]}, ValueError, r"data must hold at least one example, got shape \(0, 3\)"),
        ({"data": [1, 2]}, TypeError, "data must be a tensor or a pair of tensors or a function .* got list"),
        ({"data": lambda n, g: X[: n - 1]}, ValueError, r"a tensor of 8 examples, .*, got shape \(7, 3\)"),
        (
            {"data": lambda n, g: (X[:n], X[: n + 1])},
            ValueError,
            r"got shape \(8, 3\), shape \(9, 3\)",
        ),
        ({"data": (X, X, X)}, TypeError, "data must be a tensor or a pair .* got Tensor, Tensor, Tensor"),
        ({"data": (X, X[1:, 0])}, ValueError, r"data has 60 examples, but labels of shape \(59,\)"),
        ({"validation": X}, ValueError, "validate_every is None, but there is validation data"),
        ({"validation": [1]}, TypeError, "validation must be a tensor or a pair of tensors, got list"),
        ({"device": "tpu"}, ValueError, "device must be 'cpu' or 'cuda', got 'tpu'"),
    ],
)
def test_fit_says_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        train(Toy(), Settings(steps=1, batch_size=8), **arguments)


class Means(nn.Module):
    """A mean for each class."""

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(torch.zeros(3, 3))

    def loss(self, x, label):
        return Loss((x - self.means[label]).square().sum(1), {}, "squared error")


def test_labels_reach_the_loss_with_their_examples(tmp_path):
    label = torch.arange(60) % 3
    held_out, theirs = X[:20] + 1, label[:20].flip(0)
    settings = Settings(steps=1500, batch_size=20, learning_rate=0.02, ema_decay=0.997, validate_every=500)
    model = Means()
    done = train(model, settings, data=(X, label), validation=(held_out, theirs))
    expected = torch.stack([X[label == k].mean(0) for k in range(3)])
    # Gradients of random batches: the averaged weights still move by some hundredths.
    torch.testing.assert_close(model.means.detach(), expected, atol=0.05, rtol=0)
    by_hand = (held_out - model.means[theirs]).square().sum(1).mean().item()
    assert done.history[-1]["validation"] == pytest.approx(by_hand, rel=1e-5)

    # A function that draws the same pairs, and a run that stops half-way, give the same weights.
    def draw(n, generator):
        chosen = torch.randint(60, (n,), generator=generator)
        return X[chosen], label[chosen]

    same, halves = Means(), Means()
    train(same, settings, data=draw, validation=(held_out, theirs))
    assert torch.equal(weights(same), weights(model))
    interrupted = iter(range(700))

    def failing(n, generator):
        next(interrupted)
        return draw(n, generator)

    kept = replace(settings, checkpoint_every=500)
    with pytest.raises(StopIteration):
        train(halves, kept, data=failing, validation=(held_out, theirs), folder=tmp_path)
    train(halves, kept, data=(X, label), validation=(held_out, theirs), folder=tmp_path)
    assert torch.equal(weights(halves), weights(model))


def test_models_that_cannot_be_trained_are_refused():
    with pytest.raises(TypeError, match=r"Linear has no method loss\(x\)"):
        train(nn.Linear(3, 3), Settings(steps=1))
    with pytest.raises(TypeError, match=r"Duel has no method loss\(x\)"):
        train(Duel(), Settings(steps=1, validate_every=1), validation=X)
    frozen = copy.deepcopy(Toy()).requires_grad_(False)
    with pytest.raises(ValueError, match="the player 'model' has no parameters to train"):
        train(frozen, Settings(steps=1))
    with pytest.raises(ValueError, match="validate_every is 1, but there is no validation data"):
        train(Toy(), Settings(steps=1, validate_every=1))
    for updates in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"the player 'b': updates must be a positive integer, got {updates}"):
            train(Duel((1, updates)), Settings(steps=1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_gpu_is_named():
    with pytest.raises(ValueError, match="torch finds no CUDA device here; use 'cpu'"):
        train(Toy(), Settings(steps=1), device="cuda")


def test_imports_nothing_heavy():
    code = "import sys, companion.training; print('accelerate' in sys.modules, 'safetensors' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
