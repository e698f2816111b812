"""Is an answer to one of the book's exercises right? Ask, and get a hint where it is not:

    from companion import exercises
    exercises.check("vae-3", my_function)

No answer is stored: each is held to a computation of the checker's own.
"""

from companion.exercises.checking import CHECKERS, Verdict, check

# Importing a chapter's module registers its checkers. The order is that of the book.
from companion.exercises import generative_problem, elbo, vae, hvae, gan, autoregressive  # isort: skip  # noqa: F401
from companion.exercises import flows, ebm, ddpm, faster_sampling, evaluation  # isort: skip  # noqa: F401

__all__ = ["CHECKERS", "Verdict", "check"]
