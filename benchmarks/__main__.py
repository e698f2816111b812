"""`python -m benchmarks`: all workloads, to the screen and to _build/benchmarks.json."""

import json
from pathlib import Path

import torch

from benchmarks import diffusion, evaluation, flows, harness, vae

if __name__ == "__main__":
    torch.manual_seed(0)
    peers = ["pythae", "normflows", "nflows", "zuko", "diffusers", "denoising-diffusion-pytorch"]
    about = harness.environment([*peers, "torchmetrics", "torch-fidelity", "pytorch-fid"])
    print(
        " · ".join(f"{name} {version}" for name, version in about["versions"].items()), f"· {about['threads']} threads"
    )
    results = {"environment": about, "workloads": [*vae.run(), *flows.run(), *diffusion.run(), *evaluation.run()]}
    file = Path("_build/benchmarks.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {file}")
