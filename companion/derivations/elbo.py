"""Checks for the chapter on the evidence lower bound."""

import numpy as np

from companion.derivations.registry import Lines, Mutant, verifies


@verifies(
    "jensen-concave",
    r"\log\mathbb E[W]\;\ge\;\mathbb E[\log W]",
    kind="inequality",
    route="enumeration",
    tolerance=1e-12,
    reason="sums of a few float64 terms of order one",
)
def jensen_concave(rng: np.random.Generator) -> Lines:
    p, w = rng.dirichlet(np.ones(4)), rng.lognormal(size=4)
    return Lines(
        {"log E[W]": np.log(p @ w), "≥ E[log W]": p @ np.log(w)},
        [Mutant("log for a convex function", np.log(p @ w) + 0.1, erratum="E000-05"), Mutant("b", p @ w)],
    )
