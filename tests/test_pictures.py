"""The pictures of the front page are what the script draws, up to rounding, and light."""

import re

import pictures
import pytest

NUMBER = re.compile(r"-?\d+\.?\d*")


def test_every_chapter_has_a_picture():
    assert {path.stem for path in pictures.FOLDER.glob("*.svg")} == set(pictures.PICTURES)


@pytest.mark.parametrize("stem", pictures.PICTURES)
def test_a_picture_is_what_the_script_draws(stem):
    stored, drawn = (pictures.FOLDER / f"{stem}.svg").read_text(), pictures.render(stem)
    assert len(stored) < 20_000
    assert NUMBER.sub("0", stored) == NUMBER.sub("0", drawn), "run python tools/pictures.py"
    # Another processor may round a coordinate the other way.
    numbers = zip(NUMBER.findall(stored), NUMBER.findall(drawn), strict=True)
    assert all(abs(float(a) - float(b)) < 0.15 for a, b in numbers if a != b), "run python tools/pictures.py"
