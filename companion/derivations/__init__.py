"""The checks behind the book's equations, one module for each chapter.

`verify("elbo-gap-kl")` runs one of them; `companion verify` on the command line runs all.
"""

from companion.derivations.registry import CHECKS, CheckFailed, Lines, Mutant, Result, select, verifies, verify

# Importing a chapter's module registers its checks. The order is that of the book.
from companion.derivations import generative_problem, elbo, vae, hvae, gan, autoregressive  # isort: skip  # noqa: F401
from companion.derivations import flows, ebm, ddpm, faster_sampling, evaluation  # isort: skip  # noqa: F401

__all__ = ["CHECKS", "CheckFailed", "Lines", "Mutant", "Result", "select", "verifies", "verify"]
