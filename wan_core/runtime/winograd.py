"""Convolutions with fewer multiplications: Winograd's minimal filtering along the frames and along the rows.

``m`` values that come out of 3 taps take ``m + 2`` multiplications instead of ``3 m``: sums of what goes in are
multiplied with sums of taps, and sums of the products are what comes out. Four frames by four rows so take a quarter of
the work. What is left are convolutions along the columns, which PyTorch does: its convolutions use all of a CPU, its
matrix products may use half of an AMD one (215 of 500 GFLOP/s on two cores with AVX-512). float32 results are about
1e-6 off (by norm, from float64), plain ones half as much; in narrower types it would be too much.

Source: Winograd, "Arithmetic Complexity of Computations" (1980); Lavin and Gray, arXiv 1509.09308; for the choice of
points Barabasz et al., arXiv 1803.10986.
"""

from collections.abc import Callable
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}
"""Values that come out -> where their polynomials are evaluated, besides infinity. Those of 4 were the most exact of
ten sets."""
ROWS = 4
"""That come out at once."""
LEAST_CHANNELS = 32
"""Below it the sums cost more than the products that they save."""
LEAST_WIDTH = 32
"""Below it a row is too little for what it takes to sum it (96 channels; 192 would gain from 16 on)."""
VALUES = 96 * 1024
"""Pixels by channels of the sums that are convolved at once. Fewer are too little work for a call, more leave the
processor's cache."""
MOST_TAPS = 14
"""Sums of taps by what goes in: they are made at each call, and beyond it that takes longer than the products that they
save (384 channels at 32x32 gain by it, at 16x16 they lose; two cores with AVX-512 and with AVX2)."""


