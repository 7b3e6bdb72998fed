"""What a video can be written as: one row a codec. A new one is a new row; names are for ever."""

from dataclasses import dataclass

from ..errors import InputError

QUALITIES = ("small", "standard", "high", "highest")


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How one quality of a codec is asked of its encoder: pixel format and the encoder's own options."""

    pix_fmt: str
    options: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class VideoCodec:
    """A codec with its container, the sound that goes with it, and its codings in the order of :data:`QUALITIES`."""

    encoder: str
    container: str
    ending: str
    audio: str
    codings: tuple[Coding, Coding, Coding, Coding]
    tag: str | None = None
    plays: str
    """Where it plays, in a few words for the widget's tooltip."""

    def coding(self, quality: str) -> Coding:
        if quality not in QUALITIES:
            raise InputError(f"There is no quality {quality!r}; choose {', '.join(QUALITIES)}.")
        return self.codings[QUALITIES.index(quality)]


def _by_crf(pix_fmt: str, crfs: tuple[int, int, int, int], **options: str) -> tuple[Coding, ...]:
    return tuple(Coding(pix_fmt=pix_fmt, options={**options, "crf": str(crf)}) for crf in crfs)


def _prores(profile: str, pix_fmt: str = "yuv422p10le") -> Coding:
    return Coding(pix_fmt=pix_fmt, options={"profile": profile, "vendor": "apl0"})


VIDEO_CODECS: dict[str, VideoCodec] = {
    "h264": VideoCodec(
        encoder="libx264", container="mp4", ending="mp4", audio="aac", plays="everywhere",
        codings=_by_crf("yuv420p", (28, 21, 16, 6), **{"rc-lookahead": "20"}),
    ),
    "h265": VideoCodec(
        encoder="libx265", container="mp4", ending="mp4", audio="aac", tag="hvc1", plays="10 bit; Safari and players",
        codings=_by_crf("yuv420p10le", (30, 24, 18, 8), **{
            "preset": "fast", "x265-params": "log-level=error:rc-lookahead=15",
        }),
    ),
    "av1": VideoCodec(
        encoder="libsvtav1", container="mp4", ending="mp4", audio="aac", plays="10 bit, smallest; browsers",
        codings=_by_crf("yuv420p10le", (42, 32, 22, 10), preset="8"),
    ),
    "vp9": VideoCodec(
        encoder="libvpx-vp9", container="webm", ending="webm", audio="libopus", plays="webm; browsers",
        codings=_by_crf("yuv420p", (40, 31, 22, 8), **{"b": "0", "cpu-used": "4", "row-mt": "1"}),
    ),
    "ffv1": VideoCodec(
        encoder="ffv1", container="matroska", ending="mkv", audio="flac", plays="mkv, lossless at every quality",
        codings=(Coding(pix_fmt="bgr0", options={"level": "3", "slicecrc": "1"}),) * 4,
    ),
    "prores": VideoCodec(
        encoder="prores_ks", container="mov", ending="mov", audio="aac", plays="mov; editing programs",
        codings=(_prores("lt"), _prores("standard"), _prores("hq"), _prores("4444", "yuv444p10le")),
    ),
}  # fmt: skip
"""Choice -> codec. crf is each encoder's own scale: lower is better and larger."""


def codec_of(name: str) -> VideoCodec:
    """The row of a name.

    Raises:
        InputError: there is none, or the installed PyAV has no encoder for it.
    """
    import av

    if name not in VIDEO_CODECS:
        raise InputError(f"There is no codec {name!r}; choose {', '.join(VIDEO_CODECS)}.")
    row = VIDEO_CODECS[name]
    if not has_encoder(row.encoder):
        others = [other for other, one in VIDEO_CODECS.items() if has_encoder(one.encoder)]
        raise InputError(
            f"PyAV {av.__version__} of this ComfyUI has no encoder {row.encoder} for {name}. It can write "
            f"{', '.join(others) or 'no video at all: install the package av from PyPI'}; choose one of these."
        )
    return row


def has_encoder(name: str) -> bool:
    """Whether the installed PyAV can encode with it."""
    import av

    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True
