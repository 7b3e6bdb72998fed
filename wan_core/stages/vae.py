"""Frames <-> latents, streamed: neither side ever needs the whole clip inside the network."""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from ..conditioning.checks import check_tensor
from ..conditioning.known_frames import LATENT_LAYOUT
from ..errors import CapacityError, InputError, MismatchError, gigabytes
from ..grid import check_amount, latent_frames, pixel_frames
from ..models.tae import WanTAE
from ..models.vae import LATENTS_AT_ONCE, WanVAE, regroup
from ..models.vae_parts import ConvCache
from ..runtime.finite import check_finite
from ..runtime.ports import CPU, Ports
from ..runtime.stay import is_out_of_memory
from ..variants import LatentSpec
from .load import VaeHandle
from .vae_work import WINDOW, Split, choices, choose, smaller

HELD_RUNS = 3
"""Runs of a video that are kept until they are through, in case memory runs out: by then its need no longer grows."""


NOT_FINITE = "Check the pictures or the latent that went in, or load the VAE with precision fp32."


def check_channels(spec: LatentSpec, channels: int) -> None:
    """A latent of another model is refused before anything is computed."""
    if channels != spec.channels:
        raise MismatchError(
            f"The latent has {channels} channels, the {spec.vae} takes {spec.channels}. The Wan 2.2 VAE belongs to the "
            "5B model, the Wan 2.1 VAE to all others."
        )


def check_encodes(vae: VaeHandle) -> None:
    """A tiny VAE would blur every video that is made from what it encodes."""
    if vae.is_tiny:
        raise MismatchError(
            f"{vae.weights.name} is a tiny VAE, which only decodes. Connect the {vae.spec.vae} here; the tiny one can "
            "still decode."
        )


def _clips(vae: VaeHandle, latent: Tensor) -> Tensor:
    """The latent, checked; one without frames (of a picture) gets one."""
    latent = latent.unsqueeze(2) if isinstance(latent, Tensor) and latent.ndim == 4 else latent
    check_tensor(latent, "The latent", LATENT_LAYOUT)
    check_channels(vae.spec, latent.shape[1])
    check_amount(vae.spec, *latent.shape[2:])
    return latent


def decode_stream(vae: VaeHandle, latent_BCTHW: Tensor, ports: Ports, split: Split | None = None) -> Iterator[Tensor]:
    """Latent -> frames, as they are made.

    Args:
        latent_BCTHW: ``[B, C, T, h, w]``, not normalised (ComfyUI's LATENT); without T it is one frame.
        split: how the picture is cut; None: as memory allows.

    Yields:
        ``[B, n, H, W, 3]`` float32 on the CPU in 0..1: the first frame, then those of ``LATENTS_AT_ONCE`` latent
        frames, 4 each; in parts those of up to ``WINDOW`` together.
    """
    latent = _clips(vae, latent_BCTHW)
    batch, _, _, height, width = latent.shape
    if vae.is_tiny:
        ports.notify(vae.approximate)
    if vae.normalised:
        latent = vae.spec.normalise(latent)

    def work(module: WanVAE | WanTAE, split: Split, given: int) -> Iterator[Tensor]:
        for window, video in _decoded(vae, module, latent, split, ports):
            if window.stop > given:
                old = [pixel_frames(n, vae.spec.stride_t) if n else 0 for n in (window.start, given)]
                yield window.stop - given, video[:, max(0, old[1] - old[0]) :]
                given = window.stop
            del video  # here and below: what was handed over is not kept while the next window is made

    return _laddered(vae, _choices(vae, "decode", batch, height, width), split, ports, work)


