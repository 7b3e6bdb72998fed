"""The umT5 encoder against its reference vectors and against the public implementation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from wan_core.configs import Umt5Config
from wan_core.models.umt5 import RelativePositions, Umt5Encoder, position_buckets

GOLDENS = Path(__file__).parents[2] / "goldens"
TINY = Umt5Config(vocab=90, dim=32, dim_attn=40, dim_ffn=56, num_heads=5, num_layers=2)


def golden() -> tuple[Umt5Config, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    path = GOLDENS / "umt5_tiny.safetensors"
    with safe_open(path, "pt") as file:
        c = json.loads(file.metadata()["config"])
    names = ("vocab", "dim", "dim_attn", "dim_ffn", "num_heads", "num_layers", "num_buckets", "eps")
    config = Umt5Config(**{name: c[name] for name in names}, max_distance=c["max_dist"])
    tensors = load_file(path)
    return config, tensors, {k.removeprefix("sd."): v for k, v in tensors.items() if k.startswith("sd.")}


def seeded(config: Umt5Config) -> Umt5Encoder:
    torch.manual_seed(5)
    model = Umt5Encoder(config).eval()
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5 if p.ndim == 2 else 0.1)
        p.data.add_(1.0 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")) else 0.0)
    return model


@torch.no_grad()
def test_valid_tokens_equal_the_reference():
    config, tensors, state = golden()
    model = Umt5Encoder(config)
    model.load_state_dict(state)
    out = model(tensors["in.ids"], tensors["in.mask"])
    for i, length in enumerate(tensors["in.mask"].sum(1).tolist()):
        torch.testing.assert_close(out[i, :length], tensors["out.hidden"][i, :length], atol=1e-4, rtol=0)


def test_position_buckets_equal_the_reference():
    config, tensors, _ = golden()
    offset = torch.arange(16)[None, :] - torch.arange(16)[:, None]
    assert torch.equal(position_buckets(16, config)[offset + 15], tensors["inter.buckets_L16"])


@torch.no_grad()
def test_the_keys_of_a_bias_lie_side_by_side():
    """Fused attention on GPUs takes no other."""
    config = golden()[0]
    bias = RelativePositions(config)(position_buckets(9, config))
    assert bias.shape == (1, config.num_heads, 9, 9) and bias.is_contiguous()


def test_parameter_names_and_shapes_are_those_of_the_official_file():
    inventory = json.loads((GOLDENS / "keys" / "umt5_xxl_encoder.json").read_text())
    inventory = inventory.get("keys", inventory)
    with torch.device("meta"):
        model = Umt5Encoder(Umt5Config())
    assert {name: list(p.shape) for name, p in model.state_dict().items()} == inventory


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("length", [1, 7, 300])
def test_equals_the_public_implementation(length, padded):
    from transformers import UMT5Config, UMT5EncoderModel

    ours = seeded(TINY)
    config = UMT5Config(
        vocab_size=TINY.vocab, d_model=TINY.dim, d_kv=TINY.dim_attn // TINY.num_heads, d_ff=TINY.dim_ffn,
        num_heads=TINY.num_heads, num_layers=TINY.num_layers, feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    public = UMT5EncoderModel(config).eval()
    layers = {
        "attn.": "layer.0.SelfAttention.", "pos_embedding.embedding.": "layer.0.SelfAttention.relative_attention_bias.",
        "norm1.": "layer.0.layer_norm.", "norm2.": "layer.1.layer_norm.", "ffn.gate.0.": "layer.1.DenseReluDense.wi_0.",
        "ffn.fc1.": "layer.1.DenseReluDense.wi_1.", "ffn.fc2.": "layer.1.DenseReluDense.wo.",
    }  # fmt: skip
    state = {}
    for name, tensor in ours.state_dict().items():
        for a, b in {"token_embedding.": "shared.", **layers}.items():
            name = name.replace(a, b)
        name = "encoder.final_layer_norm.weight" if name == "norm.weight" else name
        state[name.replace("blocks.", "encoder.block.")] = tensor
    missing, unexpected = public.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"encoder.embed_tokens.weight"}

    ids = torch.randint(0, TINY.vocab, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, max(1, length // 2) :] = 0
    expected = public(input_ids=ids, attention_mask=mask).last_hidden_state
    valid = mask.bool()
    torch.testing.assert_close(ours(ids, mask)[valid], expected[valid], atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_does_not_reach_the_tokens():
    model = seeded(TINY)
    ids = torch.randint(0, TINY.vocab, (1, 9), generator=torch.Generator().manual_seed(1))
    alone = model(ids, torch.ones_like(ids))
    for pad in (0, 17):
        padded = torch.cat([ids, torch.full((1, 20), pad)], dim=1)
        mask = torch.cat([torch.ones_like(ids), torch.zeros(1, 20, dtype=torch.long)], dim=1)
        torch.testing.assert_close(model(padded, mask)[:, :9], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_walk_sees_every_block_once_and_in_order():
    model, seen = seeded(TINY), []

    def walk(blocks):
        for block in blocks:
            seen.append(block)
            yield block

    ids = torch.tensor([[3, 1]])
    out = model(ids, torch.ones_like(ids), walk=walk)
    assert seen == list(model.blocks)
    assert torch.equal(out, model(ids, torch.ones_like(ids)))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_linear_layers_may_compute_in_half_precision(dtype):
    class Half(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x.to(dtype), self.weight.to(dtype))

    model, ids = seeded(TINY), torch.arange(24).view(2, 12)
    expected = model(ids, torch.ones_like(ids))
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Half
    out = model(ids, torch.ones_like(ids))
    assert out.dtype == torch.float32
    assert 0 < (out - expected).norm() / expected.norm() < 0.02
