"""Build the wheel, install it in an empty environment, and run a trained model there, as whoever installs it would.

python tools/release.py

Ends with an error when the places that name the version disagree, when the wheel lacks data, or when the model does not
run. The wheel lies in dist/ afterwards; nothing is uploaded.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What the package carries beside its code: each pattern has to match as many files in the wheel as in the tree.
DATA = ("companion/zoo/*.safetensors", "companion/data/*.npz", "companion/results/**/*.*")
# Runs in the new environment, in an empty folder: a sample and its likelihood, and one equation.
TRIAL = """
import sys
from pathlib import Path
import companion
from companion import zoo
from companion.derivations import verify

assert Path(companion.__file__).is_relative_to(sys.prefix), companion.__file__
model = zoo.pretrained("nade")
nats = -model.log_prob(model.sample(4)).mean().item()
assert 0 < nats < 300, nats
print(f"four digits of NADE, {nats:.0f} nats each on average;", verify("elbo-gap-kl")._summary())
"""


def versions(root: Path = ROOT) -> dict[str, str]:
    """The version, by the file that names it. The changelog's is that of its first entry."""
    patterns = {
        "companion/__init__.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (\S+)$",
        "book/appendix/changelog.md": r"^## (\S+)",
    }
    found = {"pyproject.toml": tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]}
    for file, pattern in patterns.items():
        match = re.search(pattern, (root / file).read_text(), re.MULTILINE)
        found[file] = match[1] if match else "none"
    return found


def missing(wheel: Path, root: Path = ROOT) -> set[str]:
    """The data files of the tree that the wheel lacks."""
    wanted = {path.relative_to(root).as_posix() for pattern in DATA for path in root.glob(pattern)}
    return wanted - set(zipfile.ZipFile(wheel).namelist())


def main() -> str | None:
    found = versions()
    if len(set(found.values())) > 1:
        return "The version is not the same everywhere: " + ", ".join(f"{v} in {file}" for file, v in found.items())
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
        subprocess.run(build, check=True)
        [wheel] = Path(folder).glob("*.whl")
        if lacking := missing(wheel):
            return f"The wheel lacks {', '.join(sorted(lacking))}"
        environment, empty = Path(folder, "environment"), Path(folder, "empty")
        venv.create(environment, with_pip=True)
        empty.mkdir()
        python = environment / "bin" / "python"
        install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel]
        subprocess.run(install, check=True)
        # Isolated: neither this folder nor the variables of this process lend it a package.
        subprocess.run([python, "-I", "-c", TRIAL], cwd=empty, check=True)
        (ROOT / "dist").mkdir(exist_ok=True)
        kept = ROOT / "dist" / wheel.name
        kept.write_bytes(wheel.read_bytes())
    print(f"{kept.relative_to(ROOT)}, {kept.stat().st_size / 1e6:.1f} MB")
    return None


if __name__ == "__main__":
    sys.exit(main())