def _decoded(vae: VaeHandle, module: WanVAE | WanTAE, latent: Tensor, split: Split, ports: Ports):
    """Windows of latent frames, and their pictures."""
    batch, _, frames, height, width = latent.shape
    device, stride = vae.weights.where, vae.spec.stride_hw
    joined, caches, finished = {}, [{} for _ in split.boxes], 0
    runs, window = regroup([latent], 1, LATENTS_AT_ONCE, keep_rest=True), range(0)
    length = 1 if len(split.boxes) == 1 else max(1, WINDOW // LATENTS_AT_ONCE)
    while window.stop < frames:
        features = []
        for run in islice(runs, length):
            ports.check_cancel()
            features.append(module.decode_joined(run.to(device), joined))
        window = range(window.stop, window.stop + sum(one.shape[2] for one in features))
        count = pixel_frames(len(window), vae.spec.stride_t) if window.start == 0 else len(window) * vae.spec.stride_t
        out = torch.empty(batch, count, height * stride, width * stride, 3)
        for box, cache in zip(split.boxes, caches):
            _move(cache, device)
            pixels, done = box.times(stride), 0
            videos = chain.from_iterable(module.decode_part(feature, cache, box) for feature in features)
            for index, video in zip(window, videos, strict=True):
                check_finite(video, f"VAE decode, latent frame {index + 1} of {frames}", vae.weights.name, NOT_FINITE)
                video = video.float().clamp_(-1, 1).add_(1).div_(2).movedim(1, -1)
                place = out[:, done : done + video.shape[1], pixels.rows.lo : pixels.rows.hi]
                place[..., pixels.cols.lo : pixels.cols.hi, :] = video
                done += video.shape[1]
                del video, place
                finished += 1
                ports.progress(finished, frames * len(split.boxes), None)
                ports.check_cancel()
            _park(cache, split, last=window.stop == frames)
        del features, videos
        yield window, out
        del out


def _move(cache: ConvCache, device: torch.device) -> None:
    for layer, past in cache.items():
        cache[layer] = past.to(device)


def _park(cache: ConvCache, split: Split, last: bool) -> None:
    """One part's cache makes room for the next part's."""
    if last:
        cache.clear()
    elif len(split.boxes) > 1:
        _move(cache, CPU)


Work = Callable[[WanVAE | WanTAE, Split, int], Iterator[tuple[int, Tensor]]]
"""``(network, split, given)``: yields how many more latent frames are through, and what they gave; of the first
``given`` nothing is yielded."""


def _laddered(
    vae: VaeHandle, found: Sequence[Split], split: Split | None, ports: Ports, work: Work
) -> Iterator[Tensor]:
    """What ``work`` yields; begun again in smaller parts when memory runs out. Nothing is lost or given twice."""
    weights, memory = vae.weights, ports.memory
    module = memory.place(weights, (split or found[0]).bytes, certain=False)
    if split is None:
        split = choose(found, 0, memory.free_bytes(weights.device))
        if len(split.boxes) > 1:
            ports.notify(f"To fit into memory the picture is worked on {split.grid}: the same pixels, a little later.")
    given = 0
    while True:
        pieces = work(module, split, given)
        while True:
            try:
                more, piece = next(pieces)
            except StopIteration:
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                said = str(error).partition("\n")[0][:200]
                break
            given += more
            yield piece
            del piece
        del pieces  # outside the except, so that nothing of what failed is still referred to
        gc.collect()
        less = smaller(found, split)
        memory.make_room((less or split).bytes, weights.device, empty=True)
        if less is None:
            free = memory.free_bytes(weights.device)
            raise CapacityError(
                f"{weights.name} ran out of memory on {weights.device} in the smallest parts, which need about "
                f"{gigabytes(split.bytes)}" + ("" if free is None else f"; {gigabytes(free)} are free now") + f" "
                f"({said}). The latent is not lost: close other programs that use the device, and run again."
            )
        split = less
        ports.notify(f"Memory ran out; going on with the picture {split.grid}: the same pixels, a little later.")


def _choices(vae: VaeHandle, direction: str, batch: int, height: int, width: int) -> tuple[Split, ...]:
    return choices(direction, vae.config, batch, height, width, vae.weights.compute_dtype.itemsize)


def decode(vae: VaeHandle, latent_BCTHW: Tensor, ports: Ports) -> Tensor:
    """All frames at once: ``[B, F, H, W, 3]`` in 0..1."""
    latent_BCTHW = _clips(vae, latent_BCTHW)
    batch, _, frames, height, width = latent_BCTHW.shape
    scale = vae.spec.stride_hw
    out = torch.empty(batch, pixel_frames(frames, vae.spec.stride_t), height * scale, width * scale, 3)
    done = 0
    for run in decode_stream(vae, latent_BCTHW, ports):
        out[:, done : done + run.shape[1]] = run
        done += run.shape[1]
        del run
    return out


def encode_stream(
    vae: VaeHandle,
    runs_B3FHW: Iterable[Tensor],
    size: tuple[int, int, int, int],
    ports: Ports,
    split: Split | None = None,
) -> Iterator[Tensor]:
    """Frames -> latent frames, as they are made.

    Args:
        runs_B3FHW: runs of frames ``[B, 3, n, H, W]`` in [-1, 1], of any length each.
        size: (batch, frames in all, height, width); sides must be multiples of the VAE's stride.
        split: how the picture is cut; None: as memory allows.

    Yields:
        ``[B, C, 1, h, w]`` float32 on the CPU, not normalised.
    """
    check_encodes(vae)
    batch, frames, height, width = size
    stride = vae.spec.stride_hw
    if height % stride or width % stride or min(height, width) < stride:
        raise InputError(
            f"The VAE takes sides that are multiples of {stride}; got {width}x{height}. Resize or crop to "
            f"{max(stride, width // stride * stride)}x{max(stride, height // stride * stride)}."
        )
    total = latent_frames(frames, vae.spec.stride_t)
    source = _Held(regroup(runs_B3FHW, 1, vae.spec.stride_t))

    def work(module: WanVAE, split: Split, given: int) -> Iterator[Tensor]:
        for index, mu in enumerate(_encoded(vae, module, iter(source), total, split, ports)):
            check_finite(mu, f"VAE encode, latent frame {index + 1} of {total}", vae.weights.name, NOT_FINITE)
            ports.progress(index + 1, total, None)
            if index + 1 == HELD_RUNS:
                source.let_go()
            if index >= given:
                yield 1, mu.float().cpu()

    return _laddered(vae, _choices(vae, "encode", batch, height // stride, width // stride), split, ports, work)


def _encoded(vae: VaeHandle, module: WanVAE, runs: Iterator[Tensor], total: int, split: Split, ports: Ports):
    """Latent frames, window by window."""
    device = vae.weights.where
    joined, caches = {}, [{} for _ in split.boxes]
    length = 1 if len(split.boxes) == 1 else WINDOW
    for start in range(0, total, length):
        window = list(islice(runs, length))
        whole = [None] * len(window)
        for box, cache in zip(split.boxes, caches):
            _move(cache, device)
            pixels = module.pixels_of(box)
            for index, run in enumerate(window):
                ports.check_cancel()
                made = module.encode_part(pixels.of(run).to(device), cache, box)
                if whole[index] is None:
                    whole[index] = made.new_empty(*made.shape[:3], box.rows.size, box.cols.size)
                box.of(whole[index]).copy_(made)
            _park(cache, split, last=start + length >= total)
        for index in range(len(window)):
            yield module.encode_joined(whole[index], joined)
            whole[index] = None


class _Held:
    """A stream that can begin again until :meth:`let_go` is called."""

    def __init__(self, runs: Iterator[Tensor]):
        self._runs = runs
        self._held: list[Tensor] | None = []
        self._is_broken = False

    def __iter__(self) -> Iterator[Tensor]:
        if self._held is None or self._is_broken:
            raise CapacityError(
                "Memory ran out in the middle of the video, whose beginning is no longer there. Close other programs "
                "that use the device, and run again."
            )
        yield from list(self._held)
        while True:
            self._is_broken = True  # a stream in which something is raised is at its end: the rest would be missing
            run = next(self._runs, None)
            self._is_broken = False
            if run is None:
                return
            if self._held is not None:
                self._held.append(run)
            yield run
            del run

    def let_go(self) -> None:
        """What is through is not asked for again."""
        self._held = None


def encode(vae: VaeHandle, frames_BFHWC: Tensor, ports: Ports) -> Tensor:
    """Pictures ``[B, F, H, W, 3]`` in 0..1 -> latent ``[B, C, T, h, w]``, not normalised. Frames beyond 4n+1 are not
    seen by the VAE."""
    check_tensor(frames_BFHWC, "The clip to encode", "batch, frames, height, width, channels")
    batch, frames, height, width, channels = frames_BFHWC.shape
    if channels < 3:
        raise InputError(f"The pictures have {channels} channels; the VAE takes 3 (RGB).")
    video = frames_BFHWC[..., :3].movedim(-1, 1)
    runs = (video[:, :, i : i + 1].float() * 2 - 1 for i in range(frames))
    return torch.cat(list(encode_stream(vae, runs, (batch, frames, height, width), ports)), dim=2)


def working_bytes(vae: VaeHandle, batch: int, latent_height: int, latent_width: int) -> int:
    """Estimated activations and caches of whole pictures, in the direction that takes more."""
    return max(_choices(vae, one, batch, latent_height, latent_width)[0].bytes for one in ("decode", "encode"))
