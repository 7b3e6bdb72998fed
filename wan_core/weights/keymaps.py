"""Names of the same tensor in different files, as tables.

The official names (Wan-Video/Wan2.1 and Wan2.2; the CLIP tower without its leading ``visual.``) are the names of our
parameters. A :class:`Rule` ties one of them to the name or names in another naming. In a pattern ``{}`` stands for an
index and a closing ``*`` for the last part of a name (``weight``, ``bias``, ``scale_weight`` ...).

Sources of the names: huggingface/diffusers ``scripts/convert_wan_to_diffusers.py``, huggingface/transformers
(UMT5, CLIP), mlfoundations/open_clip, Comfy-Org/ComfyUI ``comfy/clip_vision.py``.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import ModelFileError

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Op:
    """How the tensors of a file become one of ours, and back; ``shape`` is what ``join`` does to shapes."""

    join: Callable[[tuple[Tensor, ...]], Tensor]
    split: Callable[[Tensor], tuple[Tensor, ...]]
    shape: Callable[[tuple[Shape, ...]], Shape]


def _concat_shape(parts: tuple[Shape, ...]) -> Shape:
    if len({part[1:] for part in parts}) != 1 or any(not part for part in parts):
        raise ValueError("parts differ")
    return (sum(part[0] for part in parts), *parts[0][1:])


OPS: dict[str, Op] = {
    "rename": Op(join=lambda parts: parts[0], split=lambda x: (x,), shape=lambda parts: parts[0]),
    "concat": Op(join=torch.cat, split=lambda x: x.chunk(3), shape=_concat_shape),
    "transpose": Op(join=lambda parts: parts[0].t(), split=lambda x: (x.t(),), shape=lambda parts: parts[0][::-1]),
    "unsqueeze": Op(join=lambda parts: parts[0][None], split=lambda x: (x[0],), shape=lambda parts: (1, *parts[0])),
    "unsqueeze2": Op(
        join=lambda parts: parts[0][None, None], split=lambda x: (x[0, 0],), shape=lambda parts: (1, 1, *parts[0])
    ),
}


@dataclass(frozen=True)
class Rule:
    """``ours`` is made of ``theirs`` by ``op``. An ``alias`` is a second name that some files use, read but never
    written."""

    ours: str
    theirs: tuple[str, ...]
    op: str = "rename"
    alias: bool = False


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one of our tensors comes from: names in the file (without prefix) and the op that joins them."""

    names: tuple[str, ...]
    op: str = "rename"


def _rules(table: str) -> tuple[Rule, ...]:
    """Lines of ``ours  theirs`` -> rules."""
    return tuple(Rule(ours, (theirs,)) for ours, theirs in (line.split() for line in table.strip().splitlines()))


