"""What a result is written down with, so that it can be judged and computed again."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parents[1] / "results"


def record(name: str, config: dict, seconds: float, rows: list[dict]) -> dict:
    """Rows with the experiment's arguments, and the versions and the machine that they were computed with."""
    return {
        "name": name,
        "config": config,
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("generative-models-verified", "torch", "numpy")},
        "hardware": {
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if config.get("device") == "cuda" else None,
        },
        "seconds": round(seconds, 1),
        "rows": rows,
    }


def write(path: Path, result: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def commit() -> str | None:
    """The commit of the source, with a mark if it was changed since; None outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=RESULTS, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
