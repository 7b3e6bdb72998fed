"""Is a picture in parts the whole picture, at real width?

``python3 -m benchmarks.vae_exact [--vae 2.1 2.2] [--frames 1 5 17] [--long 41] [--picture FILE]``

Builds the VAEs at their real width with random weights and decodes and encodes a strip of odd size (``--long`` latent
pixels by 5), whole and in 2 to 5 parts across, then the same strip upright in parts down: float32, relative by the
largest value. In bfloat16, 4 parts and whole are both compared with whole in float32, for four clips. ``--picture``
draws the last frame of the last decode in parts, and below it how it differs from the whole one, each as bright as it
can be; columns beside the borders of parts must not differ more than the others. Passes where float32 is within 1e-5
and bfloat16 in parts is no further from float32 than whole, but for 1 % over all clips.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from scripts.tiny_models import randomised
from wan_core.configs import VaeConfig
from wan_core.models.vae import WanVAE
from wan_core.runtime.ports import Ports
from wan_core.runtime.residency import Resident
from wan_core.stages.load import VaeHandle
from wan_core.stages.vae import decode_stream, encode_stream
from wan_core.stages.vae_work import Split, cut, in_parts
from wan_core.variants import LATENTS

CONFIGS = {"2.1": VaeConfig(), "2.2": VaeConfig(dim=160, dec_dim=256, z_dim=48, patch=2, shortcuts=True)}
SHORT = 5
LIMIT = 1e-5
PARTS_BF16, CLIPS_BF16 = 4, 4
AS_GOOD = 1.01
LINE = 3.0
"""Times the usual difference that a column beside a border may have, by chance, of the mean over rows and frames."""


def handle(config: VaeConfig, dtype: torch.dtype) -> VaeHandle:
    module = WanVAE(config).eval().requires_grad_(False)
    module.load_state_dict(randomised(WanVAE, config, torch.Generator().manual_seed(1)))
    with torch.no_grad():  # so that few values are clamped
        latent = torch.randn(1, config.z_dim, 1, 4, 4, generator=torch.Generator().manual_seed(2))
        last = [one for one in module.decoder.modules() if isinstance(one, torch.nn.Conv3d)][-1]
        made = torch.cat(list(decode_stream(_of(module, config), latent, Ports())), 1) * 2 - 1
        last.weight /= max(1.0, made.std().item() * 4)
    return _of(module.to(dtype), config)


def _of(module: WanVAE, config: VaeConfig) -> VaeHandle:
    dtype = next(module.parameters()).dtype
    size = sum(weight.nbytes for weight in module.parameters())
    weights = Resident("vae", size, torch.device("cpu"), lambda: module, dtype)
    return VaeHandle(config=config, spec=LATENTS[config.z_dim], weights=weights)


def worked(vae: VaeHandle, direction: str, given: Tensor, split: Split) -> Tensor:
    if direction == "decode":
        return torch.cat(list(decode_stream(vae, given, Ports(), split)), dim=1)
    return torch.cat(list(encode_stream(vae, iter([given]), (1, *given.shape[2:]), Ports(), split)), dim=2)


def split_of(vae: VaeHandle, direction: str, height: int, width: int, down: int, across: int) -> Split:
    itemsize = vae.weights.compute_dtype.itemsize
    return in_parts(direction, vae.config, 1, cut(height, down), cut(width, across), itemsize)


def rows(vae: VaeHandle, frames: int, long: int) -> Iterator[tuple[str, str, int, Tensor, Tensor, Split]]:
    """Direction, orientation, parts, whole and in parts."""
    stride = vae.spec.stride_hw
    for direction, upright in itertools.product(("decode", "encode"), (False, True)):
        height, width = (long, SHORT) if upright else (SHORT, long)
        generator = torch.Generator().manual_seed(frames)
        if direction == "decode":
            shape = (1, vae.config.z_dim, (frames - 1) // vae.spec.stride_t + 1, height, width)
            given = torch.randn(shape, generator=generator)
        else:
            given = torch.rand(1, 3, frames, height * stride, width * stride, generator=generator) * 2 - 1
        whole = worked(vae, direction, given, split_of(vae, direction, height, width, 1, 1))
        for parts in (2, 3, 4, 5):
            split = split_of(vae, direction, height, width, *((parts, 1) if upright else (1, parts)))
            yield direction, "down" if upright else "across", parts, whole, worked(vae, direction, given, split), split


def line(whole: Tensor, parts: Tensor, split: Split, stride: int) -> float:
    """How much more the columns beside a border differ than the others, of frames ``[B, F, H, W, 3]`` cut across."""
    columns = (whole - parts).abs().mean((0, 1, 2, 4))
    beside = {box.cols.lo * stride + offset for box in split.boxes[1:] for offset in (-1, 0)}
    borders = torch.tensor([column in beside for column in range(len(columns))])
    return (columns[borders].mean() / columns[~borders].mean().clamp(min=1e-30)).item()


def draw(path: Path, whole: Tensor, parts: Tensor, larger: int = 2) -> None:
    """The last frame in parts, and its difference from the whole one below it."""
    from PIL import Image

    picture, differs = parts[0, -1], (parts - whole).abs()[0, -1]
    rows = torch.cat((picture, torch.ones(4, *picture.shape[1:]), differs / differs.amax().clamp(min=1e-30)))
    image = Image.fromarray((rows * 255).round().byte().numpy())
    image.resize((image.width * larger, image.height * larger), Image.Resampling.NEAREST).save(path)


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--frames", nargs="+", type=int, default=[1, 5, 17])
    parser.add_argument("--long", type=int, default=41)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    passed = True
    for name in args.vae:
        vae = handle(CONFIGS[name], torch.float32)
        for frames in args.frames:
            worst: dict[tuple[str, str], float] = {}
            for direction, way, parts, whole, cut_up, split in rows(vae, frames, args.long):
                error = ((whole - cut_up).abs().max() / whole.abs().max()).item()
                worst[direction, way] = max(worst.get((direction, way), 0.0), error)
                if direction == "decode" and way == "across" and parts == 4:
                    seam = line(whole, cut_up, split, vae.spec.stride_hw)
                    passed &= seam <= LINE
                    print(f"VAE {name} fp32 {frames} frames: columns at borders differ {seam:.2f} times as much")
                    if args.picture is not None:
                        draw(args.picture, whole, cut_up)
            for (direction, way), error in worst.items():
                passed &= error <= LIMIT
                print(f"VAE {name} fp32 {frames} frames, {direction}, 2 to 5 parts {way}: {error:.1e}", flush=True)
        passed &= in_bf16(name, vae, args.long)
    print("PASSED" if passed else "FAILED")
    return 0 if passed else 1


def in_bf16(name: str, full: VaeHandle, long: int, frames: int = 5) -> bool:
    """Two ways of rounding the same sums differ by chance: judged over all clips together."""
    half, squares = handle(CONFIGS[name], torch.bfloat16), {1: 0.0, PARTS_BF16: 0.0}
    for seed in range(CLIPS_BF16):
        shape = (1, full.config.z_dim, (frames - 1) // 4 + 1, SHORT, long)
        latent = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        exact = worked(full, "decode", latent, split_of(full, "decode", SHORT, long, 1, 1))
        errors = []
        for parts in squares:
            made = worked(half, "decode", latent, split_of(half, "decode", SHORT, long, 1, parts))
            errors.append(((made - exact).norm() / exact.norm()).item())
            squares[parts] += errors[-1] ** 2
        print(f"VAE {name} bf16 {frames} frames, clip {seed}, decode, from fp32: whole {errors[0]:.3e}, "
              f"in {PARTS_BF16} parts {errors[1]:.3e} ({errors[1] / errors[0] - 1:+.2%})", flush=True)  # fmt: skip
    by = (squares[PARTS_BF16] / squares[1]) ** 0.5
    print(f"VAE {name} bf16: over {CLIPS_BF16} clips the error in {PARTS_BF16} parts is {by:.4f} of that of the whole")
    return by <= AS_GOOD


if __name__ == "__main__":
    sys.exit(main())
