"""Lets tests import the scripts in tools/ by name, lets hypothesis take its time on a busy machine, and holds what
several test files use."""

import sys
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
hypothesis.settings.register_profile("book", deadline=None)
hypothesis.settings.load_profile("book")


@pytest.fixture
def one_thread():
    """Small events are slower on several threads, much slower where others use the processor too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def refuses_bad_examples():
    """A function of `call(x)` and of examples that it accepts: bad ones are refused, with their reason."""

    def check(call, good):
        call(good)
        for bad, error, match in (
            (good[0], ValueError, "shape"),
            (good[:, :1], ValueError, "shape"),
            (good * torch.nan, ValueError, "finite"),
            (good.long(), TypeError, "floating"),
            ([0.0, 0.0], TypeError, "torch.Tensor"),
        ):
            with pytest.raises(error, match=match):
                call(bad)

    return check
