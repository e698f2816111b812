"""Whatever trains on the CPU does so on CUDA, by a stand-in for the GPU."""

import subprocess
import sys
from pathlib import Path

import cuda_stand_in
import pytest


@pytest.mark.skipif(cuda_stand_in.COMPILER is None, reason="no C++ compiler, and the stand-in for CUDA needs one")
def test_on_the_stand_in():
    """In a process of its own: autograd counts the devices when it is first used, and here it has been."""
    file = Path(__file__).with_name("on_cuda_stand_in.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
