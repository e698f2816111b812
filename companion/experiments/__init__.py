"""What takes longer than a chapter may: `companion run NAME` writes its results, the chapters print them.

An experiment is a function that returns rows and takes seeds; with small arguments it is quick enough to run one of
its rows again, live. Those of a chapter are in the module of its name.
"""

import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path

from companion.experiments.autoregressive import (
    autoregressive_digits,
    autoregressive_mnist,
    autoregressive_speed,
    wavenet_waves,
)
from companion.experiments.ddpm import ddpm_digits, ddpm_mnist
from companion.experiments.ebm import ebm_digits, ebm_plane, rbm_digits, score_mnist
from companion.experiments.evaluation import digit_classifier
from companion.experiments.faster_sampling import few_steps_plane, sampler_digits
from companion.experiments.flows import flows_digits, flows_mnist, flows_plane
from companion.experiments.gan import gan_collapse, gan_modes
from companion.experiments.hvae import hvae_collapse, hvae_digits, latent_dimension
from companion.experiments.record import RESULTS, record, write
from companion.experiments.vae import Row, vae_beta, vae_disentanglement

EXPERIMENTS: dict[str, Callable[..., list[Row]]] = {
    experiment.__name__: experiment
    for experiment in (
        vae_beta,
        vae_disentanglement,
        hvae_digits,
        hvae_collapse,
        latent_dimension,
        gan_modes,
        gan_collapse,
        autoregressive_digits,
        autoregressive_mnist,
        autoregressive_speed,
        wavenet_waves,
        flows_plane,
        flows_digits,
        flows_mnist,
        ebm_plane,
        rbm_digits,
        ebm_digits,
        score_mnist,
        ddpm_mnist,
        ddpm_digits,
        sampler_digits,
        few_steps_plane,
        digit_classifier,
    )
}


def run(name: str, folder: Path = RESULTS, /, **arguments) -> Path:
    """Run an experiment and write FOLDER/NAME.json: its arguments, its rows and what they were computed with.

    "seconds" are those of this run; of an experiment that went on from checkpoints, the last part alone.

    Raises ValueError for an unknown name, and for an argument that the experiment does not take.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[name]
    signature = inspect.signature(experiment)
    for argument in arguments:
        if argument not in signature.parameters:
            raise ValueError(f"{name} takes no {argument}; it takes {', '.join(signature.parameters)}")
    bound = signature.bind(**arguments)
    bound.apply_defaults()
    start = time.perf_counter()
    rows = experiment(**bound.arguments)
    seconds = time.perf_counter() - start
    return write(Path(folder) / f"{name}.json", record(name, bound.arguments, seconds, rows))


def result(name: str) -> dict:
    """What `run` wrote and the package carries. Raises FileNotFoundError with the command that writes it."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; `companion run {name}` writes it")
    return json.loads(path.read_text())
