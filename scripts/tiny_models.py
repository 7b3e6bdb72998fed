"""Writes a ComfyUI models tree of SEEDED RANDOM tiny checkpoints in the official file layouts.

    python3 scripts/tiny_models.py OUT_DIR
    python3 scripts/tiny_models.py OUT_DIR --only t2v vae

They are for trying the path from a prompt to a video, and for tests; nothing is trained, so their pictures are
patterns. Every parameter has a random value that matters (none is zero), and the widths are such that native ComfyUI
loads the diffusion models and the VAE 2.1 as well: it takes heads of 128, text of 4096 and CLIP tokens of 1280. It
fixes the sizes of umT5, CLIP vision and the VAE 2.2, so those load here only.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wan_core.configs import ClipVisionConfig, DitConfig, Umt5Config, VaeConfig
from wan_core.models.clip_vision import ClipVision
from wan_core.models.umt5 import Umt5Encoder
from wan_core.models.vace import build_dit
from wan_core.models.vae import WanVAE
from wan_core.weights.keymaps import to_naming

NOTE = "seeded random weights for tests and demonstrations; not trained"
VOCAB = 400

UMT5 = Umt5Config(vocab=VOCAB, dim=4096, dim_attn=64, dim_ffn=64, num_heads=4, num_layers=2)
CLIP_VISION = ClipVisionConfig(dim=1280, mlp_dim=64, out_dim=64, num_heads=16, num_layers=2)
VAE_21 = VaeConfig(dim=4, dec_dim=4)
VAE_22 = VaeConfig(dim=4, dec_dim=4, z_dim=48, patch=2, shortcuts=True)
DIT = DitConfig(dim=256, ffn_dim=256, num_heads=2, num_layers=2, in_dim=16, out_dim=16)
DIT_CONCAT = replace(DIT, in_dim=36)
DIT_VACE = replace(DIT, num_layers=4, vace_layers=(0, 2), vace_in_dim=96)

PROMPTS = """\
A cat walks through the grass, realistic style.
Two anthropomorphic cats in comfy boxing gear and bright gloves fight intensely on a spotlighted stage.
A white cat with sunglasses sits on a surfboard in summer beach vacation style.
A dog runs along the beach at sunset, slow motion, cinematic lighting.
A red kite flies over the sea while waves roll onto the shore.
A woman in a long coat walks down a rainy street at night under neon signs.
An old man plays the violin beside a window, warm light, shallow depth of field.
The camera slowly pans over a mountain valley covered in morning fog.
Close-up of a coffee cup on a wooden table, steam rising, soft focus.
A futuristic city with flying cars, wide shot, highly detailed, 4K.
A sailing boat crosses a calm lake; clouds drift across the blue sky.
Children laugh and throw snowballs in a park; documentary footage, handheld camera.
A chef chops vegetables quickly in a busy kitchen.
A field of sunflowers sways in the wind, drone shot, golden hour.
An astronaut walks on the moon, the earth in the background.
Overexposed, static, blurred details, subtitles, painting, still picture, worst quality, low quality, extra fingers.
"""
"""What the tokenizer is trained on; everything else falls back to bytes."""


@dataclass(frozen=True, kw_only=True)
class TinyFile:
    """Where a file goes, what it holds, and what its shapes cannot tell."""

    path: str
    tensors: Callable[[torch.Generator], dict[str, Tensor]]
    config: dict[str, int] | None = None


def _dit(config: DitConfig) -> Callable[[torch.Generator], dict[str, Tensor]]:
    return lambda generator: randomised(build_dit, config, generator)


def _vace_module(generator: torch.Generator) -> dict[str, Tensor]:
    """VACE blocks alone, for the T2V files."""
    whole = randomised(build_dit, replace(DIT, vace_layers=(0, 1), vace_in_dim=96), generator)
    return {name: tensor for name, tensor in whole.items() if name.startswith("vace_")}


def _vae(config: VaeConfig) -> Callable[[torch.Generator], dict[str, Tensor]]:
    return lambda generator: randomised(WanVAE, config, generator)


def _umt5(generator: torch.Generator) -> dict[str, Tensor]:
    state = to_naming(randomised(Umt5Encoder, UMT5, generator), "umt5", "hf")
    state = {name: tensor.half() for name, tensor in state.items()}
    return state | {"spiece_model": torch.frombuffer(bytearray(sentencepiece_model()), dtype=torch.uint8)}


def _clip_vision(generator: torch.Generator) -> dict[str, Tensor]:
    # A file has one block more than the penultimate output needs, a last norm and a projection.
    width = CLIP_VISION.dim
    state = randomised(ClipVision, replace(CLIP_VISION, num_layers=CLIP_VISION.num_layers + 1), generator)
    shapes = {"post_norm.weight": (width,), "post_norm.bias": (width,), "head": (width, CLIP_VISION.out_dim)}
    state |= {name: random_values(name, torch.Size(shape), generator) for name, shape in shapes.items()}
    return {name: tensor.half() for name, tensor in to_naming(state, "clip_vision", "hf").items()}


def _lora(generator: torch.Generator) -> dict[str, Tensor]:
    """In PEFT's naming, on the queries and the feed-forward of every block."""
    tensors = {}
    for block in range(DIT.num_layers):
        for layer, out, into in (("self_attn.q", DIT.dim, DIT.dim), ("ffn.0", DIT.ffn_dim, DIT.dim)):
            name = f"diffusion_model.blocks.{block}.{layer}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(4, into, generator=generator) / 8
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, 4, generator=generator) / 8
    return tensors


