from dataclasses import replace

import pytest
import torch

from companion.data import IMAGES, Images, load
from companion.presets import HELD_OUT, PRESETS, examples, find, fixed, splits, start, train, training_data
from companion.training import fit

ALL = [(name, preset) for name, presets in PRESETS.items() for preset in presets]


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_two_steps_of_each(name, kind):
    """On the embedded digits, whatever the preset's own data."""
    preset = find(name, kind)
    images, validation, _ = splits("mnist6k")
    settings = replace(preset.settings, steps=2, batch_size=16 if kind == "quick" else 4)
    model = start(preset.make(), images, preset.binarised)
    if preset.first is not None:
        model.fit_scale(fixed(images, preset.binarised))
    fitted = fit(
        model,
        training_data(images, preset.binarised, preset.labelled),
        settings,
        validation=tuple(part[:20] for part in examples(validation, preset)) if settings.validate_every else None,
        progress=False,
    )
    assert fitted.history[-1]["step"] == 2 and fitted.best_step == (2 if settings.validate_every else None)
    assert preset.data in IMAGES and preset.about.endswith(".")


def test_training_in_two_stages(tmp_path):
    """The autoencoder is that of its own preset, trained alone, and the scale that of its codes."""
    preset = find("latent_diffusion", "quick")
    model = train(preset, steps=2, folder=tmp_path, progress=False).model
    alone = train(find("vae", "quick"), steps=2, progress=False).model
    weights = dict(model.autoencoder.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in alone.named_parameters())
    q = alone.encode(fixed(load("mnist6k"), "dynamic"))
    assert torch.equal(model.mean, q.mean.mean(0).detach())
    again = train(preset, steps=2, folder=tmp_path, progress=False).model
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", PRESETS)
def test_each_model_has_both(name):
    assert list(PRESETS[name]) == ["quick", "paper"]
    assert PRESETS[name]["quick"].data == "mnist6k"


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match=f"there is no model 'nothing'; there are {', '.join(PRESETS)}$"):
        find("nothing", "quick")
    with pytest.raises(ValueError, match="vae has no preset 'slow'; it has quick, paper"):
        find("vae", "slow")


def test_binarisation():
    images = load("mnist6k")
    grey = training_data(images, "no")
    assert torch.equal(grey, images.intensities())
    static = training_data(images, "static")
    assert torch.equal(static, images.binarized(seed=0)) and torch.equal(fixed(images, "dynamic"), static)
    # One image alone: every draw is of that image, and each is another one.
    one = Images("mnist6k", "train", images.pixels[:1], images.labels[:1])
    draws = training_data(one, "dynamic")(4000, torch.Generator().manual_seed(0))
    assert ((draws == 0) | (draws == 1)).all()
    error = (draws.mean(0) - one.intensities()[0]).abs()
    assert error.max() < 5 * 0.5 / 4000**0.5


def test_labels_come_with_their_images():
    images = load("mnist6k", "validation")
    x, labels = training_data(images, "static", labelled=True)
    assert torch.equal(x, fixed(images, "static")) and torch.equal(labels, images.labels)
    # One image of each class, without shades of grey, so that each draw shows which image it is of.
    chosen = torch.stack([(images.labels == k).nonzero()[0, 0] for k in range(10)])
    plain = Images("mnist6k", "validation", 255 * (images.pixels[chosen] > 127).to(torch.uint8), images.labels[chosen])
    x, labels = training_data(plain, "dynamic", labelled=True)(200, torch.Generator().manual_seed(0))
    assert torch.equal(x, plain.intensities()[labels]) and len(labels.unique()) == 10
    preset = find("conditional_pixelcnn", "quick")
    assert [len(part) for part in examples(images, preset)] == [len(images)] * 2
    assert len(examples(images, find("made", "quick"))) == 1


def test_models_start_at_the_frequencies_of_the_pixels_where_they_can():
    images = load("mnist6k")
    model = start(find("fvsbn", "quick").make(), images, "static")
    frequency = (fixed(images, "static").sum(0) + 1) / (len(images) + 2)
    torch.testing.assert_close(model.bias.sigmoid().detach(), frequency.flatten(), atol=1e-5, rtol=0)
    vae = find("vae", "quick").make()
    assert start(vae, images, "static") is vae


def test_full_sets_hold_out_the_last_training_images(monkeypatch):
    sizes = {"train": HELD_OUT + 5, "test": 3}

    def fake(name, split):
        n = sizes[split]
        return Images(name, split, torch.zeros(n, 1, 28, 28, dtype=torch.uint8), torch.arange(n) % 10)

    monkeypatch.setattr("companion.presets.load", fake)
    images, validation, test = splits("mnist")
    assert [len(part) for part in (images, validation, test)] == [5, HELD_OUT, 3]
    assert validation.split == "validation" and validation.labels[0] == 5
