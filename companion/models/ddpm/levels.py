"""Intensities of images on the scale on which diffusions work, [-1, 1], and back."""

from jaxtyping import Float
from torch import Tensor

from companion.validate import require_events, require_levels


def stretched(
    x: Float[Tensor, " batch *event"], event_shape: tuple[int, ...], levels: int | None
) -> Float[Tensor, " batch *event"]:
    """Intensities k/(levels - 1) from 0 to 1 to -1 + 2k/(levels - 1); with `levels` None any real numbers, as they are.

    Raises TypeError or ValueError for a wrong shape or dtype, NaN, and values that are no levels.
    """
    require_events(x, event_shape)
    return x if levels is None else require_levels(x, levels) * (2 / (levels - 1)) - 1


def unstretched(x: Float[Tensor, " batch *event"], levels: int | None) -> Float[Tensor, " batch *event"]:
    """The inverse of `stretched`. What a sampler left a little outside of [-1, 1] is put on its edge, as the outermost
    cells of a discretised decoder reach to infinity."""
    return x if levels is None else ((x + 1) / 2).clamp(0, 1)


def require_level_count(levels: int | None) -> None:
    """Raises ValueError unless `levels` is None or an integer of at least 2."""
    if levels is not None and (isinstance(levels, bool) or not isinstance(levels, int) or levels < 2):
        raise ValueError(f"levels must be an integer of at least 2, or None, got {levels!r}")
