"""The repository's address stands in one place, pyproject.toml, and is carried from there to all that shows it.

python tools/repository.py                           prints the address
python tools/repository.py https://host/owner/name   carries a new one everywhere
"""

import os
import re
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PART = r"[A-Za-z0-9._-]+"
# Where an address ends: "…/name-data" and "…/name.js" are other repositories, "…/name.git" and a full stop are not.
END = r"(?![A-Za-z0-9_-]|\.(?!git\b)[A-Za-z0-9])"
# Hosts on which a repository of our name would be ours; PyPI's project of that name is something else.
HOST = r"[a-z0-9.-]*(?:git|colab|binder|codeberg)[a-z0-9.-]*"
REQUIRED = ("pyproject.toml", "_config.yml", "README.md", "CITATION.cff")

# Its lines are short or cannot be broken, so that formatting the chapters leaves the cell as it is.
BOOTSTRAP = """\
# Installs the book's package where it is missing, as in Colab; elsewhere this cell does nothing.
import importlib
import subprocess
import sys

try:
    import companion.derivations
except ModuleNotFoundError:
    url = "git+{address}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", url]
    subprocess.run(command, check=True)
    sys.modules.pop("companion", None)  # PyPI has an unrelated package of that name
    importlib.invalidate_caches()"""


def address(root: Path = ROOT) -> str:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def bootstrap(root: Path = ROOT) -> str:
    """The first code cell of every chapter."""
    return BOOTSTRAP.format(address=address(root))


def chapters(root: Path = ROOT) -> list[Path]:
    return sorted(root.glob("book/[0-9]*.ipynb"))


def forms(url: str) -> list[str]:
    """The ways in which a repository is written: its address and, on GitHub, its place in Colab and its site.

    Raises ValueError for anything but https://host/owner/name.
    """
    match = re.fullmatch(rf"https://({PART}(?::\d+)?)/({PART})/({PART})", url)
    if not match or url.endswith((".git", ".")):
        raise ValueError(f"{url!r} is no address: it has to be https://host/owner/name, without .git or / at its end.")
    host, owner, name = match.groups()
    on_github = [f"https://colab.research.google.com/github/{owner}/{name}", f"https://{owner}.github.io/{name}"]
    return [url, *(on_github if host == "github.com" else [])]


def files(root: Path = ROOT) -> Iterator[Path]:
    """Every text file of the project, tracked or new: all but what .gitignore names, so that none is forgotten."""
    ignored = [".git", *(root / ".gitignore").read_text().replace("/", "").split()]
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not any(fnmatch(name, pattern) for pattern in ignored))
        for path in (Path(folder, name) for name in sorted(names)):
            if not any(fnmatch(path.name, pattern) for pattern in ignored) and is_text(path):
                yield path


def is_text(path: Path) -> bool:
    try:
        return "\0" not in read(path)
    except UnicodeDecodeError:
        return False


# Bytes, because reading as text would turn Windows' line ends into ours.
def read(path: Path) -> str:
    return path.read_bytes().decode()


def carry(new: str, root: Path = ROOT) -> list[Path]:
    """Write a new address wherever the old one stands, and return the files that changed."""
    pairs = list(zip(forms(address(root)), forms(new), strict=False))
    changed = []
    for path in files(root):
        text = before = read(path)
        for old_form, new_form in pairs:
            text = re.sub(re.escape(old_form) + END, new_form, text)
        if text != before:
            path.write_bytes(text.encode())
            changed.append(path)
    return changed


def stale(root: Path = ROOT) -> list[str]:
    """What is out of step: another address of a repository of this name, or a file that should show ours."""
    here = address(root)
    ours, name = forms(here), re.escape(here.rpartition("/")[2])
    mention = re.compile(rf"https://{HOST}(?:(?:/github|/v2/gh)?/{PART})?/{name}{END}")
    texts = {path.relative_to(root).as_posix(): read(path) for path in files(root)}
    others = [f"{path}: {url}" for path, text in texts.items() for url in mention.findall(text) if url not in ours]
    required = [*REQUIRED, *(path.relative_to(root).as_posix() for path in chapters(root))]
    lacking = [f"{path}: lacks the address" for path in required if here not in texts.get(path, "")]
    return others + lacking


def main(arguments: list[str]) -> str | None:
    """Print what was done and return what is left to do, if anything."""
    if not arguments:
        print(address())
        return None
    try:
        changed = carry(arguments[0])
    except ValueError as error:
        return str(error)
    for path in changed:
        print(path.relative_to(ROOT))
    left = stale()
    return "\n".join(["Left to change by hand:", *left]) if left else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
