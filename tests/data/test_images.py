import gzip
import hashlib
import http.server
import math
import os
import shutil
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.data import IMAGES, Images, binarize, images, load

# Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FULL = os.environ.get("COMPANION_DATA_DIR")
needs_mnist = pytest.mark.skipif(FULL is None, reason="COMPANION_DATA_DIR names no folder with the full MNIST")
needs_fashion = pytest.mark.skipif(not DEBIAN.is_dir(), reason="the package dataset-fashion-mnist is not installed")

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(array, magic=None):
    header = magic or bytes((0, 0, 8, array.ndim))
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def digits():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (7, 28, 28), dtype=np.uint8), rng.integers(0, 10, 7, dtype=np.uint8)


@pytest.fixture
def files(digits, monkeypatch):
    """A small test split in idx files, which `load("mnist", "test")` takes for the right one."""
    contents = {TEST_IMAGES: idx(digits[0]), TEST_LABELS: idx(digits[1])}
    expected = images._SHA256["mnist"] | {file: sha256(content) for file, content in contents.items()}
    monkeypatch.setitem(images._SHA256, "mnist", expected)
    return contents


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA_DIR", str(tmp_path))
    return tmp_path


# --- the embedded digits


def test_embedded_digits():
    sizes = {"train": 4000, "validation": 1000, "test": 1000}
    for split, n in sizes.items():
        data = load("mnist6k", split)
        assert len(data) == n and (data.name, data.split) == ("mnist6k", split)
        assert data.pixels.shape == (n, 1, 28, 28) and data.pixels.dtype == torch.uint8
        assert data.labels.shape == (n,) and data.labels.dtype == torch.int64
        assert torch.bincount(data.labels).tolist() == [n // 10] * 10
        assert repr(data) == f"Images(name='mnist6k', split='{split}')"
    assert len(load("mnist6k")) == 4000


def test_embedded_splits_share_no_image():
    splits = [load("mnist6k", split).pixels for split in ("train", "validation", "test")]
    seen = {image.numpy().tobytes() for split in splits for image in split}
    assert len(seen) == 6000
    with np.load(images._EMBEDDED, allow_pickle=False) as arrays:
        assert not set(arrays["train_index"]) & set(arrays["validation_index"])


@needs_mnist
def test_embedded_digits_are_those_of_mnist():
    with np.load(images._EMBEDDED, allow_pickle=False) as arrays:
        for split, origin in [("train", "train"), ("validation", "train"), ("test", "test")]:
            full, part, index = load("mnist", origin), load("mnist6k", split), arrays[f"{split}_index"]
            assert full.pixels[index].equal(part.pixels)
            assert full.labels[index].equal(part.labels)


def test_damaged_embedded_digits(tmp_path, monkeypatch):
    content = bytearray(images._EMBEDDED.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / "mnist6k.npz"
    damaged.write_bytes(content)
    monkeypatch.setattr(images, "_EMBEDDED", damaged)
    with pytest.raises(ValueError, match=r"mnist6k\.npz is damaged.*install the package again"):
        load("mnist6k")


# --- names, splits, tensors


@given(st.one_of(st.text(), st.none(), st.integers()).filter(lambda name: name not in IMAGES))
def test_unknown_name(name):
    with pytest.raises(ValueError) as error:
        load(name)
    assert str(error.value) == f"name is {name!r}; it must be one of mnist6k, mnist, fashion_mnist"


@pytest.mark.parametrize(("name", "split"), [("mnist", "validation"), ("fashion_mnist", None), ("mnist6k", "Train")])
def test_unknown_split(name, split):
    with pytest.raises(ValueError) as error:
        load(name, split)
    allowed = "train, validation, test" if name == "mnist6k" else "train, test"
    assert str(error.value) == f"split of {name} is {split!r}; it must be one of {allowed}"


def test_unknown_device():
    with pytest.raises(RuntimeError, match="gpu"):
        load("mnist6k", "test", device="gpu")


def test_images_check_their_tensors():
    pixels, labels = torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 9, 5])
    assert len(Images("x", "train", pixels, labels)) == 3
    for wrong, error, match in [
        ((pixels.float(), labels), TypeError, "pixels must be a tensor of torch.uint8, got torch.float32"),
        ((pixels, labels.int()), TypeError, "labels must be a tensor of torch.int64, got torch.int32"),
        ((pixels, [0, 9, 5]), TypeError, "labels must be a tensor of torch.int64, got list"),
        ((pixels[:, 0], labels), ValueError, r"got \(3, 28, 28\) and \(3,\)"),
        ((pixels[:2], labels), ValueError, r"got \(2, 1, 28, 28\) and \(3,\)"),
        ((pixels, labels[:, None]), ValueError, r"got \(3, 1, 28, 28\) and \(3, 1\)"),
        ((pixels, labels.to("meta")), ValueError, "pixels are on cpu, but labels on meta"),
        ((pixels, labels + 1), ValueError, r"labels must lie in 0\.\.9, got 1\.\.10"),
        ((pixels, labels - 1), ValueError, r"labels must lie in 0\.\.9, got -1\.\.8"),
    ]:
        with pytest.raises(error, match=match):
            Images("x", "train", *wrong)


