"""Images of 28 × 28 grey values: the embedded digits, and the full MNIST and Fashion-MNIST.

    digits = load("mnist6k")       # comes with the package: nothing to download
    x = digits.binarized(seed=0)   # (4000, 1, 28, 28), zeros and ones

`mnist6k` holds 6,000 digits of MNIST, equally many of each class: 4,000 to train and 1,000 to validate from its
training set, 1,000 to test from its test set. `mnist` and `fashion_mnist` are read from the folder that the
environment variable COMPANION_DATA_DIR names; where it is not set, they are downloaded once and kept.

MNIST: Y. LeCun, C. Cortes and C. Burges, CC BY-SA 3.0, which holds for `mnist6k` too. Fashion-MNIST: H. Xiao,
K. Rasul and R. Vollgraf (2017, arXiv:1708.07747), MIT licence, Zalando SE.
"""

import gzip
import hashlib
import io
import math
import os
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

_SPLITS = {
    "mnist6k": ("train", "validation", "test"),
    "mnist": ("train", "test"),
    "fashion_mnist": ("train", "test"),
}
IMAGES = tuple(_SPLITS)

_EMBEDDED = Path(__file__).with_name("mnist6k.npz")
_EMBEDDED_SHA256 = "cb636ace33528382d357f12e1a4fa590c1643713850d4cbec908ad9bd36c5378"

# Of the unpacked files: every mirror packs its own way.
_SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
_MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion_mnist": (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
}
_FOLDER_HELP = "set COMPANION_DATA_DIR to a folder that holds the files"


def binarize(intensities: Float[Tensor, "*shape"], generator: torch.Generator | None = None) -> Float[Tensor, "*shape"]:
    """Draw every pixel anew: 1 with probability equal to its intensity, else 0.

    Args:
        intensities: in [0, 1].
        generator: on the device of `intensities`; torch's global one if None.

    Raises:
        TypeError: `intensities` is not a floating-point tensor.
        ValueError: it has a value outside [0, 1] or a NaN.

    >>> import torch
    >>> from companion.data import binarize
    >>> binarize(torch.tensor([0.0, 1.0]))
    tensor([0., 1.])
    >>> intensities = torch.full((10_000,), 0.25)
    >>> x = binarize(intensities, torch.Generator().manual_seed(0))
    >>> bool((x.mean() - 0.25).abs() < 0.03)
    True
    """
    if not isinstance(intensities, Tensor) or not intensities.is_floating_point():
        found = f"a tensor of {intensities.dtype}" if isinstance(intensities, Tensor) else type(intensities).__name__
        raise TypeError(f"binarize needs floating-point intensities in [0, 1], got {found}")
    if not ((intensities >= 0) & (intensities <= 1)).all():
        if intensities.isnan().any():
            found = f"NaN for {int(intensities.isnan().sum())} of {intensities.numel()} values"
        else:
            found = f"values from {intensities.min():.4g} to {intensities.max():.4g}"
        raise ValueError(f"binarize needs intensities in [0, 1], got {found}")
    # The uniform is never 1, and the comparison is strict: 1 gives 1 and 0 gives 0, always.
    uniform = torch.rand(intensities.shape, generator=generator, dtype=intensities.dtype, device=intensities.device)
    return (uniform < intensities).to(intensities.dtype)


@dataclass(frozen=True, eq=False)
class Images:
    """One split of an image data set.

    Raises TypeError for tensors of another type, ValueError when the shapes, devices or labels do not fit.
    """

    name: str
    split: str
    pixels: UInt8[Tensor, "n 1 28 28"] = field(repr=False)
    labels: Int64[Tensor, " n"] = field(repr=False)

    def __post_init__(self):
        for what, tensor, dtype in (("pixels", self.pixels, torch.uint8), ("labels", self.labels, torch.int64)):
            if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
                found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"{what} must be a tensor of {dtype}, got {found}")
        n = self.labels.numel()
        if self.labels.shape != (n,) or self.pixels.shape != (n, 1, 28, 28):
            raise ValueError(
                "pixels and labels must have the shapes (n, 1, 28, 28) and (n,), "
                f"got {tuple(self.pixels.shape)} and {tuple(self.labels.shape)}"
            )
        if self.pixels.device != self.labels.device:
            raise ValueError(f"pixels are on {self.pixels.device}, but labels on {self.labels.device}")
        if not ((self.labels >= 0) & (self.labels <= 9)).all():
            raise ValueError(f"labels must lie in 0..9, got {self.labels.min()}..{self.labels.max()}")

    def __len__(self) -> int:
        return len(self.labels)

    def intensities(self) -> Float[Tensor, "n 1 28 28"]:
        """The pixels as float32 in [0, 1]."""
        return self.pixels.to(torch.float32) / 255

    def binarized(self, seed: int) -> Float[Tensor, "n 1 28 28"]:
        """Static binarisation, as float32: the same for the same seed, on every machine and device."""
        # Devices have different generators, and may round the division differently: both happen on the CPU.
        generator = torch.Generator().manual_seed(seed)
        return binarize(self.pixels.cpu().to(torch.float32) / 255, generator).to(self.pixels.device)


