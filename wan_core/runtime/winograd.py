"""Convolutions over time with fewer multiplications: Winograd's minimal filtering along the frames.

``m`` frames that come out of 3 taps take ``m + 2`` convolutions of pictures instead of ``3 m``: sums of frames are
convolved with sums of taps, and sums of what comes out are the frames. For 4 frames that is half of the work, for 2
two thirds. The sums cost accuracy: float32 results are 1 to 2e-6 off (by norm, from float64) where a plain convolution
is 0.6e-6 off; in narrower types it would be too much.

Source: Winograd, "Arithmetic Complexity of Computations" (1980); Lavin and Gray, arXiv 1509.09308, for the matrices.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_INPUT = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]],
    4: [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
"""Frames that come out -> what is convolved, as sums of the frames that go in (two more)."""
_TAPS = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}
"""... -> with what, as sums of the three taps."""
_OUTPUT = {
    2: [[1, 1, 1, 0], [0, 1, -1, 1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}
"""... -> the frames that come out, as sums of what was convolved. Its second column holds ones alone: the bias goes
there."""
_BIAS_AT = 1

LEAST_CHANNELS = 32
LEAST_AREA = 512
"""Below them the sums cost more than the products that they save."""
STRIP_BYTES = 10 << 20
"""Of sums at once: rows are done in strips, so that what one step writes is in the cache when the next one reads it."""


def pays(x_BCTHW: Tensor, weight_OI333: Tensor) -> bool:
    """Whether :func:`conv3d` is the faster way (measured on CPUs) and exact enough; it has no gradient."""
    frames, height, width = x_BCTHW.shape[2:]
    return (
        x_BCTHW.device.type == "cpu"
        and x_BCTHW.dtype == torch.float32
        and not torch.is_grad_enabled()
        and frames in _TAPS
        and weight_OI333.shape[2:] == (3, 3, 3)
        and min(weight_OI333.shape[:2]) >= LEAST_CHANNELS
        and height * width >= LEAST_AREA
    )


def conv3d(
    past_BC2HW: Tensor,
    x_BCTHW: Tensor,
    weight_OI333: Tensor,
    bias_O: Tensor,
    fill: Callable[[Tensor, Tensor], None],
) -> tuple[Tensor, Tensor]:
    """``F.conv3d(torch.cat([past, filled x], 2), weight, bias, padding=(0, 1, 1))`` for 2 or 4 frames.

    All of it strip by strip, so that of what is in between only a strip exists.

    Args:
        past_BC2HW: the two frames before, as they were filled.
        fill: ``fill(out, x)`` writes what is convolved, of some rows of ``x``. Both are ``[1, C, T, rows, W]``.

    Returns:
        ``[B, O, T, H, W]``, and the last two filled frames. As ``past`` and ``x`` they have their channels last in
        memory.
    """
    batch, channels, frames, height, width = x_BCTHW.shape
    into, taps, out = (x_BCTHW.new_tensor(table[frames]) for table in (_INPUT, _TAPS, _OUTPUT))
    many = len(into)
    kernels = (taps @ weight_OI333.movedim((2, 1), (0, -1)).flatten(1)).view(many, -1, 3, 3, channels).movedim(-1, 2)
    strips = -(-many * height * width * channels * x_BCTHW.element_size() // STRIP_BYTES)
    rows = -(-height // strips)
    run, sums = x_BCTHW.new_empty(2, many, rows + 2, width, channels)
    made = x_BCTHW.new_empty(many, rows, width, len(weight_OI333))
    result = x_BCTHW.new_empty(batch, frames, height, width, len(weight_OI333))
    kept = x_BCTHW.new_empty(batch, 2, height, width, channels)
    x, past = x_BCTHW.movedim(1, -1), past_BC2HW.movedim(1, -1)
    for clip in range(batch):
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            lo, hi = max(0, top - 1), min(height, bottom + 1)
            seen = slice(lo - top + 1, hi - top + 1)  # of the strip's rows; above and below the picture are zeros
            run[:, : seen.start].zero_()
            run[:, seen.stop :].zero_()
            run[:2, seen] = past[clip, :, lo:hi]
            fill(run[2:, seen].movedim(-1, 0)[None], x[clip, :, lo:hi].movedim(-1, 0)[None])
            kept[clip, :, top:bottom] = run[-2:, 1 : bottom - top + 1]
            torch.mm(into, run.flatten(1), out=sums.flatten(1))
            for number, kernel in enumerate(kernels):
                picture = sums[number : number + 1, : bottom - top + 2].movedim(-1, 1)
                bias = bias_O if number == _BIAS_AT else None
                made[number, : bottom - top] = F.conv2d(picture, kernel, bias, padding=(0, 1))[0].movedim(0, -1)
            torch.mm(out, made[:, : bottom - top].flatten(1), out=result[clip, :, top:bottom].flatten(1))
    return result.movedim(-1, 1), kept.movedim(-1, 1)