def test_images_are_frozen():
    with pytest.raises(AttributeError):
        load("mnist6k", "test").split = "train"


# --- intensities and binarisation


def grey_scale(copies):
    """`copies` images that hold every grey value, three pixels of each and some more of 255."""
    pixels = torch.full((784,), 255, dtype=torch.uint8)
    pixels[:768] = torch.arange(256, dtype=torch.uint8).repeat(3)
    return Images(
        "grey", "train", pixels.reshape(1, 1, 28, 28).repeat(copies, 1, 1, 1), torch.zeros(copies, dtype=torch.int64)
    )


def test_intensities():
    x = grey_scale(1).intensities()
    assert x.dtype == torch.float32 and x.shape == (1, 1, 28, 28)
    assert x.flatten()[:256].equal(torch.arange(256, dtype=torch.float32) / 255)


def assert_frequencies(binary, probability):
    """Each pixel's frequency of 1 over the first dimension is its probability, to 5 standard errors."""
    n = len(binary)
    assert set(binary.unique().tolist()) <= {0.0, 1.0}
    standard_error = (probability * (1 - probability) / n).sqrt()
    assert ((binary.double().mean(0) - probability).abs() <= 5 * standard_error).all()


def test_static_binarisation_has_the_intensity_as_mean():
    data = grey_scale(5000)
    binary = data.binarized(seed=3)
    assert binary.dtype == torch.float32 and binary.shape == data.pixels.shape
    # At intensities 0 and 1 the standard error is zero, and so is the tolerance.
    assert_frequencies(binary, data.pixels[0].double() / 255)


def test_dynamic_binarisation_has_the_intensity_as_mean():
    for dtype in (torch.float32, torch.float64):
        x = grey_scale(5000).intensities().to(dtype)
        first, second = (binarize(x, torch.Generator().manual_seed(seed)) for seed in (0, 1))
        assert first.dtype == dtype and not first.equal(second)
        assert_frequencies(first, x[0].double())


def test_dynamic_binarisation_takes_its_randomness_from_the_generator():
    x = torch.full((1000,), 0.5)
    generator = torch.Generator().manual_seed(0)
    a, b = binarize(x, generator), binarize(x, generator)
    assert not a.equal(b)
    assert binarize(x, generator.manual_seed(0)).equal(a)
    torch.manual_seed(0)
    assert binarize(x).equal(a) and not binarize(x).equal(a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_black_stays_black_and_white_stays_white(monkeypatch, dtype):
    # The smallest and the largest number that torch.rand can return.
    step = 2.0**-24 if dtype == torch.float32 else 2.0**-53
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0, 1 - step], dtype=dtype))
    assert binarize(torch.zeros(2, dtype=dtype)).tolist() == [0, 0]
    assert binarize(torch.ones(2, dtype=dtype)).tolist() == [1, 1]


