"""All tests of this folder have small events."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass
