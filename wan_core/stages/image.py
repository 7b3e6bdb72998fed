"""Pictures -> what image models take: CLIP tokens, and the latent and mask of the known frames."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditioning.checks import check_tensor
from ..conditioning.known_frames import known_video
from ..errors import InputError, MismatchError
from ..grid import Grid
from ..models.clip_vision import preprocess, preprocess_native
from ..runtime.finite import check_finite
from ..runtime.memory import fixed_work
from ..runtime.ports import Notify, Ports
from ..runtime.stay import Stay, Stop
from ..variants import Feature, LatentSpec, WanVariant
from .load import ClipVisionHandle, VaeHandle
from .vae import encode_stream

MAX_COVER = 16
"""How many times the clip's area a picture scaled to cover it may have."""
MAX_VALUE = 16.0
"""Beyond 1 is light (HDR pictures); beyond this is another scale."""
START_NODES = {
    Feature.CONTROL: "Wan Core Fun Control",
    Feature.CAMERA: "Wan Core Camera Control",
    Feature.VACE: "Wan Core VACE (the first frame of control_video, with a mask of 0 there)",
}
"""Where models that take more than a picture take it."""


@torch.no_grad()
def encode_image(clip: ClipVisionHandle, images_BHWC: Tensor, ports: Ports, native_crop: bool | None = None) -> Tensor:
    """Pictures -> penultimate CLIP tokens ``[B, tokens, dim]``, float32 on the CPU.

    Args:
        images_BHWC: 0..1.
        native_crop: None: the official preprocessing (squeezed to a square, no antialiasing). True or False: as native
            ComfyUI prepares the picture, with or without a centre crop.
    """
    cfg = clip.config
    check_pictures(images_BHWC, "image")
    images = images_BHWC[..., :3].float().to(clip.weights.device)
    if native_crop is None:
        pixels = preprocess(images.movedim(-1, 1) * 2 - 1, cfg.image_size)
    else:
        pixels = preprocess_native(images, cfg.image_size, native_crop)
    work = fixed_work(4 * images.shape[0] * cfg.num_tokens * cfg.dim * 16)
    with Stay([Stop(weights=clip.weights)], work, ports) as stay:
        tokens = stay.walk_once(pixels)
    check_finite(tokens, "the CLIP vision encoding", clip.weights.name, "Load it with precision fp32.")
    return tokens.float().cpu()


def known_latent(vae: VaeHandle, grid: Grid, first: Tensor | None, last: Tensor | None, ports: Ports) -> Tensor:
    """The clip with its known pictures, encoded frame by frame: ``[1, C, T, h, w]``, not normalised.

    Args:
        first, last: pictures ``[n, H, W, 3]`` in 0..1, of the clip's size; either may be None, not both.
    """
    runs = known_video(grid, *(None if x is None else x.movedim(-1, 0).float() * 2 - 1 for x in (first, last)))
    return torch.cat(list(encode_stream(vae, runs, (1, grid.frames, grid.height, grid.width), ports)), dim=2)


def known_pictures(grid: Grid, first: Tensor | None, last: Tensor | None) -> Tensor:
    """The same clip as pictures ``[F, H, W, 3]`` in 0..1, mid grey where nothing is known: for a native VAE."""
    clip = torch.full((grid.frames, grid.height, grid.width, 3), 0.5)
    if first is not None:
        clip[: len(first)] = first[: grid.frames]
    if last is not None:
        clip[-len(last) :] = last[-grid.frames :]
    return clip


def takes_pictures(variant: WanVariant, spec: LatentSpec) -> tuple[bool, bool]:
    """Whether a model takes start and end images beside the noise, and whether as clean frames of the latent.

    Args:
        spec: the latent space that the pictures are to be encoded in.

    Raises:
        MismatchError: the VAE is of another space, or the model takes no pictures, or together with something else.
    """
    features = variant.features
    if spec is not variant.latent:
        raise MismatchError(
            f"{variant.title} takes the {variant.latent.vae}; connected is the {spec.vae}. Use the former."
        )
    for feature, node in START_NODES.items():
        if feature in features:
            raise MismatchError(
                f"{variant.title} takes its start image from {node}, not from Wan Core Image to Video. Use that node "
                "for it."
            )
    beside, clean = Feature.CONCAT in features, Feature.FIRST_FRAME in features
    if not beside and not clean:
        raise MismatchError(
            f"{variant.title} takes no start or end image. Choose an image-to-video model, or use Wan Core Empty "
            "Latent."
        )
    return beside, clean


def fit(images_BHWC: Tensor, grid: Grid, what: str, notify: Notify) -> Tensor:
    """Scale pictures to cover the clip's size and cut the centre; a cut is said. Values in 0..1."""
    check_pictures(images_BHWC, what)
    _, height, width, _ = images_BHWC.shape
    if (height, width) == (grid.height, grid.width):
        return images_BHWC[..., :3]
    scale = max(grid.height / height, grid.width / width)
    size = (max(grid.height, round(height * scale)), max(grid.width, round(width * scale)))
    if size[0] * size[1] > MAX_COVER * grid.height * grid.width:
        raise InputError(
            f"{what} of {width}x{height} is shaped too unlike {grid.width}x{grid.height}: to cover it, it would be "
            f"{size[1]}x{size[0]} large and nearly all of it cut off. Crop the picture first."
        )
    images = images_BHWC[..., :3].movedim(-1, 1).float()
    images = F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=scale < 1).clamp(0, 1)
    top, left = (size[0] - grid.height) // 2, (size[1] - grid.width) // 2
    if top or left:
        notify(
            f"{what} {width}x{height} was scaled to {size[1]}x{size[0]} and its centre cut to "
            f"{grid.width}x{grid.height}."
        )
    return images[:, :, top : top + grid.height, left : left + grid.width].movedim(1, -1)


def check_pictures(images_BHWC: Tensor, what: str) -> None:
    """Refuse pictures that cannot be encoded. A fourth channel (alpha) is allowed, and not looked at."""
    check_tensor(images_BHWC, what, "count, height, width, channels")
    if images_BHWC.shape[-1] < 3:
        raise InputError(f"{what} has {images_BHWC.shape[-1]} channels; pictures have 3 (RGB). Convert it to RGB.")
    low, high = (value.item() for value in images_BHWC[..., :3].aminmax())
    if max(-low, high) > MAX_VALUE:
        raise InputError(
            f"{what} has values from {low:g} to {high:g}; pictures are 0 to 1. Divide by 255 what counts to 255."
        )