def test_static_binarisation_depends_on_the_seed_alone():
    data = load("mnist6k", "test")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = data.binarized(0)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    assert data.binarized(0).equal(first)
    assert not data.binarized(1).equal(first)
    # Should this change, every stored result on binarised digits belongs to other data.
    assert (
        sha256(first.to(torch.uint8).numpy().tobytes())
        == "bee66874b954af44f0ea414c7bd40ffca14ae1bd1c3561fe01fac8f6e3373b3e"
    )


def test_binarisation_never_thresholds():
    data = load("mnist6k", "test")
    x, binary = data.intensities(), data.binarized(0)
    for low, high in [(0.01, 0.4), (0.4, 0.6), (0.6, 0.99)]:
        among = (x > low) & (x < high)
        p = x[among].double()
        assert abs((binary[among] - p).sum()) <= 5 * (p * (1 - p)).sum().sqrt()


@given(st.lists(st.floats(width=32, min_value=0, max_value=1), max_size=20), st.integers(0, 2**63 - 1))
def test_binarize_gives_zeros_and_ones(values, seed):
    x = torch.tensor(values)
    binary = binarize(x, torch.Generator().manual_seed(seed))
    assert binary.shape == x.shape and set(binary.tolist()) <= {0.0, 1.0}
    assert (binary[x == 1] == 1).all() and (binary[x == 0] == 0).all()


@given(
    st.lists(st.floats(width=32, min_value=0, max_value=1), max_size=5),
    st.one_of(st.floats(width=32, max_value=-(2.0**-100)), st.floats(width=32, min_value=1 + 2.0**-23)),
)
def test_intensities_outside_the_unit_interval(values, wrong):
    with pytest.raises(ValueError, match=r"intensities in \[0, 1\], got values from .* to "):
        binarize(torch.tensor([*values, wrong]))


def test_other_intensities():
    with pytest.raises(ValueError, match="got NaN for 1 of 3 values"):
        binarize(torch.tensor([0.0, math.nan, 1.0]))
    with pytest.raises(ValueError, match=r"got values from -0.5 to 255"):
        binarize(torch.tensor([-0.5, 255.0]))
    for wrong in (torch.zeros(3, dtype=torch.uint8), torch.zeros(3, dtype=torch.bool)):
        with pytest.raises(TypeError, match=rf"floating-point intensities in \[0, 1\], got a tensor of {wrong.dtype}"):
            binarize(wrong)
    with pytest.raises(TypeError, match="got list"):
        binarize([0.5])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    data, there = load("mnist6k", "test"), load("mnist6k", "test", device="cuda")
    assert there.pixels.device.type == there.labels.device.type == "cuda"
    assert there.binarized(0).device.type == "cuda"
    assert there.binarized(0).cpu().equal(data.binarized(0))
    torch.testing.assert_close(there.intensities().cpu(), data.intensities())
    binary = binarize(grey_scale(5000).intensities().cuda(), torch.Generator("cuda").manual_seed(0))
    assert_frequencies(binary.cpu(), grey_scale(1).pixels[0].double() / 255)


# --- idx files in a folder


