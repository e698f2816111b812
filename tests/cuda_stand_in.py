"""A stand-in for a CUDA device, for machines that have none: it computes on the CPU, and refuses what CUDA refuses.

A tensor on the stand-in says that its device is cuda:0, and holds a CPU tensor with the numbers. An operation that
mixes it with a tensor of the CPU, reads its numbers as NumPy does, or draws with a generator of the other device is an
error, as it is on a GPU. It knows nothing of speed or precision, nor of the kernels.
"""

import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.cpp_extension import include_paths, library_paths

COMPILER = shutil.which("g++") or shutil.which("c++")
CUDA = torch.device("cuda", 0)
# What torch itself takes the device for: one that no library claims, so that autograd asks no driver about it.
INSIDE = torch.device("ipu", 0)
# Autograd wants to know of each device how to switch to it.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
using Guard = c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::IPU>;
C10_REGISTER_GUARD_IMPL(IPU, Guard);
}
"""

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
# CUDA takes positions that lie on the CPU.
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# The generators of the stand-in, by their address; kept alive, since an address may be used again.
GENERATORS: dict[int, torch.Generator] = {}


class OnCuda(torch.Tensor):
    """A CPU tensor, `inner`, that says it is on CUDA."""

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=INSIDE, **layout)

    def __init__(self, inner):
        self.inner = inner

    # With these two, modules move their parameters without losing what is `inner`.
    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def is_cuda(device) -> bool:
    return device is not None and torch.device(device).type in (CUDA.type, INSIDE.type)


def device_of(generator) -> torch.device:
    return CUDA if generator._cdata in GENERATORS else torch.device("cpu")


def run(func, args, kwargs):
    """An operation on what is `inner`. Raises RuntimeError where CUDA would."""
    leaves = tree_leaves((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, OnCuda)]
    # A tensor without dimensions counts as a number, wherever it lies.
    theirs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, OnCuda) and leaf.ndim]
    indexed = func in INDEXING and isinstance(args[0], OnCuda)
    if ours and theirs and func not in COPIES and not indexed:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {len(theirs)} of the CPU")
    on_cuda = is_cuda(kwargs["device"]) if kwargs.get("device") is not None else bool(ours)
    if func is aten.copy_.default:
        on_cuda = isinstance(args[0], OnCuda)
    for generator in (leaf for leaf in leaves if isinstance(leaf, torch._C.Generator)):
        if is_cuda(device_of(generator)) != on_cuda:
            raise RuntimeError(
                f"{func} got a generator of {device_of(generator)} for {'CUDA' if on_cuda else 'the CPU'}"
            )
    args, kwargs = tree_map(lambda leaf: leaf.inner if isinstance(leaf, OnCuda) else leaf, (args, kwargs))
    if is_cuda(kwargs.get("device")):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*args, **kwargs)
    if not on_cuda:
        return found
    # Operations in place answer with the tensor that they were given.
    given = {id(tensor.inner): tensor for tensor in ours}
    return tree_map(
        lambda t: (given[id(t)] if id(t) in given else OnCuda(t)) if isinstance(t, torch.Tensor) else t, found
    )


class Dispatch(TorchDispatchMode):
    """Sees the operations that make tensors out of nothing, or of tensors of the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """Says `cuda` to those who ask for a device, and does what torch does in C++ behind the dispatcher's back."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ours = bool(args) and isinstance(args[0], OnCuda)
        if func is torch.device:
            return func(*args, **kwargs)
        if func == torch.Tensor.is_cuda.__get__:
            return ours
        if func in (torch.tensor, torch.as_tensor) and is_cuda(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(INSIDE)
        if ours:
            tensor = args[0]
            if func == torch.Tensor.device.__get__:
                return CUDA
            if func == torch.Tensor.data.__get__:
                return tensor.detach()
            if func == torch.Tensor.data.__set__:
                tensor.inner = args[1].inner
                return None
            if func is torch.Tensor.tolist:
                return tensor.cpu().tolist()
            if func is torch.Tensor.new_tensor:
                return torch.tensor(args[1], **{"dtype": tensor.dtype, **kwargs}).to(INSIDE)
            if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
                places = args[1] if isinstance(args[1], tuple) else (args[1],)
                places = tuple(torch.tensor(place) if isinstance(place, list) else place for place in places)
                return func(tensor, places, *args[2:])
        named = {"cuda", CUDA, torch.device("cuda")}
        args, kwargs = (
            tree_map(lambda leaf: INSIDE if isinstance(leaf, str | torch.device) and leaf in named else leaf, tree)
            for tree in (args, kwargs)
        )
        return func(*args, **kwargs)


class _AnyGenerator(type(torch.Generator)):
    def __instancecheck__(cls, thing):
        return isinstance(thing, torch._C.Generator)


class Generator(torch.Generator, metaclass=_AnyGenerator):
    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        if is_cuda(device):
            GENERATORS[made._cdata] = made
        return made

    @property
    def device(self):
        return device_of(self)


@contextmanager
def _fork_rng(devices=(), **options):
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def load_guard(folder: Path) -> None:
    """Compile what autograd asks for, once for a process. Raises CalledProcessError where that fails."""
    source, library = folder / "guard.cpp", folder / "guard.so"
    source.write_text(GUARD)
    flags = ["-std=c++20", "-shared", "-fPIC", *(f"-I{path}" for path in include_paths())]
    libraries = [*(f"-L{path}" for path in library_paths()), "-lc10"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(library), *libraries], check=True, capture_output=True)
    torch.ops.load_library(library)


@contextmanager
def cuda_stand_in():
    """Within it torch has one CUDA device. `load_guard` comes first."""
    state = {"get_rng_state": lambda device=None: torch.get_rng_state(), "set_rng_state": lambda *given: None}
    answers = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "get_device_name": lambda device=None: "a stand-in for CUDA",
        **state,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch("torch.Generator", Generator))
        stack.enter_context(mock.patch("torch.random.fork_rng", _fork_rng))
        stack.enter_context(Functions())
        stack.enter_context(Dispatch())
        yield
