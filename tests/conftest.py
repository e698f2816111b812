"""Lets tests import the scripts in tools/ by name, and lets hypothesis take its time on a busy machine."""

import sys
from pathlib import Path

import hypothesis

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
hypothesis.settings.register_profile("book", deadline=None)
hypothesis.settings.load_profile("book")