DIT_DIFFUSERS = _rules("""
    patch_embedding.*               patch_embedding.*
    text_embedding.0.*              condition_embedder.text_embedder.linear_1.*
    text_embedding.2.*              condition_embedder.text_embedder.linear_2.*
    time_embedding.0.*              condition_embedder.time_embedder.linear_1.*
    time_embedding.2.*              condition_embedder.time_embedder.linear_2.*
    time_projection.1.*             condition_embedder.time_proj.*
    img_emb.emb_pos                 condition_embedder.image_embedder.pos_embed
    img_emb.proj.0.*                condition_embedder.image_embedder.norm1.*
    img_emb.proj.1.*                condition_embedder.image_embedder.ff.net.0.proj.*
    img_emb.proj.3.*                condition_embedder.image_embedder.ff.net.2.*
    img_emb.proj.4.*                condition_embedder.image_embedder.norm2.*
    head.modulation                 scale_shift_table
    head.head.*                     proj_out.*
    blocks.{}.modulation            blocks.{}.scale_shift_table
    blocks.{}.norm3.*               blocks.{}.norm2.*
    blocks.{}.ffn.0.*               blocks.{}.ffn.net.0.proj.*
    blocks.{}.ffn.2.*               blocks.{}.ffn.net.2.*
    blocks.{}.self_attn.q.*         blocks.{}.attn1.to_q.*
    blocks.{}.self_attn.k.*         blocks.{}.attn1.to_k.*
    blocks.{}.self_attn.v.*         blocks.{}.attn1.to_v.*
    blocks.{}.self_attn.o.*         blocks.{}.attn1.to_out.0.*
    blocks.{}.self_attn.norm_q.*    blocks.{}.attn1.norm_q.*
    blocks.{}.self_attn.norm_k.*    blocks.{}.attn1.norm_k.*
    blocks.{}.cross_attn.q.*        blocks.{}.attn2.to_q.*
    blocks.{}.cross_attn.k.*        blocks.{}.attn2.to_k.*
    blocks.{}.cross_attn.v.*        blocks.{}.attn2.to_v.*
    blocks.{}.cross_attn.o.*        blocks.{}.attn2.to_out.0.*
    blocks.{}.cross_attn.norm_q.*   blocks.{}.attn2.norm_q.*
    blocks.{}.cross_attn.norm_k.*   blocks.{}.attn2.norm_k.*
    blocks.{}.cross_attn.k_img.*    blocks.{}.attn2.add_k_proj.*
    blocks.{}.cross_attn.v_img.*    blocks.{}.attn2.add_v_proj.*
    blocks.{}.cross_attn.norm_k_img.*  blocks.{}.attn2.norm_added_k.*
""")
DIT_DIFFUSERS += (
    *_rules("""
    vace_patch_embedding.*          vace_patch_embedding.*
    vace_blocks.{}.before_proj.*    vace_blocks.{}.proj_in.*
    vace_blocks.{}.after_proj.*     vace_blocks.{}.proj_out.*
    """),
    *(
        Rule(f"vace_{rule.ours}", tuple(f"vace_{name}" for name in rule.theirs))
        for rule in DIT_DIFFUSERS
        if rule.ours.startswith("blocks.")
    ),
)
"""A VACE block is a main block with two projections more."""

UMT5_HF = (
    Rule("token_embedding.*", ("shared.*",)),
    Rule("token_embedding.*", ("encoder.embed_tokens.*",), alias=True),
    *_rules("""
    norm.weight                             encoder.final_layer_norm.weight
    blocks.{}.norm1.weight                  encoder.block.{}.layer.0.layer_norm.weight
    blocks.{}.norm2.weight                  encoder.block.{}.layer.1.layer_norm.weight
    blocks.{}.attn.q.*                      encoder.block.{}.layer.0.SelfAttention.q.*
    blocks.{}.attn.k.*                      encoder.block.{}.layer.0.SelfAttention.k.*
    blocks.{}.attn.v.*                      encoder.block.{}.layer.0.SelfAttention.v.*
    blocks.{}.attn.o.*                      encoder.block.{}.layer.0.SelfAttention.o.*
    blocks.{}.pos_embedding.embedding.*     encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.*
    blocks.{}.ffn.gate.0.*                  encoder.block.{}.layer.1.DenseReluDense.wi_0.*
    blocks.{}.ffn.fc1.*                     encoder.block.{}.layer.1.DenseReluDense.wi_1.*
    blocks.{}.ffn.fc2.*                     encoder.block.{}.layer.1.DenseReluDense.wo.*
    """),
)

