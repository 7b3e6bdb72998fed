"""LoRA files made right and wrong, and what must be said of each: for tests and ``benchmarks/lora_report.py``."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from wan_core.errors import MismatchError, ModelFileError
from wan_core.weights import lora

Q = "blocks.0.self_attn.q"
NEXT, WIDE = "diffusion_model.blocks.1.self_attn.q", "diffusion_model.blocks.1.ffn.0"


def pair(module: str, out: int = 48, into: int = 48, ends=(".lora_B.weight", ".lora_A.weight"), rank: int = 2):
    return {module + ends[0]: torch.randn(out, rank), module + ends[1]: torch.randn(rank, into)}


def kohya(module: str, **more):
    tensors = pair(module, ends=(".lora_up.weight", ".lora_down.weight"), **more)
    return {**tensors, f"{module}.alpha": torch.tensor(1.0)}


def cast(tensors, dtype):
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def only(tensors, ending: str):
    return {name: tensor for name, tensor in tensors.items() if name.endswith(ending)}


OURS = pair(f"diffusion_model.{Q}")
CLIP = {
    **pair("diffusion_model.blocks.0.cross_attn.k_img"), **pair("diffusion_model.blocks.2.cross_attn.v_img"),
    "diffusion_model.blocks.0.cross_attn.norm_k_img.diff": torch.randn(48),
    "diffusion_model.img_emb.proj.1.diff_b": torch.randn(32),
}  # fmt: skip
HIGH, LOW = pair("transformer.blocks.0.attn1.to_q"), pair("transformer_2.blocks.0.attn1.to_q")
LOHA = {f"hada_w{n}_{part}": (48, 2) if part == "a" else (2, 48) for n in "12" for part in "ab"}
SDXL = {
    **kohya("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k"),
    **kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1"),
}
FLUX = {
    **pair("transformer.single_transformer_blocks.0.attn.to_q"), **pair("transformer.transformer_blocks.0.attn.to_k"),
}  # fmt: skip
SMALL, IMAGE = "t2v-1.3b", "i2v-14b-480p"
INT = "it is stored as torch.int8"
NO_UP, NO_DOWN = "its upper half (lora_up) is missing", "its lower half (lora_down) is missing"
REST, TWICE = "the rest of it is missing", "another name means the same tensor"
SHAPE, RESIZED = lora.OTHER_SHAPE, "it changes the size of the tensor, which is not supported"


def named(module: str, parts) -> dict[str, torch.Tensor]:
    return {f"{module}.{role}": torch.randn(shape) for role, shape in parts.items()}


@dataclass
class Row:
    """A file, and what must be said of it: how many tensors apply and how many do not by reason, or the refusal.

    ``words``: what else the message holds. ``damage`` is done to the bytes of the file, ``file`` is its name. ``model``
    and ``side`` (of a pair; ``low`` on a single model: as its low-noise LoRA) say what it is put on.
    """

    id: str
    tensors: dict
    applied: int = 0
    ignored: dict = field(default_factory=dict)
    error: type | None = None
    words: tuple = ()
    model: str = SMALL
    side: str | None = None
    file: str = "a.safetensors"
    damage: Callable[[bytes], bytes] | None = None


def taken(id, tensors, applied, ignored=None, **more):
    return Row(id, tensors, applied, ignored or {}, **more)


def refused(id, tensors, error, *words, **more):
    return Row(id, tensors, error=error, words=words, **more)


RIGHT = [
    taken("kohya", kohya("lora_unet_blocks_0_self_attn_q"), 3),
    taken("fun", kohya("lora_unet__blocks_2_ffn_0", out=64), 3),
    taken("peft", OURS, 2),
    taken("peft with adapter name",
          pair(f"base_model.model.{Q}", ends=(".lora_B.default.weight", ".lora_A.default.weight")), 2),
    taken("diffusers", HIGH, 2),
    taken("diffsynth", pair("pipe.dit.blocks.1.ffn.2", into=64), 2),
    taken("vace blocks", {**OURS, **pair("diffusion_model.vace_blocks.1.self_attn.q"),
          "diffusion_model.vace_blocks.0.after_proj.diff_b": torch.randn(48),
          "diffusion_model.vace_blocks.1.diff_m": torch.randn(1, 6, 48)}, 6, model="vace-1.3b"),
    taken("vace blocks, diffusers", pair("transformer.vace_blocks.0.proj_in"), 2, model="vace-1.3b"),
    taken("no prefix", pair("head.head", out=64), 2),
    taken("lycoris loha", named("lycoris_blocks_0_self_attn_q", LOHA), 4),
    taken("dora", {**OURS, f"diffusion_model.{Q}.dora_scale": torch.randn(48, 1)}, 3),
    taken("magnitude", {**OURS, f"diffusion_model.{Q}.lora_magnitude_vector": torch.randn(48)}, 3),
    taken("bias of up", {**OURS, f"diffusion_model.{Q}.lora_B.bias": torch.randn(48)}, 3),
    taken("lokr", named("lora_unet_blocks_0_self_attn_q", {
        "lokr_w1": (4, 4), "lokr_w2_a": (12, 2), "lokr_w2_b": (2, 12)}), 3),
    taken("lokr with a core on the convolution", named("lora_unet_patch_embedding", {
        "lokr_w1": (4, 4), "lokr_w2_a": (2, 12), "lokr_w2_b": (2, 4), "lokr_t2": (2, 2, 1, 2, 2)}), 4),
    taken("convolution", named("diffusion_model.patch_embedding", {
        "lora_B.weight": (48, 2, 1, 1, 1), "lora_A.weight": (2, 16, 1, 2, 2)}), 2),
    taken("differences of all kinds", {
        "diffusion_model.blocks.0.norm3.diff": torch.randn(48),
        "diffusion_model.blocks.0.norm3.diff_b": torch.randn(48),
        "diffusion_model.blocks.0.diff_m": torch.randn(1, 6, 48), "diffusion_model.head.diff_m": torch.randn(1, 2, 48),
        "diffusion_model.blocks.0.self_attn.norm_q.w_norm": torch.randn(48),
        "diffusion_model.time_projection.1.set_weight": torch.randn(288, 48)}, 6),
    taken("two dialects", {
        **kohya("lora_unet_blocks_0_self_attn_q"), **pair("diffusion_model.blocks.1.ffn.2", into=64)}, 5),
    taken("one module in two dialects", {
        **only(OURS, "B.weight"), **only(kohya("lora_unet_blocks_0_self_attn_q"), "down.weight")}, 2),
    taken("bf16", cast(OURS, torch.bfloat16), 2),
    taken("fp16", cast(OURS, torch.float16), 2),
    taken("fp8", cast(OURS, torch.float8_e4m3fn), 2),
    taken("alpha as a whole number", {**OURS, f"diffusion_model.{Q}.alpha": torch.tensor(4)}, 3),
    taken("clip keys on their model", CLIP, 6, model=IMAGE),
    taken("clip keys elsewhere", {**OURS, **CLIP}, 2, {lora.NO_CLIP: 6}),
    taken("no side on high", OURS, 2, model="t2v-a14b", side="high"),
    taken("no side on low", OURS, 2, model="t2v-a14b", side="low"),
    taken("both sides on a single model", {**HIGH, **LOW}, 2, {lora.OTHER_SIDE: 2}),
    taken("both sides on high", {**HIGH, **LOW}, 2, {lora.OTHER_SIDE: 2}, model="t2v-a14b", side="high"),
    taken("both sides on low", {**HIGH, **LOW}, 2, {lora.OTHER_SIDE: 2}, model="t2v-a14b", side="low"),
    taken("low alone on low", LOW, 2, model="t2v-a14b", side="low"),
]  # fmt: skip
WRONG = [
    taken("upper halves gone", {**OURS, **only(pair(NEXT), "A.weight")}, 2, {NO_UP: 1}),
    taken("lower halves gone", {**OURS, **only(pair(NEXT), "B.weight")}, 2, {NO_DOWN: 1}),
    taken("alpha alone", {**OURS, f"{WIDE}.alpha": torch.tensor(1.0)}, 2, {REST: 1}),
    taken("part of a loha", {**OURS, "lora_unet_blocks_1_self_attn_q.hada_w1_a": torch.randn(48, 2)}, 2, {REST: 1}),
    taken("half a lokr", {
        **OURS, **named("lora_unet_blocks_1_self_attn_q", {"lokr_w1": (4, 4), "lokr_w2_a": (12, 2)})}, 2, {REST: 2}),
    taken("whole numbers", {**OURS, **cast(pair(NEXT), torch.int8)}, 2, {INT: 2}),
    taken("vace on t2v", {**OURS, **pair("diffusion_model.vace_blocks.0.ffn.0", out=64)}, 2, {lora.NO_VACE: 2}),
    taken("blocks beyond the model", {**OURS, **pair("diffusion_model.blocks.3.self_attn.q")}, 2, {lora.NOT_THERE: 2}),
    taken("other names between", {**OURS, "logit_scale": torch.ones(1)}, 2, {lora.NOT_WAN: 1}),
    taken("the same under two names", {**OURS, **kohya("lora_unet_blocks_0_self_attn_q")}, 3, {TWICE: 2}),
    taken("the same in two namings", {**HIGH, **pair(f"transformer.{Q}")}, 2, {TWICE: 2}),
    taken("36 channels on 16", {**OURS, **named("diffusion_model.patch_embedding", {
        "lora_B.weight": (48, 2, 1, 1, 1), "lora_A.weight": (2, 36, 1, 2, 2)})}, 2, {lora.OTHER_INPUTS: 2}),
    taken("16 channels on 36", {**OURS, "diffusion_model.patch_embedding.diff": torch.randn(48, 16, 1, 2, 2)}, 2,
          {lora.OTHER_INPUTS: 1}, model="i2v-a14b", side="high"),
    taken("reshaped", {**OURS, "diffusion_model.patch_embedding.reshape_weight": torch.tensor([48, 36, 1, 2, 2]),
                       **named("diffusion_model.patch_embedding", {
                           "lora_up.weight": (48, 2), "lora_down.weight": (2, 144)})},
          2, {RESIZED: 3}),
    taken("one tensor of another width", {**OURS, **pair(WIDE, out=72)}, 2, {SHAPE: 2}),
    taken("transposed", {**OURS, **pair(WIDE, out=48, into=64)}, 2, {SHAPE: 2}),
    taken("a transposed difference", {**OURS, f"{WIDE}.diff": torch.randn(48, 64)}, 2,
          {SHAPE: 1}),
    taken("ranks that differ", {**OURS, f"{WIDE}.lora_up.weight": torch.randn(64, 3),
                                f"{WIDE}.lora_down.weight": torch.randn(2, 48)}, 2, {SHAPE: 2}),
    taken("halves without dimensions", {**OURS, f"{WIDE}.lora_up.weight": torch.tensor(1.0),
                                        f"{WIDE}.lora_down.weight": torch.tensor(1.0)}, 2, {SHAPE: 2}),
    taken("alpha of two values", {**OURS, **pair(NEXT),
                                  f"{NEXT}.alpha": torch.ones(2)}, 2, {SHAPE: 3}),
    taken("dora of another length", {**OURS, **pair(NEXT),
                                     f"{NEXT}.dora_scale": torch.ones(47, 1)}, 2, {SHAPE: 3}),
    refused("only upper halves", only(OURS, "B.weight"), MismatchError, "none of its 1 tensors", NO_DOWN),
    refused("sdxl", SDXL, ModelFileError, "SDXL", "not of a Wan transformer", "Choose a Wan LoRA"),
    refused("flux", FLUX, ModelFileError, "Flux", "Choose a Wan LoRA"),
    refused("flux with its last layer", {**FLUX, **pair("transformer.proj_out", out=64, into=3072)}, MismatchError,
            "none of its 6 tensors", lora.NOT_WAN),
    refused("hunyuan", pair("diffusion_model.double_blocks.0.img_attn_qkv"), ModelFileError, "Hunyuan"),
    refused("sd3", pair("diffusion_model.joint_blocks.0.x_block.attn.qkv"), ModelFileError, "Stable Diffusion 3"),
    refused("ltx", pair("diffusion_model.transformer_blocks.0.attn1.to_q"), ModelFileError, "LTX"),
    refused("text encoder", pair("text_encoder.encoder.block.0.layer.0.SelfAttention.q"), ModelFileError,
            "text encoder"),
    refused("vace", pair("diffusion_model.vace_blocks.0.self_attn.q"), MismatchError, f"2 {lora.NO_VACE}"),
    refused("animate", pair("diffusion_model.face_adapter.fuser_blocks.0.linear1_q"), ModelFileError, "Animate"),
    refused("a model", {f"{Q}.weight": torch.randn(48, 48)}, ModelFileError, "holds no LoRA", f"{Q}.weight"),
    refused("no names at all", {"x": torch.randn(2)}, ModelFileError, "holds no LoRA", "begin with x"),
    refused("nothing but whole numbers", cast(OURS, torch.int8), ModelFileError, "holds no LoRA"),
    refused("another width", pair(f"diffusion_model.{Q}", 64, 64), MismatchError, "model 64 wide", "is 48 wide"),
    refused("1.3B", pair(f"diffusion_model.{Q}", 1536, 1536, rank=1), MismatchError, "made for a 1.3B;"),
    refused("5B", {f"diffusion_model.{Q}.diff": torch.zeros(3072, 1)}, MismatchError, "made for a 5B;"),
    refused("14B image", {**pair(f"diffusion_model.{Q}", 5120, 5120, rank=1), **CLIP}, MismatchError,
            "14B image-to-video or first-last-frame model of Wan 2.1", f"6 {lora.NO_CLIP}"),
    refused("only clip keys", CLIP, MismatchError, f"6 {lora.NO_CLIP}"),
    refused("all blocks beyond", pair("diffusion_model.blocks.30.self_attn.q"), MismatchError, lora.NOT_THERE),
    refused("low alone on a single model", LOW, MismatchError, lora.OTHER_SIDE),
    refused("low alone on high", LOW, MismatchError, lora.OTHER_SIDE, model="t2v-a14b", side="high"),
]  # fmt: skip


def broken(id: str, damage: Callable[[bytes], bytes], word: str) -> Row:
    return refused(id, OURS, ModelFileError, word, damage=damage)


def filled(value: float) -> dict:
    """The same values everywhere."""
    return {name: torch.full_like(tensor, value) for name, tensor in OURS.items()}


def spoiled(value: float) -> dict:
    """One value in a good file."""
    tensors = {name: tensor.clone() for name, tensor in OURS.items()}
    tensors[f"diffusion_model.{Q}.lora_A.weight"][1, 1] = value
    return tensors


BROKEN = [
    broken("cut in the data", lambda raw: raw[:-100], "cut"),
    broken("cut in the header", lambda raw: raw[:40], "cut"),
    broken("empty", lambda raw: b"", "empty"),
    broken("with bytes behind it", lambda raw: raw + b"x", "trailing"),
    broken("a web page", lambda raw: b"<!DOCTYPE html><html></html>", "web page"),
    broken("a pointer", lambda raw: b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
]
"""Files that are no whole safetensors file."""
HIGH_ON_LOW = "by its name a LoRA of the high-noise expert, and is on the low-noise one"
LOW_ON_HIGH = "by its name a LoRA of the low-noise expert, and is on the high-noise one"
ON_A_MODEL = [
    refused("all zero", filled(0.0), MismatchError, "every change in it is zero"),
    refused("upper half zero, as before a training", {**OURS, **{
        name: torch.zeros_like(tensor) for name, tensor in only(OURS, "B.weight").items()}}, MismatchError,
        "as before a training"),
    refused("not a number", spoiled(float("nan")), ModelFileError, "not finite", "lora_A"),
    refused("infinite", spoiled(float("inf")), ModelFileError, "not finite", "lora_A"),
    refused("not a number in bf16", cast(spoiled(float("nan")), torch.bfloat16), ModelFileError, "not finite"),
    refused("too large to be true", filled(1e20), ModelFileError, "too large to be true"),
    taken("the high-noise file on low", OURS, 2, model="t2v-a14b", side="low", file="style_high_noise.safetensors",
          words=(HIGH_ON_LOW,)),
    taken("the low-noise file on high", OURS, 2, model="i2v-a14b", side="high", file="style_low_noise.safetensors",
          words=(LOW_ON_HIGH,)),
    taken("a low-noise file on a single model", OURS, 0, side="low", words=("has no low-noise expert", "is not used")),
    refused("lightning of the 5B on an image model", pair(f"diffusion_model.{Q}", 3072, 3072, rank=1), MismatchError,
            "made for a 5B;", model="i2v-a14b", side="high"),
]  # fmt: skip
"""What is wrong with their values, or with where they are put: said when they are put on a model."""
