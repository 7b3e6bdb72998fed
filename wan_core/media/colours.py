"""Between RGB and what video files store, as exactly as libswscale can."""

from contextlib import suppress

BT709, SRGB, LIMITED = 1, 13, 1
"""Numbers of H.273: primaries and matrix, transfer, and the range 16..235."""


def tag(target) -> None:
    """BT.709 colours with the curve of sRGB, as native nodes write them: without, players guess by the size.

    ``target``: a codec context or a frame; older PyAV has not all of the names on a frame, the context's count then.
    """
    for name, value in (
        ("color_primaries", BT709), ("color_trc", SRGB), ("colorspace", BT709), ("color_range", LIMITED),
    ):  # fmt: skip
        with suppress(AttributeError):
            setattr(target, name, value)


def to_stored(frame, pix_fmt: str):
    """A frame in rgb24 -> one in ``pix_fmt``, BT.709."""
    return frame.reformat(format=pix_fmt, dst_colorspace=BT709, interpolation=_careful("FULL_CHR_H_INP"))


def to_rgb(frame):
    """A frame as it was decoded -> uint8 ``[H, W, 3]``. Colours stored for pairs of pixels are interpolated, not
    doubled, which is worth 4 to 15 dB on soft edges."""
    return frame.reformat(format="rgb24", interpolation=_careful("FULL_CHR_H_INT")).to_ndarray()


def _careful(chroma: str):
    """Flags of libswscale; plain bicubic where this PyAV does not know them."""
    from av.video.reformatter import Interpolation

    try:
        return Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation[chroma]
    except (AttributeError, KeyError, TypeError):
        return Interpolation.BICUBIC