_HF_LAYER = "vision_model.encoder.layers.{}"
CLIP_HF = (
    Rule("cls_embedding", ("vision_model.embeddings.class_embedding",), "unsqueeze2"),
    Rule("pos_embedding", ("vision_model.embeddings.position_embedding.weight",), "unsqueeze"),
    Rule("head", ("visual_projection.weight",), "transpose"),
    Rule("transformer.{}.attn.to_qkv.*", tuple(f"{_HF_LAYER}.self_attn.{p}_proj.*" for p in "qkv"), "concat"),
    *_rules(f"""
    patch_embedding.weight          vision_model.embeddings.patch_embedding.weight
    pre_norm.*                      vision_model.pre_layrnorm.*
    post_norm.*                     vision_model.post_layernorm.*
    transformer.{{}}.norm1.*        {_HF_LAYER}.layer_norm1.*
    transformer.{{}}.norm2.*        {_HF_LAYER}.layer_norm2.*
    transformer.{{}}.attn.proj.*    {_HF_LAYER}.self_attn.out_proj.*
    transformer.{{}}.mlp.0.*        {_HF_LAYER}.mlp.fc1.*
    transformer.{{}}.mlp.2.*        {_HF_LAYER}.mlp.fc2.*
    """),
)

CLIP_OPEN_CLIP = (
    Rule("cls_embedding", ("class_embedding",), "unsqueeze2"),
    Rule("pos_embedding", ("positional_embedding",), "unsqueeze"),
    *_rules("""
    head                                proj
    patch_embedding.weight              conv1.weight
    pre_norm.*                          ln_pre.*
    post_norm.*                         ln_post.*
    transformer.{}.norm1.*              transformer.resblocks.{}.ln_1.*
    transformer.{}.norm2.*              transformer.resblocks.{}.ln_2.*
    transformer.{}.attn.to_qkv.weight   transformer.resblocks.{}.attn.in_proj_weight
    transformer.{}.attn.to_qkv.bias     transformer.resblocks.{}.attn.in_proj_bias
    transformer.{}.attn.proj.*          transformer.resblocks.{}.attn.out_proj.*
    transformer.{}.mlp.0.*              transformer.resblocks.{}.mlp.c_fc.*
    transformer.{}.mlp.2.*              transformer.resblocks.{}.mlp.c_proj.*
    """),
)

_RESNET = (
    ("residual.0.gamma", "norm1.gamma"),
    ("residual.2.*", "conv1.*"),
    ("residual.3.gamma", "norm2.gamma"),
    ("residual.6.*", "conv2.*"),
    ("shortcut.*", "conv_shortcut.*"),
)
_RESAMPLE = (("resample.1.*", "resample.1.*"), ("time_conv.*", "time_conv.*"))


def _block(ours: str, theirs: str, parts: Iterable[tuple[str, str]]) -> tuple[Rule, ...]:
    return tuple(Rule(f"{ours}.{a}", (f"{theirs}.{b}",)) for a, b in parts)


def _vae_ends() -> tuple[Rule, ...]:
    """Input, middle and output of both halves, alike in VAE 2.1 and 2.2."""
    rules = list(_rules("conv1.*  quant_conv.*\nconv2.*  post_quant_conv.*"))
    for half in ("encoder", "decoder"):
        rules += _rules(f"""
        {half}.conv1.*                {half}.conv_in.*
        {half}.head.0.gamma           {half}.norm_out.gamma
        {half}.head.2.*               {half}.conv_out.*
        {half}.middle.1.norm.gamma    {half}.mid_block.attentions.0.norm.gamma
        {half}.middle.1.to_qkv.*      {half}.mid_block.attentions.0.to_qkv.*
        {half}.middle.1.proj.*        {half}.mid_block.attentions.0.proj.*
        """)
        rules += _block(f"{half}.middle.0", f"{half}.mid_block.resnets.0", _RESNET)
        rules += _block(f"{half}.middle.2", f"{half}.mid_block.resnets.1", _RESNET)
    return tuple(rules)


@lru_cache(maxsize=8)
def vae_21_diffusers(res_blocks: int, levels: int) -> tuple[Rule, ...]:
    """Official VAE 2.1 counts all decoder parts in one row; diffusers counts them by level."""
    rules = [*_vae_ends(), *_block("encoder.downsamples.{}", "encoder.down_blocks.{}", _RESNET + _RESAMPLE)]
    for level in range(levels):
        first, theirs = level * (res_blocks + 2), f"decoder.up_blocks.{level}"
        for i in range(res_blocks + 1):
            rules += _block(f"decoder.upsamples.{first + i}", f"{theirs}.resnets.{i}", _RESNET)
        rules += _block(f"decoder.upsamples.{first + res_blocks + 1}", f"{theirs}.upsamplers.0", _RESAMPLE)
    return tuple(rules)


