"""Other packages to compare with, where torchvision is not installed."""

import importlib.machinery
import sys
import types
from unittest.mock import MagicMock

import pytest


class _StandIn(types.ModuleType):
    def __init__(self, name):
        super().__init__(name)
        self.__spec__, self.__path__ = importlib.machinery.ModuleSpec(name, None), []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


@pytest.fixture
def torchvision(monkeypatch):
    """torch_fidelity, and torchmetrics where it is installed, import torchvision for what the tests do not use."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in (
            "torchvision",
            *(f"torchvision.{part}" for part in ("datasets", "models", "transforms", "transforms.functional")),
        ):
            monkeypatch.setitem(sys.modules, name, _StandIn(name))
