"""The same network in each implementation, from the same file: builders for ``benchmarks.cpu_worker``.

A builder takes the specification (``config``, ``dtype``, ``weights`` as a path, and settings of its own) and returns
``step``, a function of the case's tensors that gives the output, and the list of blocks. Nothing here is imported
before it is needed: a child process has one implementation only.
"""

import importlib
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Built = tuple[Callable[..., Tensor], list[nn.Module]]


def _file(spec: dict) -> dict[str, Tensor]:
    """The weights under their official names, as mapped pages of the file."""
    from safetensors.torch import load_file

    return load_file(spec["weights"])


def _renamed(spec: dict, kind: str, naming: str) -> dict[str, Tensor]:
    from wan_core.weights.keymaps import to_naming

    return to_naming(_file(spec), kind, naming)


def _fill(module: nn.Module, tensors: dict[str, Tensor], dtype_of: Callable[[str], torch.dtype]) -> nn.Module:
    """Give a module on the meta device these weights, every one of them, without a copy where the type fits."""
    module.load_state_dict({name: t.to(dtype_of(name)) for name, t in tensors.items()}, strict=True, assign=True)
    return module.train(False).requires_grad_(False)


def _start_comfyui() -> None:
    """ComfyUI reads the command line when it is imported, if told so before."""
    importlib.import_module("comfy.options").enable_args_parsing()


# --- the transformer -------------------------------------------------------------------------------------------------