@lru_cache(maxsize=8)
def vae_22_diffusers(res_blocks: int) -> tuple[Rule, ...]:
    """VAE 2.2 is grouped by level in both namings; the resampler comes after the residual blocks."""
    down, up = "encoder.downsamples.{}.downsamples", "decoder.upsamples.{}.upsamples"
    return (
        *_vae_ends(),
        *_block(f"{down}.{{}}", "encoder.down_blocks.{}.resnets.{}", _RESNET),
        *_block(f"{down}.{res_blocks}", "encoder.down_blocks.{}.downsampler", _RESAMPLE),
        *_block(f"{up}.{{}}", "decoder.up_blocks.{}.resnets.{}", _RESNET),
        *_block(f"{up}.{res_blocks + 1}", "decoder.up_blocks.{}.upsampler", _RESAMPLE),
    )


def _vae_diffusers(names: Iterable[str]) -> tuple[Rule, ...]:
    """The table for the VAE that ``names`` (official or diffusers, without prefix) belong to."""
    names = list(names)

    def distinct(pattern: str) -> int:
        return len({m.group(1) for name in names if (m := re.match(pattern, name))})

    if blocks := distinct(r"decoder\.upsamples\.0\.upsamples\.(\d+)\.residual"):
        return vae_22_diffusers(_sane(blocks - 1))  # the decoder has one residual block more per level
    if blocks := distinct(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.conv1"):
        return vae_22_diffusers(_sane(blocks))
    if blocks := distinct(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.conv1"):
        return vae_21_diffusers(_sane(blocks - 1), _sane(distinct(r"decoder\.up_blocks\.(\d+)\.")))
    resamplers = [int(m.group(1)) for n in names if (m := re.match(r"decoder\.upsamples\.(\d{1,3})\.resample", n))]
    res_blocks = _sane(min(resamplers, default=3) - 1)
    parts = distinct(r"decoder\.upsamples\.(\d+)\.")
    return vae_21_diffusers(res_blocks, _sane(-(-parts // (res_blocks + 2))))


def _sane(count: int) -> int:
    """Levels or blocks per level of a VAE; a file cannot make the table grow beyond this."""
    if not 0 <= count <= 16:
        raise ModelFileError(f"a VAE of {count} levels or blocks per level is not known. Download the file again.")
    return count


# (kind, naming) -> rules, or a function of the names. An empty table: the names are ours already.
NAMINGS: dict[tuple[str, str], tuple[Rule, ...] | Callable[[Iterable[str]], tuple[Rule, ...]]] = {
    ("dit", "official"): (),
    ("dit", "diffusers"): DIT_DIFFUSERS,
    ("umt5", "official"): (),
    ("umt5", "hf"): UMT5_HF,
    ("clip_vision", "official"): (),
    ("clip_vision", "hf"): CLIP_HF,
    ("clip_vision", "open_clip"): CLIP_OPEN_CLIP,
    ("vae", "official"): (),
    ("vae", "diffusers"): _vae_diffusers,
    ("tae", "official"): (),
}
# Prefixes that files put before all names of a kind; the first that fits is taken.
PREFIXES: dict[str, tuple[str, ...]] = {
    "dit": ("", "model.diffusion_model.", "model.model.", "net.", "model.", "diffusion_model."),
    "umt5": ("", "text_encoders.umt5xxl.transformer.", "umt5xxl.transformer.", "text_encoder.", "text_encoders."),
    "clip_vision": ("visual.", "", "clip_vision.", "clip_vision.visual.", "image_encoder."),
    "vae": ("", "vae.", "first_stage_model."),
    "tae": ("",),
}
# The prefix that files of a naming carry at home.
HOME_PREFIX: dict[tuple[str, str], str] = {
    ("clip_vision", "official"): "visual.",
    ("clip_vision", "open_clip"): "visual.",
}


def rules_for(kind: str, naming: str, names: Iterable[str]) -> tuple[Rule, ...]:
    """The table of a naming; ``names`` settle what depends on the size of the model."""
    table = NAMINGS[kind, naming]
    return table(names) if callable(table) else table


def to_official(names: Iterable[str], kind: str, naming: str) -> tuple[dict[str, Source], list[str]]:
    """Names in a file, without prefix -> our names.

    Returns:
        our name -> :class:`Source`, and the names that the table does not know (duplicates of a tensor that is
        there under its first name count as such).

    Raises:
        ModelFileError: two tensors of the file are the same one of ours.
    """
    names = list(names)
    rules = rules_for(kind, naming, names)
    if not rules:
        return {name: Source(names=(name,)) for name in names}, []
    parts: dict[tuple[str, Rule], dict[int, str]] = defaultdict(dict)
    unknown = []
    for name in names:
        hit = _match(name, rules)
        if hit is None:
            unknown.append(name)
            continue
        rule, index, ours = hit
        parts[ours, rule][index] = name
    return _sources(parts, unknown)


def to_naming(tensors: Mapping[str, Tensor], kind: str, naming: str, prefix: str | None = None) -> dict[str, Tensor]:
    """Tensors under our names -> the same under the names of another naming; the inverse of loading.

    Args:
        tensors: our name -> tensor.
        prefix: put before every name; None: the one that files of this naming carry at home.
    """
    prefix = HOME_PREFIX.get((kind, naming), "") if prefix is None else prefix
    rules = tuple(rule for rule in rules_for(kind, naming, tensors) if not rule.alias)
    if not rules:
        return {prefix + name: tensor for name, tensor in tensors.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        hit = next(((rule, m) for rule in rules if (m := _compiled(rule.ours).fullmatch(name))), None)
        if hit is None:
            raise ModelFileError(f"{name!r} has no name in the {naming} naming of a {kind}.")
        rule, match = hit
        for theirs, part in zip(rule.theirs, OPS[rule.op].split(tensor)):
            found[prefix + _fill(theirs, match.groups())] = part.contiguous()
    return found


def _sources(
    parts: Mapping[tuple[str, Rule], dict[int, str]], unknown: list[str]
) -> tuple[dict[str, Source], list[str]]:
    """Collected parts -> sources; an alias steps back for the first name, an incomplete set is unknown."""
    found: dict[str, Source] = {}
    for (ours, rule), names in sorted(parts.items(), key=lambda item: item[0][1].alias):
        ordered = tuple(names[i] for i in sorted(names))
        if len(ordered) != len(rule.theirs) or (rule.alias and ours in found):
            unknown.extend(ordered)
        elif ours in found:
            raise ModelFileError(f"{ordered[0]!r} and {found[ours].names[0]!r} are the same tensor {ours!r}.")
        else:
            found[ours] = Source(names=ordered, op=rule.op)
    return found, unknown


def _match(name: str, rules: tuple[Rule, ...]) -> tuple[Rule, int, str] | None:
    for rule in rules:
        for index, theirs in enumerate(rule.theirs):
            if match := _compiled(theirs).fullmatch(name):
                return rule, index, _fill(rule.ours, match.groups())
    return None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern:
    text = re.escape(pattern).replace(r"\{\}", r"(0|[1-9]\d{0,4})")
    return re.compile(re.sub(r"\\\*$", r"([A-Za-z0-9_]+)", text), re.ASCII)


def _fill(pattern: str, values: Iterable[str]) -> str:
    """Put captured indices and the last name part back into the other pattern."""
    values = iter(values)
    return re.sub(r"\{\}|\*$", lambda _: next(values), pattern)
