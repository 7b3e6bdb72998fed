"""Names in LoRA files -> tensors of the model and what each part does to them, as tables.

A name in a LoRA file is ``prefix + module + ending``. Endings tell a part's role, prefixes the dialect; the module is
written with dots or with underscores, under official or diffusers names.

Sources of the names: Comfy-Org/ComfyUI ``comfy/lora.py`` and ``comfy/weight_adapter``, kohya-ss/musubi-tuner,
huggingface/peft and diffusers (``lora_conversion_utils.py``), ModelTC/LightX2V, KohakuBlueleaf/LyCORIS.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from .keymaps import DIT_DIFFUSERS

ENDINGS: dict[str, str] = {
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid",
    ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up",
    ".lora_A": "down", ".lora_B": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha", ".dora_scale": "dora", ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude", ".lora_magnitude_vector.default.weight": "magnitude",
    ".lora_B.bias": "up_bias", ".lora_B.default.bias": "up_bias",
    ".hada_w1_a": "hada_w1_a", ".hada_w1_b": "hada_w1_b", ".hada_w2_a": "hada_w2_a", ".hada_w2_b": "hada_w2_b",
    ".hada_t1": "hada_t1", ".hada_t2": "hada_t2",
    ".lokr_w1": "lokr_w1", ".lokr_w1_a": "lokr_w1_a", ".lokr_w1_b": "lokr_w1_b",
    ".lokr_w2": "lokr_w2", ".lokr_w2_a": "lokr_w2_a", ".lokr_w2_b": "lokr_w2_b", ".lokr_t2": "lokr_t2",
    ".diff": "diff", ".diff_b": "diff_b", ".diff_m": "diff_m", ".w_norm": "diff", ".b_norm": "diff_b",
    ".set_weight": "set_weight", ".reshape_weight": "reshape_weight",
}  # fmt: skip
"""End of a name -> role of the tensor. The longest that fits counts."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One way to begin names. ``side``: the expert that it is for, where the prefix says so."""

    prefix: str
    title: str
    underscores: bool = False
    side: str | None = None


DIALECTS: tuple[Dialect, ...] = (
    Dialect(prefix="lora_unet__", title="Fun (lora_unet__)", underscores=True),
    Dialect(prefix="lora_unet_", title="kohya / musubi (lora_unet_)", underscores=True),
    Dialect(prefix="lora_transformer_", title="kohya style (lora_transformer_)", underscores=True),
    Dialect(prefix="lycoris_", title="LyCORIS (lycoris_)", underscores=True),
    Dialect(prefix="transformer_2.", title="diffusers (transformer_2.)", side="low"),
    Dialect(prefix="transformer.", title="diffusers (transformer.)"),
    Dialect(prefix="model.diffusion_model.", title="PEFT (model.diffusion_model.)"),
    Dialect(prefix="diffusion_model.", title="PEFT (diffusion_model.)"),
    Dialect(prefix="base_model.model.", title="PEFT (base_model.model.)"),
    Dialect(prefix="pipe.dit.", title="DiffSynth-Studio (pipe.dit.)"),
    Dialect(prefix="unet.", title="unet."),
    Dialect(prefix="", title="names without a prefix"),
)
"""In the order in which they are tried."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one name means: a module (or, for ``diff_m``, the owner of a ``modulation``) and the role of the tensor."""

    dialect: Dialect
    module: str
    role: str


def read_name(name: str) -> Part | None:
    """What a name in a LoRA file means; None where it names nothing of a Wan transformer."""
    ending = max((one for one in ENDINGS if name.endswith(one)), key=len, default=None)
    if ending is None:
        return None
    stem, role = name.removesuffix(ending), ENDINGS[ending]
    for dialect in DIALECTS:
        if stem.startswith(dialect.prefix):
            module = official_module(stem.removeprefix(dialect.prefix), dialect.underscores)
            if module is not None:
                return Part(dialect=dialect, module=module, role=role)
    return None


def _modules() -> tuple[tuple[str, str], ...]:
    """Official and diffusers names of every module, and of the tensors that are none (modulations, positions); ``{}``
    for an index."""
    ends = [(rule.ours, rule.theirs[0]) for rule in DIT_DIFFUSERS]
    pairs = [(ours.removesuffix(".*"), theirs.removesuffix(".*")) for ours, theirs in ends]
    owners = ("blocks.{}", "vace_blocks.{}", "head")
    return (*pairs, *((name, name) for name in owners), ("img_emb", "condition_embedder.image_embedder"))


MODULES = _modules()


@lru_cache(maxsize=8192)
def official_module(stem: str, underscores: bool) -> str | None:
    """The official name of a module that is written officially or as in diffusers, with dots or underscores."""
    for official, pattern in _patterns(underscores):
        if match := pattern.fullmatch(stem):
            return official.replace("{}", match.group(1)) if match.groups() else official
    return None


@lru_cache
def _patterns(underscores: bool) -> tuple[tuple[str, re.Pattern], ...]:
    made = []
    for official, diffusers in MODULES:
        for written in dict.fromkeys((official, diffusers)):
            text = written.replace(".", "_") if underscores else written
            made.append((official, re.compile(re.escape(text).replace(r"\{\}", r"(0|[1-9]\d{0,2})"), re.ASCII)))
    return tuple(made)