def _model_file(name: str, config: DitConfig) -> TinyFile:
    return TinyFile(path=f"diffusion_models/wan_core_tiny_{name}_fp32.safetensors", tensors=_dit(config))


FILES: dict[str, TinyFile] = {
    "t2v": _model_file("t2v", DIT),
    "i2v": _model_file("i2v", replace(DIT_CONCAT, img_dim=CLIP_VISION.dim)),
    "flf2v": _model_file("flf2v", replace(DIT_CONCAT, img_dim=CLIP_VISION.dim, img_tokens=2 * CLIP_VISION.num_tokens)),
    "t2v_high": _model_file("t2v_high_noise", DIT),
    "t2v_low": _model_file("t2v_low_noise", DIT),
    "i2v_high": _model_file("i2v_high_noise", DIT_CONCAT),
    "i2v_low": _model_file("i2v_low_noise", DIT_CONCAT),
    "ti2v": _model_file("ti2v_5b", replace(DIT, in_dim=48, out_dim=48)),
    "fun_inp": _model_file("fun_inp", replace(DIT_CONCAT, img_dim=CLIP_VISION.dim)),
    "fun_control": _model_file("fun_control_v1.1", replace(DIT, in_dim=48, img_dim=CLIP_VISION.dim, ref_dim=16)),
    "fun_camera": _model_file("fun_camera", replace(DIT, in_dim=32, img_dim=CLIP_VISION.dim, camera_dim=1536)),
    "fun_control_high": _model_file("fun_control_high_noise", replace(DIT, in_dim=52, ref_dim=16)),
    "fun_control_low": _model_file("fun_control_low_noise", replace(DIT, in_dim=52, ref_dim=16)),
    "fun_camera_high": _model_file("fun_camera_high_noise", replace(DIT_CONCAT, camera_dim=1536)),
    "fun_camera_low": _model_file("fun_camera_low_noise", replace(DIT_CONCAT, camera_dim=1536)),
    "fun_inp_5b": _model_file("fun_inp_5b", replace(DIT, in_dim=100, out_dim=48)),
    "fun_control_5b": _model_file("fun_control_5b", replace(DIT, in_dim=148, out_dim=48, ref_dim=48)),
    "vace": _model_file("vace", DIT_VACE),
    "vace_high": _model_file("vace_high_noise", DIT_VACE),
    "vace_low": _model_file("vace_low_noise", DIT_VACE),
    "vace_module": TinyFile(path="diffusion_models/wan_core_tiny_vace_module_fp32.safetensors", tensors=_vace_module),
    "lora": TinyFile(path="loras/wan_core_tiny_lora.safetensors", tensors=_lora),
    "text_encoder": TinyFile(path="text_encoders/wan_core_tiny_umt5.safetensors", tensors=_umt5),
    "vae": TinyFile(path="vae/wan_core_tiny_vae_2.1.safetensors", tensors=_vae(VAE_21)),
    "vae_22": TinyFile(path="vae/wan_core_tiny_vae_2.2.safetensors", tensors=_vae(VAE_22)),
    "clip_vision": TinyFile(
        path="clip_vision/wan_core_tiny_clip_vision.safetensors",
        tensors=_clip_vision,
        config={"num_heads": CLIP_VISION.num_heads},
    ),
}


def make(out_dir: Path, only: Iterable[str] | None = None) -> dict[str, Path]:
    """Write the files (all, or those of :data:`FILES` named in ``only``); returns where each is.

    The same bytes each time: a file's values depend on its own name only.
    """
    made = {}
    for name in FILES if only is None else only:
        file = FILES[name]
        path = Path(out_dir) / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        # One entry only: the library writes several in random order, and the bytes would differ from run to run.
        metadata = {"note": NOTE} if file.config is None else {"config": json.dumps(file.config | {"note": NOTE})}
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        save_file({k: v.contiguous() for k, v in file.tensors(generator).items()}, part, metadata)
        part.replace(path)
        made[name] = path
    return made


def randomised(build: Callable[..., nn.Module], config, generator: torch.Generator) -> dict[str, Tensor]:
    """A state dict of seeded random values under official names."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    return {name: random_values(name, shape, generator) for name, shape in shapes.items()}


def random_values(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Values such that a signal keeps its size through a network and every parameter changes the output."""
    values = torch.randn(shape, generator=generator)
    last = name.rsplit(".", 1)[-1]
    if last == "gamma" or (last == "weight" and len(shape) == 1):
        return 1 + 0.1 * values
    if last == "bias":
        return 0.05 * values
    if last in ("modulation", "emb_pos", "pos_embedding", "cls_embedding"):
        return 0.3 * values
    if name.endswith(("token_embedding.weight", "pos_embedding.embedding.weight")):
        return values
    fan_in = shape[0] if name == "head" else shape[1:].numel()
    return values * fan_in**-0.5


def sentencepiece_model(vocab: int = VOCAB, prompts: str = PROMPTS) -> bytes:
    """A serialized sentencepiece model with umT5's special ids (pad 0, end 1, unknown 2) and byte fallback."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prompts.splitlines()),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path, help="a ComfyUI models folder; sub-folders are made")
    parser.add_argument("--only", nargs="+", choices=list(FILES), metavar="NAME", help=f"of {', '.join(FILES)}")
    args = parser.parse_args()
    for name, path in make(args.out_dir, args.only).items():
        print(f"{name:13} {path.stat().st_size / 1e6:6.1f} MB  {path}")


if __name__ == "__main__":
    main()
