"""Write constraints.txt anew: the versions in the environment that runs this script.

python tools/constraints.py
"""

from importlib.metadata import distributions
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"

# The project itself, and what a virtual environment brings along.
LEFT_OUT = {"generative-models-verified", "pip", "setuptools", "wheel"}
# The build backend and its dependencies live in an environment that pip makes for the build, so this one
# may lack them: their pins stay as they are.
BUILD = {"hatchling", "pathspec", "tomlkit", "trove-classifiers"}


def pins(text: str) -> dict[str, str]:
    """The versions that a constraints file pins, by name."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {name: version for name, _, version in (line.partition("==") for line in lines if line)}


def installed() -> dict[str, str]:
    """Versions by name. A local part such as `+cpu` names a build of a version: other machines have other builds."""
    found = {package.name: package.version.partition("+")[0] for package in distributions()}
    return {name: version for name, version in found.items() if name not in LEFT_OUT}


def render(old: str) -> str:
    """The new file, under the header of the old one."""
    header = [line for line in old.splitlines() if line.startswith("#")]
    kept = {name: version for name, version in pins(old).items() if name in BUILD}
    lines = [f"{name}=={version}" for name, version in (kept | installed()).items()]
    return "\n".join([*header, *sorted(lines, key=str.upper), ""])


if __name__ == "__main__":
    CONSTRAINTS.write_text(render(CONSTRAINTS.read_text()))