@lru_cache
def minimal(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sums for ``count`` values of 3 taps, float64: of the inputs ``[n, n]``, of the taps ``[n, 3]``, and of the
    products ``[count, n]``, where ``n = count + 2``."""
    points = torch.tensor(POINTS[count], dtype=torch.float64)

    def powers(length: int) -> Tensor:
        last = torch.zeros(1, length, dtype=torch.float64)
        last[0, -1] = 1
        return torch.cat((points[:, None] ** torch.arange(length), last))

    apart = points[:, None] - points + torch.eye(len(points))
    scale = torch.cat((apart.prod(dim=1), torch.ones(1)))[:, None]
    return torch.linalg.inv(powers(count + 2)).T * scale, powers(3) / scale, powers(count).T


def room(frames: int, height: int, width: int, into: int, out: int) -> int:
    """Values that :func:`conv3d` holds besides what goes in and what comes out; 0 where a picture of that size is
    convolved plainly, whatever the device."""
    seen, window = frames + 2, ROWS + 2
    taps = 3 * seen * window * into * out
    suits = frames in POINTS and width >= LEAST_WIDTH and min(into, out) >= LEAST_CHANNELS
    if not suits or taps > MOST_TAPS * frames * height * width * into:
        return 0
    strips = strips_at_once(height, width, max(into, out))
    step, wide = strips * ROWS, width + 2
    rows = seen * ((ROWS + 2) * wide * into + max((step + 2) * wide * into, step * width * out))
    sums = window * strips * (wide * into + width * out) + (strips + frames * ROWS) * width * out
    weights = 27 * into * out + (taps // seen if step >= height else taps)
    return rows + sums + weights


def strips_at_once(height: int, width: int, channels: int) -> int:
    """How often four rows are worked on together; half as often at most where fewer would be beyond the picture."""
    all_of_them = -(-height // ROWS)
    most = min(-(-VALUES // (channels * width)), all_of_them)
    return min(range(most, most // 2, -1), key=lambda count: -(-all_of_them // count) * count)


def pays(x_BCTHW: Tensor, weight_OI333: Tensor) -> bool:
    """Whether :func:`conv3d` is the faster way (measured on x86 CPUs) and exact enough; it has no gradient."""
    out, into, *kernel = weight_OI333.shape
    return (
        x_BCTHW.device.type == "cpu"
        and x_BCTHW.dtype == torch.float32
        and not torch.is_grad_enabled()
        and kernel == [3, 3, 3]
        and room(*x_BCTHW.shape[2:], into, out) > 0
    )


def conv3d(
    past_BC2HW: Tensor,
    x_BCTHW: Tensor,
    weight_OI333: Tensor,
    bias_O: Tensor,
    fill: Callable[[Tensor, Tensor], None],
    out_BOTHW: Tensor,
) -> Tensor:
    """``F.conv3d(torch.cat([past, filled x], 2), weight, bias, padding=(0, 1, 1))`` for 2 or 4 frames.

    Some rows at a time, so that of what is in between only a little exists.

    Args:
        past_BC2HW: the two frames before, as they were filled; it becomes the last two filled frames.
        fill: ``fill(out, x)`` writes what is convolved, of some rows of ``x``. Both are ``[1, C, T, rows, W]``.
        out_BOTHW: room for what comes out; it may be ``x`` itself. As all others its channels are last in memory.

    Returns:
        ``out``.
    """
    frames, height, width = x_BCTHW.shape[2:]
    made, channels = weight_OI333.shape[:2]
    seen, window, wide, new = frames + 2, ROWS + 2, width + 2, x_BCTHW.new_empty
    strips = strips_at_once(height, width, max(channels, made))
    step = strips * ROWS
    into, taps, out = (sums.to(x_BCTHW.dtype) for sums in minimal(frames))
    into_rows, row_taps, out_rows = (sums.to(x_BCTHW.dtype) for sums in minimal(ROWS))
    out_rows = out_rows.expand(strips, -1, -1)
    weight = weight_OI333.permute(2, 3, 0, 4, 1).reshape(9, -1)  # one row a tap over frames and rows

    def kernels(time: int) -> Tensor:
        """Sums of taps for one of the sums over frames: ``[n, O, I, 1, 3]`` for the ``n`` over rows, ``I`` last in
        memory."""
        of_all = torch.kron(taps[time : time + 1], row_taps)
        return (of_all @ weight).view(window, made, 1, 3, channels).movedim(-1, 2)

    if step < height:
        kernels = cache(kernels)
    run, edge = new(seen, ROWS, wide, channels).zero_(), new(seen, 2, wide, channels)  # zeros beyond left and right
    timed = new(seen, max((step + 2) * wide * channels, step * width * made))
    rows = timed[:, : (step + 2) * wide * channels].view(seen, step + 2, wide, channels)
    products = timed[:, : step * width * made].view(seen, strips, ROWS, width * made)  # over the rows of their time
    values = new(frames, ROWS, width, made)
    sums, convolved = new(window, strips, wide, channels), new(strips, window, width, made)

    def take(clip: int, first: int, at: int) -> None:
        """Rows of the picture from ``first`` on, filled and summed over the frames, into ``rows`` from ``at`` on."""
        last = max(first, min(height, first + step + 2 - at))
        for top in range(first, last, ROWS):
            there = slice(top, min(last, top + ROWS))
            here = run[:, : there.stop - top]
            here[:2, :, 1:-1] = past[clip, :, there]
            fill(here[2:, :, 1:-1].movedim(-1, 0)[None], x[clip, :, there].movedim(-1, 0)[None])
            past[clip, :, there] = here[-2:, :, 1:-1]
            torch.mm(into, here.flatten(1), out=rows[:, at + top - first :][:, : there.stop - top].flatten(1))
        rows[:, at + last - first :] = 0  # beyond the picture

    x, past, result = (tensor.movedim(1, -1) for tensor in (x_BCTHW, past_BC2HW, out_BOTHW))
    for clip in range(len(x)):
        rows[:, step] = 0
        take(clip, 0, at=step + 1)
        edge.copy_(rows[:, step:])
        for top in range(0, height, step):
            rows[:, :2] = edge
            take(clip, top + 1, at=2)
            edge.copy_(rows[:, step:])
            for time in range(seen):
                for strip in range(strips):
                    seen_rows = rows[time, strip * ROWS : strip * ROWS + window]
                    torch.mm(into_rows, seen_rows.flatten(1), out=sums[:, strip].flatten(1))
                for index, kernel in enumerate(kernels(time)):
                    columns = F.conv2d(sums[index : index + 1].movedim(-1, 1), kernel)
                    convolved[:, index] = columns[0].movedim(0, -1)
                    del columns, kernel  # not kept while the next is made
                torch.bmm(out_rows, convolved.flatten(2), out=products[time])
            for strip in range(strips):
                place = result[clip, :, top + strip * ROWS : top + (strip + 1) * ROWS]
                torch.mm(out, products[:, strip].flatten(1), out=values.flatten(1))
                torch.add(values[:, : place.shape[1]], bias_O, out=place)
    return out_BOTHW
