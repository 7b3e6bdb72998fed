"""How each kind of golden file is judged: what wan_core computes from its inputs, and how close it has to be."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_core.conditioning.known_frames import concat_channels, known_mask, known_video
from wan_core.conditioning.vace import VaceContext, pack
from wan_core.configs import ClipVisionConfig, Umt5Config
from wan_core.grid import Grid, latent_frames
from wan_core.models.clip_vision import ClipVision, preprocess
from wan_core.models.dit import Inputs, VaceControl
from wan_core.models.rope import rope_angles, rope_table, rotate, sinusoid
from wan_core.models.umt5 import Umt5Encoder
from wan_core.models.vae import WanVAE, regroup
from wan_core.models.vae_parts import Box, ConvCache
from wan_core.stages.vace import make_context
from wan_core.variants import LatentSpec
from wan_core.weights.checkpoint import Checkpoint
from wan_core.weights.header import TensorInfo
from wan_core.weights.lora import fit, read_lora
from wan_core.weights.lora_math import merged

from .parity_golden import Expected, Golden, Results, dit, latent_spec, vae
from .parity_sampling import judge_pipeline, judge_schedulers


def judge_dit(golden: Golden) -> Results:
    model = dit(golden, golden.config)
    samples = golden.series("in.x")
    beside = golden.series("in.y")
    if beside:
        samples = [torch.cat((x, y)) for x, y in zip(samples, beside, strict=True)]
    rows = model.config.text_len
    text = torch.stack([F.pad(c, (0, 0, 0, rows - len(c))) for c in golden.series("in.context")])
    clip = golden.optional("in.clip_fea")
    if clip is not None:
        # Start and end image follow each other as a batch in the file, as one sequence in the model.
        clip = clip.reshape(len(samples), -1, clip.shape[-1])
    outputs = model(samples, golden.tensor("in.t"), text, clip)
    single = "out" in golden.names
    return {"out" if single else f"out.{i}": Expected(out, 1e-4) for i, out in enumerate(outputs)}


def judge_fun(golden: Golden) -> Results:
    """Fun models: the conditions of the file are already beside the noise, the text padded."""
    out = dit(golden, golden.config)(
        golden.tensor("in.x"),
        golden.tensor("in.t"),
        golden.tensor("in.context512"),
        reference=golden.optional("in.reference_latent"),
        camera=golden.optional("in.camera"),
    )
    return {"out.0": Expected(out, 1e-4)}


def judge_vace(golden: Golden) -> Results:
    model = dit(golden, golden.config)
    (x,), (context,) = golden.series("in.x"), golden.series("in.vace_context")
    control = VaceControl(context=context[None], strength=float(golden.tensor("in.vace_context_scale")))
    text = golden.tensor("in.context.0")[None]
    inputs = Inputs(x=x[None], t=golden.tensor("in.t"), text=text, vace=(control,))
    return {"out.0": Expected(model.together([inputs])[0][0], 1e-4)}


def judge_vae(golden: Golden) -> Results:
    model, spec = vae(golden, golden.config), latent_spec(golden)
    results: Results = {}
    for i, video in enumerate(golden.series("in.enc_video")):
        results[f"out.enc_latent.{i}"] = Expected(spec.normalise(model.encode(video)), 1e-5)
        results[f"out.enc_moments.{i}"] = Expected(_moments(model, video), 1e-5)
    for i, latent in enumerate(golden.series("in.dec_latent")):
        results[f"out.dec_video.{i}"] = Expected(model.decode(spec.denormalise(latent)), 1e-4)
    return results


def _moments(model: WanVAE, video: Tensor) -> Tensor:
    """What the encoder gives before the variance is dropped."""
    cache: ConvCache = {}
    box = Box.whole(*(side // model.config.stride_hw for side in video.shape[-2:]))
    features = (model.encode_part(run, cache, box) for run in regroup([video], 1, model.config.stride_t))
    return torch.cat([model.conv1(model.encoder.joined(one, cache)) for one in features], dim=2)


def judge_umt5(golden: Golden) -> Results:
    config = golden.config
    numbers = ("vocab", "dim", "dim_attn", "dim_ffn", "num_heads", "num_layers", "num_buckets", "eps")
    cfg = Umt5Config(**{name: config[name] for name in numbers}, max_distance=config["max_dist"])
    model = golden.into(Umt5Encoder(cfg))
    ids, mask = golden.tensor("in.ids"), golden.tensor("in.mask")
    hidden = model(ids, mask)
    valid = mask.bool()[..., None]
    padded = F.pad(hidden * valid, (0, 0, 0, 512 - hidden.shape[1]))
    return {"out.hidden": Expected(hidden, 1e-4, valid), "out.trimmed_padded512": Expected(padded, 1e-4)}


def judge_clip(golden: Golden) -> Results:
    config = golden.config
    numbers = ("image_size", "patch_size", "dim", "out_dim", "num_heads", "num_layers")
    cfg = ClipVisionConfig(
        **{name: config[name] for name in numbers},
        mlp_dim=config["dim"] * config["mlp_ratio"],
        eps=config.get("norm_eps", 1e-5),
    )
    model = ClipVision(cfg).eval()
    weights = golden.weights("sd.visual.")
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    images = golden.series("in.image")
    pixels = torch.cat([preprocess(image[None], cfg.image_size) for image in images])
    results = {"out.features": Expected(model(pixels), 1e-5)}
    if "out.all_layers" in golden.names:
        # The output of every layer is that of a model with one more, unused, layer at the end.
        longer = ClipVisionConfig(**{**vars(cfg), "num_layers": cfg.num_layers + 1})
        whole = ClipVision(longer).eval()
        whole.load_state_dict({name: weights[name] for name in whole.state_dict()})
        results["out.all_layers"] = Expected(whole(pixels), 1e-5)
    return results


def judge_rope(golden: Golden) -> Results:
    results: Results = {}
    rows = golden.tensor("in.rows")
    t = golden.tensor("in.sinusoid_t")
    for name in golden.expected:
        _, what, *rest = name.split(".")
        if what in ("freqs_angle_cos", "freqs_angle_sin"):
            angles = rope_angles(rows[:, None].expand(-1, 3), int(rest[0]))
            results[name] = Expected(angles.cos() if what.endswith("cos") else angles.sin(), 1e-6)
        elif what == "sinusoid":
            results[name] = Expected(sinusoid(t, int(rest[0])), 1e-6)
        elif what == "x":
            x = golden.tensor(name.replace("out.", "in."))
            grid = tuple(golden.tensor(name.replace("out.x", "in.grid")).tolist())
            cos, sin = rope_table(grid, int(rest[0]))
            turned = rotate(x[:, : len(cos)], cos, sin)
            results[name] = Expected(torch.cat((turned, x[:, len(cos) :]), dim=1), 1e-6)
    return results


def resize(images_B3HW: Tensor, height: int, width: int) -> Tensor:
    """As the official code resizes a start image; the nodes scale to cover and cut the centre (``stages.image``)."""
    return F.interpolate(images_B3HW, size=(height, width), mode="bicubic", align_corners=False)


def judge_conditioning(golden: Golden) -> Results:
    model, spec = vae(golden, golden.config["vae"], "sd_vae."), latent_spec(golden)
    height, width = golden.config["target_hw"]
    stride_t, stride_h, stride_w = golden.config["vae_stride"]
    frames = golden.config["frames"]
    grid = Grid(
        frames=frames,
        height=height,
        width=width,
        latent_frames=latent_frames(frames, stride_t),
        latent_height=height // stride_h,
        latent_width=width // stride_w,
    )
    first, last = (resize(golden.tensor(name)[None], height, width).movedim(0, 1) for name in ("in.first", "in.last"))

    def channels(end: Tensor | None) -> Tensor:
        latent = torch.cat(list(model.encode_stream(known_video(grid, first, end))), dim=2)
        mask = known_mask(grid, 1, 0 if end is None else 1)
        return concat_channels(latent, mask, spec, torch.zeros(1, spec.channels, *grid.latent_shape))[0]

    return {
        "out.i2v_y": Expected(channels(None), 1e-5),
        "out.flf2v_y": Expected(channels(last), 1e-5),
        **{f"out.vace_context_{name}": Expected(x, 1e-5) for name, x in vace_contexts(golden, model, spec).items()},
    }


def vace_contexts(golden: Golden, model: WanVAE, spec: LatentSpec) -> dict[str, Tensor]:
    """Contexts of a clip: by itself, with a soft mask, with reference pictures."""

    def pictures(name: str) -> Tensor:
        return golden.tensor(name).movedim(0, -1) / 2 + 0.5

    clip, references = pictures("in.vace_frames"), [pictures("in.vace_ref.0")]
    masks = {"no_ref": "in.vace_mask", "soft_mask": "in.vace_soft_mask", "with_ref": "in.vace_mask"}
    frames, height, width, _ = clip.shape
    grid = Grid(
        frames=frames, height=height, width=width, latent_frames=latent_frames(frames, spec.stride_t),
        latent_height=height // spec.stride_hw, latent_width=width // spec.stride_hw,
    )  # fmt: skip

    def encode(runs: Iterator[Tensor], _: int) -> Tensor:
        return torch.cat(list(model.encode_stream(run.movedim(-1, 0)[None] * 2 - 1 for run in runs)), dim=2)

    made = {}
    for name, mask in masks.items():
        context = make_context(
            encode, grid, spec, video=clip, masks=golden.tensor(mask)[0],
            references=torch.cat(references) if name == "with_ref" else None, notify=print,
        )  # fmt: skip
        like = torch.zeros(1, spec.channels, *context.latent.shape[2:])
        made[name] = pack(VaceContext(latent=context.latent, mask=context.mask), spec, like)[0]
    return made


def judge_lora(golden: Golden) -> Results:
    """Each dialect as a file of its own, merged into the base weights."""
    base = golden.weights("base.")
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    results: Results = {}
    for dialect, strength in golden.config["strength"].items():
        tensors = golden.weights(f"lora.{dialect}.")
        header = {n: TensorInfo(dtype=t.dtype, shape=tuple(t.shape), nbytes=t.nbytes) for n, t in tensors.items()}
        file = read_lora(Checkpoint(Path(dialect), header, {}, tensors.__getitem__, tensors.clear))
        for target, worn in fit(file, shapes, None, "the golden base").worn(strength).items():
            results[f"out.{dialect}.{target}"] = Expected(merged(base[target], worn), 1e-5)
    return results


JUDGES: dict[str, Callable[[Golden], Results]] = {
    "dit base": judge_dit,
    "dit camera": judge_fun,
    "dit ref_conv": judge_fun,
    "dit vace": judge_vace,
    "vae": judge_vae,
    "umt5": judge_umt5,
    "clip": judge_clip,
    "rope": judge_rope,
    "conditioning": judge_conditioning,
    "schedulers": judge_schedulers,
    "pipeline": judge_pipeline,
    "lora": judge_lora,
}