def load(name: str, split: str = "train", *, device: torch.device | str = "cpu") -> Images:
    """One split of an image data set, as a whole on one device.

    Args:
        name: one of IMAGES.
        split: "train" or "test"; mnist6k also has "validation".
        device: where its tensors are put.

    Raises:
        ValueError: unknown name or split, or a file that is not the one it should be.
        FileNotFoundError: COMPANION_DATA_DIR is set and does not lead to the files.
        OSError: no mirror gave the file.

    >>> from companion.data import load
    >>> test = load("mnist6k", "test")
    >>> test.pixels.shape, test.pixels.dtype, test.labels[:5].tolist()
    (torch.Size([1000, 1, 28, 28]), torch.uint8, [2, 6, 7, 1, 4])
    """
    if name not in IMAGES:
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(IMAGES)}")
    if split not in _SPLITS[name]:
        raise ValueError(f"split of {name} is {split!r}; it must be one of {', '.join(_SPLITS[name])}")
    if name == "mnist6k":
        pixels, labels = _embedded(split)
    else:
        prefix = {"train": "train", "test": "t10k"}[split]
        pixels, labels = (_idx(name, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    return Images(
        name=name,
        split=split,
        pixels=torch.tensor(pixels, device=device).unsqueeze(1),
        labels=torch.tensor(labels, device=device, dtype=torch.int64),
    )


def _embedded(split: str) -> tuple[np.ndarray, np.ndarray]:
    content = _EMBEDDED.read_bytes()
    if hashlib.sha256(content).hexdigest() != _EMBEDDED_SHA256:
        raise ValueError(f"{_EMBEDDED} is damaged: its SHA-256 is not the expected one; install the package again")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return arrays[f"{split}_images"], arrays[f"{split}_labels"]


def _idx(name: str, file: str) -> np.ndarray:
    root = os.environ.get("COMPANION_DATA_DIR")
    content = _download(name, file) if root is None else _read(root, name, file)
    # idx: two zero bytes, the type (8: uint8), the number of dimensions, each dimension in four bytes, the data.
    dimensions = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + dimensions.nbytes).reshape(dimensions)


def _read(root: str, name: str, file: str) -> bytes:
    """The file from the folder that COMPANION_DATA_DIR names, where it lies plain or packed."""
    top = Path(root).expanduser()
    if not root or not top.is_dir():
        raise FileNotFoundError(f"COMPANION_DATA_DIR is {root!r}, and there is no such folder; {_FOLDER_HELP}")
    folders = dict.fromkeys((top / name, top / name.replace("_", "-"), top))
    for path in (folder / (file + suffix) for folder in folders for suffix in ("", ".gz")):
        if path.is_file():
            try:
                return _checked(path, name, file)
            except ValueError as error:
                raise ValueError(f"{path}: {error}; replace it by {name}'s {file}") from error
    looked = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(f"{name}: neither {file} nor {file}.gz is in any of {looked}; {_FOLDER_HELP}")


def _download(name: str, file: str) -> bytes:
    """The file from the cache, else from the first mirror that gives the right one."""
    import pooch  # not needed for data that is already there

    folder = Path(pooch.os_cache("companion")) / name
    cached = folder / f"{file}.gz"
    reasons = []
    if cached.exists():
        try:
            return _checked(cached, name, file)
        except ValueError as error:
            reasons.append(f"{cached}: {error}")
            cached.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for mirror in _MIRRORS[name]:
        url = f"{mirror}{cached.name}"
        # Nothing unchecked ever has the cached file's name, though two processes may download at once.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / cached.name
            try:
                pooch.HTTPDownloader()(url, str(path), None)
                content = _checked(path, name, file)
            except (OSError, ValueError) as error:
                reasons.append(f"{url}: {error}")
                continue
            path.replace(cached)
            return content
    tried = "\n  ".join(reasons)
    raise OSError(f"{name}: no mirror gave {file}; try again later, or {_FOLDER_HELP}. Tried:\n  {tried}")


def _checked(path: Path, name: str, file: str) -> bytes:
    """The unpacked contents of `path`. Raises ValueError, with the reason, unless they are those of `file`."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"damaged gzip file ({error})") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != _SHA256[name][file]:
        raise ValueError(_fault(content, sha256, file))
    return content


def _fault(content: bytes, sha256: str, file: str) -> str:
    """What is wrong with contents whose SHA-256 is not that of `file`."""
    for other, files in _SHA256.items():
        for other_file, other_sha256 in files.items():
            if sha256 == other_sha256:
                return f"wrong file: this is {other}'s {other_file}"
    count = 60000 if file.startswith("train") else 10000
    expected = (count, 28, 28) if "images" in file else (count,)
    magic = bytes((0, 0, 8, len(expected)))
    header = 4 * (1 + len(expected))
    size = header + math.prod(expected)
    if not content.startswith(magic[: len(content)]):
        return f"wrong magic number: it starts with 0x{content[:4].hex()}, not with 0x{magic.hex()}"
    if len(content) < header:
        return f"truncated: it ends after {len(content)} of {size} bytes"
    dimensions = tuple(np.frombuffer(content[4:header], ">u4").tolist())
    if dimensions != expected:
        return f"wrong dimensions: {dimensions}, not {expected}"
    if len(content) < size:
        return f"truncated: it ends after {len(content)} of {size} bytes"
    if len(content) > size:
        return f"too long: it has {len(content)} bytes, not {size}"
    return f"wrong values: its SHA-256 is {sha256}"
