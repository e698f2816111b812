"""Block Gibbs sampling, for models of x and z that can be drawn given each other."""

from collections.abc import Callable, Iterator
from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor

from companion.samplers.chains import Chains, collect, require_finite, require_states

Draw = Callable[[Tensor, torch.Generator | None], Tensor]


def gibbs(
    draw_z: Draw,
    draw_x: Draw,
    x: Float[Tensor, " chains *event"],
    steps: int,
    *,
    generator: torch.Generator | None = None,
    burn_in: int = 0,
    thin: int = 1,
    keep: bool = True,
    progress: bool = False,
) -> Chains:
    """In each step z ~ p(z|x), then x ~ p(x|z) (Geman and Geman 1984): p(x, z) stays as it is, and nothing is rejected.

    Args:
        draw_z: x and a generator to a draw of p(z|x), one for each chain.
        draw_x: z and a generator to a draw of p(x|z).
        x: where the chains start. The states of the answer are those of x.
        generator, burn_in, thin, keep, progress: as in `langevin`.

    Raises:
        FloatingPointError: a draw of x is not finite; with chain and step.
        TypeError, ValueError: an argument that means nothing, or draws of another shape than x.

    >>> import torch
    >>> from companion.samplers import gibbs
    >>> def draw(of, generator):
    ...     return 0.5 * of + 0.75**0.5 * torch.empty_like(of).normal_(generator=generator)
    >>> chains = gibbs(draw, draw, torch.zeros(100, 1), 10)  # a correlation of 1/2
    >>> chains.last.shape
    torch.Size([100, 1])
    """
    require_states(x)
    return collect(_gibbs(draw_z, draw_x, x, generator), x, steps, burn_in, thin, keep, progress)


@torch.no_grad()
def _gibbs(draw_z: Draw, draw_x: Draw, x: Tensor, generator: torch.Generator | None) -> Iterator[tuple[Tensor, None]]:
    for step in count(1):
        new = draw_x(draw_z(x, generator), generator)
        if new.shape != x.shape:
            raise ValueError(f"draw_x must return the shape of x, {tuple(x.shape)}, got {tuple(new.shape)}")
        require_finite(new, step)
        yield (x := new), None