def ours_dit(spec: dict) -> Built:
    """Along the pack's ordinary path, file and all; as in a run's later steps, which know what the text is."""
    import logging
    from pathlib import Path

    from wan_core.conditioning.text import folded
    from wan_core.models.dit_block import TextMemory
    from wan_core.runtime.ports import Compute, Ports
    from wan_core.stages import load

    device = torch.device("cpu")
    handle = load.load_model(
        Path(spec["weights"]), compute=Compute(device=device, bf16=True), dtype=spec["dtype"], notify=logging.info
    )
    module = Ports().memory.place(handle.high, 0)

    sides: dict[int, tuple[Tensor, Tensor | None, TextMemory]] = {}

    def step(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        if id(text) not in sides:  # once a run, as the sampler does on a CPU
            sides[id(text)] = (*folded(text.float(), handle.variant.dit), TextMemory())
        folded_text, bias, memory = sides[id(text)]
        return module(x.float(), t, folded_text, text_bias=bias, memory=memory)

    return step, list(module.blocks)


def diffusers_dit(spec: dict) -> Built:
    """As ``from_pretrained(torch_dtype=...)`` leaves it, norms, time embedding and modulation in float32."""
    from diffusers import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    cfg, dtype = spec["config"], DTYPES[spec["dtype"]]
    head_dim = cfg["dim"] // cfg["num_heads"]
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=cfg["num_heads"], attention_head_dim=head_dim, in_channels=cfg["in_dim"],
            out_channels=cfg["out_dim"], text_dim=cfg["text_dim"], freq_dim=cfg["freq_dim"], ffn_dim=cfg["ffn_dim"],
            num_layers=cfg["num_layers"], eps=cfg["eps"],
        )  # fmt: skip
    model.rope = WanRotaryPosEmbed(head_dim, (1, 2, 2), 1024)
    kept = set(model._keep_in_fp32_modules)
    _fill(
        model,
        _renamed(spec, "dit", "diffusers"),
        lambda name: torch.float32 if kept & set(name.split(".")) else dtype,
    )
    if spec.get("fuse"):
        model.fuse_qkv_projections()

    def step(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return model(x.to(dtype), t, text.to(dtype), return_dict=False)[0]

    return step, list(model.blocks)


def comfy_dit(spec: dict) -> Built:
    """ComfyUI's own class with weights that need no cast, its fastest way; on a CPU it would choose float32."""
    _start_comfyui()
    ops = importlib.import_module("comfy.ops").disable_weight_init
    wan = importlib.import_module("comfy.ldm.wan.model")
    dtype = DTYPES[spec["dtype"]]
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "text_dim", "text_len", "freq_dim")
    model = wan.WanModel(
        model_type="t2v", **{name: spec["config"][name] for name in (*names, "eps")}, device=torch.device("meta"),
        dtype=dtype, operations=ops,
    )  # fmt: skip
    _fill(model, _file(spec), lambda name: torch.float32 if name.startswith("patch_embedding") else dtype)

    def step(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return model(x.to(dtype), t, text.to(dtype), transformer_options={})

    return step, list(model.blocks)


def floor_dit(spec: dict) -> Built:
    """Only the matrix products and attentions of the blocks: nobody who computes them so can be faster."""
    import torch.nn.functional as F

    cfg, dtype = spec["config"], DTYPES[spec["dtype"]]
    tensors, heads = {name: t.to(dtype) for name, t in _file(spec).items()}, cfg["num_heads"]

    class Products(nn.Module):
        def __init__(self, index: int):
            super().__init__()
            self.weights = {
                name: tensors[f"blocks.{index}.{name}.weight"]
                for name in ("ffn.0", "ffn.2", *(f"{kind}_attn.{one}" for kind in ("self", "cross") for one in "qkvo"))
            }

        def attend(self, kind: str, x: Tensor, other: Tensor) -> Tensor:
            q, k, v = (F.linear(y, self.weights[f"{kind}_attn.{n}"]) for n, y in (("q", x), ("k", other), ("v", other)))
            q, k, v = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return F.linear(out, self.weights[f"{kind}_attn.o"])

        def forward(self, x: Tensor, text: Tensor) -> Tensor:
            x = self.attend("self", x, x)
            x = self.attend("cross", x, text)
            return F.linear(F.linear(x, self.weights["ffn.0"]), self.weights["ffn.2"])

    blocks = nn.ModuleList(Products(index) for index in range(cfg["num_layers"]))

    @lru_cache
    def rows(count: int) -> Tensor:
        return torch.randn(1, count, cfg["dim"], generator=torch.Generator().manual_seed(count)).to(dtype)

    def step(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        tokens, context = rows(x.shape[2] * x.shape[3] * x.shape[4] // 4), rows(text.shape[1])
        for block in blocks:
            block(tokens, context)
        return tokens

    return step, list(blocks)


# --- the VAE ---------------------------------------------------------------------------------------------------------


def ours_vae(spec: dict) -> Built:
    """Along the pack's ordinary path, file and all."""
    from pathlib import Path

    from wan_core.runtime.ports import Compute, Ports
    from wan_core.stages import load, vae

    handle = load.load_vae(
        Path(spec["weights"]), compute=Compute(device=torch.device("cpu"), bf16=True), dtype=spec["dtype"]
    )

    def decode(x: Tensor) -> Tensor:
        return vae.decode(handle, x, Ports()).movedim(-1, 1)

    def encode(x: Tensor) -> Tensor:
        frames, height, width = x.shape[2:]
        return torch.cat(list(vae.encode_stream(handle, [x], (1, frames, height, width), Ports())), dim=2)

    return {"decode": decode, "encode": encode}[spec["direction"]], []


def floor_vae(spec: dict) -> Built:
    """Only our convolutions (doubled pixels at 4/9 of the work, without those of one pixel), each done directly by
    PyTorch on what lies in memory as ours does: nobody who does them so can be faster."""
    from torch.overrides import TorchFunctionMode

    from wan_core.runtime import winograd

    winograd.pays = lambda *_: False  # of this process alone
    run, _ = ours_vae(spec)

    class Seen(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.calls = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in (torch.conv2d, torch.conv3d):
                self.calls.append((func, (args[0].shape, args[0].stride()), args[1:], kwargs or {}))
            return func(*args, **(kwargs or {}))

    @lru_cache
    def calls_of(shape: torch.Size) -> list[tuple]:
        with Seen() as seen:
            run(torch.zeros(shape))
        return seen.calls

    @lru_cache
    def drawn(shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
        return torch.empty_strided(shape, stride, dtype=DTYPES[spec["dtype"]]).normal_()

    def step(x: Tensor) -> Tensor:
        for func, given, args, kwargs in calls_of(x.shape):
            func(drawn(*given), *args, **kwargs)
        return x

    return step, []


def ours_vae_parts(spec: dict) -> Built:
    """A decode in ``grid`` (down, across) parts."""
    from pathlib import Path

    from wan_core.runtime.ports import Compute, Ports
    from wan_core.stages import load, vae
    from wan_core.stages.vae_work import cut, in_parts

    handle = load.load_vae(Path(spec["weights"]), compute=Compute(device=torch.device("cpu")), dtype=spec["dtype"])

    def step(x: Tensor) -> Tensor:
        down, across = (min(n, side) for n, side in zip(spec["grid"], x.shape[-2:]))
        split = in_parts("decode", handle.config, 1, cut(x.shape[3], down), cut(x.shape[4], across), 4)
        return torch.cat(list(vae.decode_stream(handle, x, Ports(), split)), dim=1)

    return step, []


def _as_pictures(x: Tensor) -> Tensor:
    """Every program's nodes end so."""
    return x.float().clamp_(-1, 1).add_(1).div_(2)


def _channels_last(module: nn.Module, spec: dict) -> nn.Module:
    """The setting that PyTorch's documentation advises for convolutions, where it is asked for."""
    for layer in module.modules() if spec.get("last") else ():
        if isinstance(layer, nn.Conv3d):
            layer.to(memory_format=torch.channels_last_3d)
        elif isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)
    return module


def diffusers_vae(spec: dict) -> Built:
    from diffusers import AutoencoderKLWan

    cfg, dtype = spec["config"], DTYPES[spec["dtype"]]
    with torch.device("meta"):
        model = AutoencoderKLWan(base_dim=cfg["dim"], z_dim=cfg["z_dim"])
    _channels_last(_fill(model, _renamed(spec, "vae", "diffusers"), lambda name: dtype), spec)

    def decode(x: Tensor) -> Tensor:
        return _as_pictures(model.decode(x.to(dtype), return_dict=False)[0])

    def encode(x: Tensor) -> Tensor:
        return model.encode(x.to(dtype), return_dict=False)[0].mean.float()

    return {"decode": decode, "encode": encode}[spec["direction"]], []


def comfy_vae(spec: dict) -> Built:
    """ComfyUI's class, which keeps the structure of the official code."""
    _start_comfyui()
    vae = importlib.import_module("comfy.ldm.wan.vae")
    cfg, dtype = spec["config"], DTYPES[spec["dtype"]]
    with torch.device("meta"):
        model = vae.WanVAE(dim=cfg["dim"], z_dim=cfg["z_dim"], temperal_downsample=list(cfg["temporal_downsample"]))
    _channels_last(_fill(model, _file(spec), lambda name: dtype), spec)

    def decode(x: Tensor) -> Tensor:
        return _as_pictures(model.decode(x.to(dtype)))

    def encode(x: Tensor) -> Tensor:
        return model.encode(x.to(dtype)).float()

    return {"decode": decode, "encode": encode}[spec["direction"]], []


# --- the text encoder ------------------------------------------------------------------------------------------------


def ours_umt5(spec: dict) -> Built:
    """Along the pack's ordinary path. Runs the real tokens only, as the pack does."""
    from pathlib import Path

    from wan_core.runtime.ports import Compute, Ports
    from wan_core.stages import load

    compute = Compute(device=torch.device("cpu"), bf16=True)
    handle = load.load_text_encoder(Path(spec["weights"]), compute=compute, dtype=spec["dtype"])
    module = Ports().memory.place(handle.weights, 0)

    def step(ids: Tensor, count: Tensor) -> Tensor:
        real = ids[:, : int(count)]
        return module(real, torch.ones_like(real))

    return step, list(module.blocks)


def transformers_umt5(spec: dict) -> Built:
    """``rows`` of input as the pipeline of diffusers pads them (``max_length``), behind a mask."""
    from transformers import UMT5Config, UMT5EncoderModel

    cfg, dtype = spec["config"], DTYPES[spec["dtype"]]
    config = UMT5Config(
        vocab_size=cfg["vocab"], d_model=cfg["dim"], d_kv=cfg["dim_attn"] // cfg["num_heads"], d_ff=cfg["dim_ffn"],
        num_layers=cfg["num_layers"], num_heads=cfg["num_heads"], feed_forward_proj="gated-gelu", dropout_rate=0.0,
        relative_attention_num_buckets=cfg["num_buckets"], relative_attention_max_distance=cfg["max_distance"],
        layer_norm_epsilon=cfg["eps"], tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = spec.get("attention", "sdpa")
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    tensors = {name: t for name, t in _file(spec).items() if name != "spiece_model"}
    wanted = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if "encoder.embed_tokens.weight" in wanted:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    _fill(model, tensors, lambda name: dtype)

    def step(ids: Tensor, count: Tensor) -> Tensor:
        mask = (torch.arange(ids.shape[1]) < count).long()[None]
        return model(ids, mask).last_hidden_state[:, : int(count)]

    return step, list(model.encoder.block)


def comfy_umt5(spec: dict) -> Built:
    """ComfyUI's class; ``cast`` computes in float32 from 16-bit weights, as its CLIP objects do on a CPU."""
    _start_comfyui()
    ops = importlib.import_module("comfy.ops")
    cfg, dtype = spec["config"], DTYPES[spec["dtype"]]
    numbers = {
        "d_ff": cfg["dim_ffn"], "d_kv": cfg["dim_attn"] // cfg["num_heads"], "d_model": cfg["dim"],
        "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "umt5", "num_heads": cfg["num_heads"],
        "num_layers": cfg["num_layers"], "vocab_size": cfg["vocab"],
    }  # fmt: skip
    cast = ops.manual_cast if spec.get("cast") else ops.disable_weight_init
    t5 = importlib.import_module("comfy.text_encoders.t5")
    model = t5.T5(numbers, dtype, torch.device("meta"), cast)
    _fill(model, {n: t for n, t in _file(spec).items() if n != "spiece_model"}, lambda name: dtype)
    computed = torch.float32 if spec.get("cast") else dtype

    def step(ids: Tensor, count: Tensor) -> Tensor:
        mask = (torch.arange(ids.shape[1]) < count).long()[None]
        return model(ids, mask, dtype=computed)[0][:, : int(count)]

    return step, list(model.encoder.block)