@pytest.mark.parametrize("place", ["mnist", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_round_trip(folder, files, digits, place, packed):
    (folder / place).mkdir(exist_ok=True)
    for file, content in files.items():
        if packed:
            (folder / place / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / place / file).write_bytes(content)
    data = load("mnist", "test")
    assert data.pixels[:, 0].numpy().tolist() == digits[0].tolist()
    assert data.labels.tolist() == digits[1].tolist()


@pytest.mark.parametrize("place", ["fashion_mnist", "fashion-mnist"])
def test_folder_with_an_underscore_or_a_dash(folder, files, monkeypatch, place):
    monkeypatch.setitem(images._SHA256, "fashion_mnist", images._SHA256["mnist"])
    (folder / place).mkdir()
    for file, content in files.items():
        (folder / place / file).write_bytes(content)
    assert len(load("fashion_mnist", "test")) == 7


@pytest.mark.parametrize("value", ["", "/no/such/folder"])
def test_missing_folder(monkeypatch, value):
    monkeypatch.setenv("COMPANION_DATA_DIR", value)
    with pytest.raises(FileNotFoundError, match=f"COMPANION_DATA_DIR is '{value}', and there is no such folder"):
        load("mnist")


def test_missing_file_is_not_downloaded(folder, monkeypatch):
    monkeypatch.setattr(images, "_download", lambda *_: pytest.fail("went for a download"))
    with pytest.raises(FileNotFoundError) as error:
        load("fashion_mnist")
    for part in (
        TRAIN_IMAGES,
        f"{folder}/fashion_mnist,",
        f"{folder}/fashion-mnist,",
        f"{folder};",
        "COMPANION_DATA_DIR",
    ):
        assert part in str(error.value)


def zeros(n):
    return np.zeros((n, 28, 28), dtype=np.uint8)


LABELS = np.zeros(10000, dtype=np.uint8)
FAULTS = {
    "empty": (TEST_IMAGES, b"", "truncated: it ends after 0 of 7840016 bytes"),
    "inside the magic number": (TEST_IMAGES, b"\0\0", "truncated: it ends after 2 of 7840016 bytes"),
    "inside the header": (TEST_IMAGES, idx(zeros(10000))[:15], "truncated: it ends after 15 of 7840016 bytes"),
    "inside the images": (TEST_IMAGES, idx(zeros(10000))[:-1], "truncated: it ends after 7840015 of 7840016 bytes"),
    "one byte too many": (TEST_IMAGES, idx(zeros(10000)) + b"\0", "too long: it has 7840017 bytes, not 7840016"),
    "labels for images": (
        TEST_IMAGES,
        idx(LABELS),
        "wrong magic number: it starts with 0x00000801, not with 0x00000803",
    ),
    "not idx at all": (TEST_IMAGES, b"<html>", "wrong magic number: it starts with 0x3c68746d"),
    "floats": (TEST_IMAGES, idx(zeros(1), b"\0\0\x0d\3"), "wrong magic number: it starts with 0x00000d03"),
    "too few images": (TEST_IMAGES, idx(zeros(5)), r"wrong dimensions: \(5, 28, 28\), not \(10000, 28, 28\)"),
    "training images": (TRAIN_IMAGES, idx(zeros(5)), r"wrong dimensions: \(5, 28, 28\), not \(60000, 28, 28\)"),
    "other values": (TEST_IMAGES, idx(zeros(10000)), f"wrong values: its SHA-256 is {sha256(idx(zeros(10000)))}"),
    "too few labels": (TEST_LABELS, idx(LABELS[1:]), r"wrong dimensions: \(9999,\), not \(10000,\)"),
    "truncated labels": (TEST_LABELS, idx(LABELS)[:-5], "truncated: it ends after 10003 of 10008 bytes"),
    "other labels": (TEST_LABELS, idx(LABELS), "wrong values: its SHA-256 is "),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_wrong_contents(folder, files, monkeypatch, fault, suffix):
    file, content, message = FAULTS[fault]
    if file == TEST_LABELS:
        (folder / TEST_IMAGES).write_bytes(files[TEST_IMAGES])
    path = folder / f"{file}{suffix}"
    path.write_bytes(gzip.compress(content, 1) if suffix else content)
    with pytest.raises(ValueError, match=f"{path}: {message}.*; replace it by mnist's {file}$"):
        load("mnist", "train" if file == TRAIN_IMAGES else "test")


def test_damaged_gzip(folder, files):
    packed = gzip.compress(files[TEST_IMAGES])
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 255
    for damaged in (packed[:-20], bytes(flipped), b"<html>404</html>", b"\x1f\x8b", packed + b"more"):
        (folder / f"{TEST_IMAGES}.gz").write_bytes(damaged)
        with pytest.raises(
            ValueError, match=f"{TEST_IMAGES}.gz: damaged gzip file .*; replace it by mnist's {TEST_IMAGES}$"
        ):
            load("mnist", "test")


@needs_fashion
def test_fashion_mnist(monkeypatch):
    monkeypatch.setenv("COMPANION_DATA_DIR", str(DEBIAN))
    for split, n in (("train", 60000), ("test", 10000)):
        data = load("fashion_mnist", split)
        assert data.pixels.shape == (n, 1, 28, 28)
        assert torch.bincount(data.labels).tolist() == [n // 10] * 10
    with pytest.raises(
        ValueError, match=f"this is fashion_mnist's {TRAIN_IMAGES}; replace it by mnist's {TRAIN_IMAGES}"
    ):
        load("mnist")


@needs_mnist
def test_mnist():
    for split, n in (("train", 60000), ("test", 10000)):
        data = load("mnist", split)
        assert data.pixels.shape == (n, 1, 28, 28)
        # The mean and standard deviation that everyone normalises the training set with.
        if split == "train":
            assert data.intensities().mean().item() == pytest.approx(0.1307, abs=5e-5)
            assert data.intensities().std().item() == pytest.approx(0.3081, abs=5e-5)


@needs_mnist
def test_a_file_under_the_name_of_another(folder):
    (folder / f"{TEST_IMAGES}.gz").symlink_to(next(Path(FULL).glob(f"**/{TEST_LABELS}.gz")))
    with pytest.raises(ValueError, match=f"wrong file: this is mnist's {TEST_LABELS}"):
        load("mnist", "test")


# --- downloads


@pytest.fixture
def mirrors(files, tmp_path, monkeypatch):
    """Three mirrors of small files on this machine: nothing there, truncated files, the right files."""
    served = tmp_path / "served"
    for mirror, cut in [("truncated", 40), ("good", 0)]:
        (served / mirror).mkdir(parents=True)
        for file, content in files.items():
            packed = gzip.compress(content)
            (served / mirror / f"{file}.gz").write_bytes(packed[: len(packed) - cut])
    requested = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(served), **kwargs)

        def log_message(self, *args):
            requested.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(images._MIRRORS, "mnist", tuple(f"{base}/{m}/" for m in ("missing", "truncated", "good")))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("COMPANION_DATA_DIR", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    yield served, tmp_path / "cache" / "companion" / "mnist", requested
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_tries_the_mirrors_in_turn(mirrors, digits):
    served, cache, requested = mirrors
    data = load("mnist", "test")
    assert data.pixels[:, 0].numpy().tolist() == digits[0].tolist()
    assert data.labels.tolist() == digits[1].tolist()
    assert [path.split("/")[1] for path in dict.fromkeys(requested)] == ["missing", "truncated", "good"] * 2
    # Nothing is left of the truncated files, and the good ones are kept.
    assert sorted(path.name for path in cache.iterdir()) == [f"{TEST_IMAGES}.gz", f"{TEST_LABELS}.gz"]
    shutil.rmtree(served)
    assert len(load("mnist", "test")) == 7


def test_a_damaged_file_in_the_cache_is_downloaded_again(mirrors):
    _, cache, _ = mirrors
    load("mnist", "test")
    good = (cache / f"{TEST_IMAGES}.gz").read_bytes()
    (cache / f"{TEST_IMAGES}.gz").write_bytes(good[:-1])
    assert len(load("mnist", "test")) == 7
    assert (cache / f"{TEST_IMAGES}.gz").read_bytes() == good


def test_when_every_mirror_fails(mirrors):
    served, cache, _ = mirrors
    (served / "good" / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(OSError, match="no mirror gave") as error:
        load("mnist", "test")
    first, missing, truncated, good = str(error.value).splitlines()
    assert TEST_IMAGES in first and "set COMPANION_DATA_DIR to a folder that holds the files" in first
    assert f"/missing/{TEST_IMAGES}.gz: 404" in missing
    assert f"/truncated/{TEST_IMAGES}.gz: damaged gzip file" in truncated
    assert f"/good/{TEST_IMAGES}.gz: wrong magic number" in good
    assert list(cache.iterdir()) == []


def test_mirrors_and_checksums_are_complete():
    for name in set(IMAGES) - {"mnist6k"}:
        assert set(images._SHA256[name]) == {TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS}
        assert len(images._MIRRORS[name]) >= 2 and all(mirror.endswith("/") for mirror in images._MIRRORS[name])
