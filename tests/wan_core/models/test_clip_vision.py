"""The CLIP visual tower against its reference vectors and against the public implementation."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from wan_core.configs import ClipVisionConfig
from wan_core.models.clip_vision import MEAN, STD, ClipVision, preprocess, preprocess_native

GOLDENS = Path(__file__).parents[2] / "goldens"
TINY = ClipVisionConfig(image_size=42, patch_size=14, dim=40, mlp_dim=72, num_heads=5, num_layers=3)


def needed(state: dict[str, torch.Tensor], num_layers: int) -> dict[str, torch.Tensor]:
    """Without what comes after the penultimate block."""
    unused = ("head", "post_norm.", f"transformer.{num_layers - 1}.")
    return {k: v for k, v in state.items() if not k.startswith(unused)}


@torch.no_grad()
def test_features_equal_the_reference():
    path = GOLDENS / "clip_visual_tiny.safetensors"
    with safe_open(path, "pt") as file:
        c = json.loads(file.metadata()["config"])
    config = ClipVisionConfig(
        image_size=c["image_size"], patch_size=c["patch_size"], dim=c["dim"], mlp_dim=c["dim"] * c["mlp_ratio"],
        out_dim=c["out_dim"], num_heads=c["num_heads"], num_layers=c["num_layers"], eps=c["norm_eps"],
    )  # fmt: skip
    tensors = load_file(path)
    state = {k.removeprefix("sd.visual."): v for k, v in tensors.items() if k.startswith("sd.visual.")}
    model = ClipVision(config)
    model.load_state_dict(needed(state, config.num_layers))
    pixels = preprocess(tensors["in.image.0"][None], config.image_size)
    torch.testing.assert_close(pixels, tensors["inter.preprocessed"], atol=1e-5, rtol=0)
    torch.testing.assert_close(model(pixels), tensors["out.features"], atol=1e-5, rtol=0)


def test_parameter_names_and_shapes_are_those_of_the_official_file():
    inventory = json.loads((GOLDENS / "keys" / "clip_vit_h_visual.json").read_text())
    inventory = inventory.get("keys", inventory)
    with torch.device("meta"):
        model = ClipVision(ClipVisionConfig())
    assert {name: list(p.shape) for name, p in model.state_dict().items()} == needed(inventory, 32)


def to_public_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renames = {
        "patch_embedding.": "embeddings.patch_embedding.", "pos_embedding": "embeddings.position_embedding.weight",
        "cls_embedding": "embeddings.class_embedding", "pre_norm.": "pre_layrnorm.", "transformer.": "encoder.layers.",
        "norm1.": "layer_norm1.", "norm2.": "layer_norm2.", "attn.proj.": "self_attn.out_proj.",
        "mlp.0.": "mlp.fc1.", "mlp.2.": "mlp.fc2.",
    }  # fmt: skip
    out = {}
    for name, tensor in state.items():
        for a, b in renames.items():
            name = name.replace(a, b)
        if "attn.to_qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3)):
                out[name.replace("attn.to_qkv.", f"self_attn.{part}_proj.")] = rows
        else:
            out[name] = tensor.flatten() if "class_" in name else tensor[0] if "position_" in name else tensor
    return out


@torch.no_grad()
def test_equals_the_public_implementation():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(3)
    ours = ClipVision(TINY).eval()
    for p in ours.parameters():
        p.copy_(1 + 0.1 * torch.randn_like(p) if p.ndim == 1 else torch.randn_like(p) * 0.15)
    config = CLIPVisionConfig(
        hidden_size=TINY.dim, intermediate_size=TINY.mlp_dim, num_hidden_layers=TINY.num_layers, patch_size=14,
        num_attention_heads=TINY.num_heads, image_size=TINY.image_size, hidden_act="gelu", layer_norm_eps=TINY.eps,
    )  # fmt: skip
    public = CLIPVisionModel(config).eval()
    names = {name.removeprefix("vision_model."): name for name in public.state_dict()}
    state = {names[name]: tensor for name, tensor in to_public_names(ours.state_dict()).items()}
    missing, unexpected = public.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(f"layers.{TINY.num_layers - 1}." in name or "post_layernorm" in name for name in missing)

    pixels = torch.randn(2, 3, TINY.image_size, TINY.image_size)
    expected = public(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(ours(pixels), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_walk_sees_every_block_once_and_in_order():
    model, seen = ClipVision(TINY), []

    def walk(blocks):
        for block in blocks:
            seen.append(block)
            yield block

    model(torch.zeros(1, 3, TINY.image_size, TINY.image_size), walk=walk)
    assert seen == list(model.transformer)


@torch.no_grad()
def test_parameters_may_be_stored_in_half_precision():
    class Half(torch.nn.Linear):
        def forward(self, x):
            return F.linear(x.half(), self.weight, self.bias)

    torch.manual_seed(4)
    model = ClipVision(TINY)
    pixels = torch.randn(1, 3, TINY.image_size, TINY.image_size)
    expected = model(pixels)
    model.half()
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Half
    out = model(pixels)
    assert out.dtype == torch.float32
    assert 0 < (out - expected).norm() / expected.norm() < 0.01


def test_the_official_preprocessing_squeezes_and_never_antialiases():
    wide = torch.rand(1, 3, 40, 120) * 2 - 1
    out = preprocess(wide, 42)
    plain = F.interpolate((wide + 1) / 2, size=(42, 42), mode="bicubic", align_corners=False)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(out * std + mean, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("shape", [(60, 91, 3), (91, 60, 3), (42, 42, 3), (20, 30, 4)])
def test_native_preprocessing_gives_eight_bit_values_in_a_square(shape, crop):
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(shape[0]))
    out = preprocess_native(image, 42, crop)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    levels = (out * std + mean) * 255
    assert out.shape == (1, 3, 42, 42)
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert levels.min() >= -1e-3
    assert levels.max() <= 255.001


def test_native_preprocessing_cuts_the_centre_only_when_asked():
    image = torch.zeros(1, 42, 126, 3)
    image[:, :, 42:84] = 1  # the middle third is white
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    cropped = preprocess_native(image, 42, crop=True) * std + mean
    squeezed = preprocess_native(image, 42, crop=False) * std + mean
    assert cropped.min() > 0.999
    assert squeezed[..., :10].max() < 0.05
    assert squeezed[..., 20:22].min() > 0.95
