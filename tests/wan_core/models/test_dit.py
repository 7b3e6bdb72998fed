"""The transformer against itself and against the public implementation."""

import pytest
import torch
from torch import nn

from wan_core.configs import DitConfig
from wan_core.models.dit import WanDiT
from wan_core.models.rope import axis_dims, rope_table, rotate
from wan_core.weights.keymaps import to_naming

TINY = {"dim": 48, "ffn_dim": 80, "num_heads": 2, "num_layers": 2, "text_dim": 24, "freq_dim": 32}


def tiny(**changes) -> WanDiT:
    """A small model in which every parameter matters (the usual initialisation leaves some at zero)."""
    torch.manual_seed(1)
    model = WanDiT(DitConfig(**{**TINY, "in_dim": 16, "out_dim": 16, **changes})).eval().requires_grad_(False)
    for param in model.parameters():
        nn.init.normal_(param, std=0.2 if param.ndim < 2 else param[0].numel() ** -0.5)
    return model


def inputs(batch: int = 1, size=(3, 6, 8), channels: int = 16):
    return torch.randn(batch, channels, *size), torch.full((batch,), 700.0), torch.randn(batch, 7, 24)


def test_a_batch_equals_its_samples_one_by_one():
    model = tiny()
    x, t, text = inputs(batch=3)
    t = torch.tensor([999.0, 500.0, 3.0])
    together = model(x, t, text)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], text[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_samples_of_different_sizes_do_not_see_each_other():
    model = tiny()
    samples = [torch.randn(16, 2, 6, 8), torch.randn(16, 3, 4, 4), torch.randn(16, 1, 2, 2)]
    t, text = torch.tensor([999.0, 500.0, 3.0]), torch.randn(3, 7, 24)
    together = model(samples, t, text)
    for i, out in enumerate(together):
        alone = model(samples[i][None], t[i : i + 1], text[i : i + 1])[0]
        torch.testing.assert_close(out, alone, atol=1e-5, rtol=0)


def test_one_timestep_for_all_tokens_equals_that_timestep_given_per_token():
    model = tiny()
    x, t, text = inputs(batch=2)
    per_token = t[:, None].expand(2, 3 * 3 * 4)
    torch.testing.assert_close(model(x, t, text), model(x, per_token, text), atol=1e-5, rtol=0)


def test_rows_of_zero_text_change_nothing_up_to_the_trained_length():
    model = tiny()
    x, t, text = inputs()
    padded = torch.nn.functional.pad(text, (0, 0, 0, 512 - text.shape[1]))
    torch.testing.assert_close(model(x, t, text), model(x, t, padded), atol=0, rtol=0)


def test_a_text_is_read_once_as_long_as_it_and_the_weights_are_the_same():
    """Every way in which weights change: in place, by others in their place, by LoRAs that a stored layer wears."""
    model, read = tiny(), []
    model.text_embedding[0].register_forward_hook(lambda *_: read.append(1))
    x, t, text = inputs()

    def made():
        read.clear()
        with torch.no_grad():
            return model(x, t, text), len(read)

    (first, once), (second, again) = made(), made()
    assert (once, again) == (1, 0) and torch.equal(first, second)
    with torch.no_grad():
        model.text_embedding[2].weight.mul_(2)
    changed, once = made()
    assert once == 1 and not torch.equal(changed, first)
    layer = model.text_embedding[0]
    layer._parameters["weight"] = nn.Parameter(layer.weight * 2)
    another, once = made()
    assert once == 1 and not torch.equal(another, changed)
    lora = torch.ones(1)
    layer.worn = (lora,)
    assert made()[1] == 1 and made()[1] == 0
    text.mul_(2)
    assert made()[1] == 1
    model(x, t, text)
    assert len(read) == 2, "with gradients nothing is kept"


def test_a_text_is_read_once_in_inference_mode_too():
    """As ComfyUI runs nodes."""
    model, read = tiny(), []
    model.text_embedding[0].register_forward_hook(lambda *_: read.append(1))
    with torch.inference_mode():
        x, t, text = inputs()
        assert torch.equal(model(x, t, text), model(x, t, text))
        layer = model.text_embedding[0]
        layer._parameters["weight"] = nn.Parameter(layer.weight * 2, requires_grad=False)
        model(x, t, text)
    assert len(read) == 2


def test_odd_sides_are_padded_by_wrapping_and_cut_again():
    model = tiny()
    x, t, text = inputs(size=(2, 5, 7))
    wrapped = torch.cat((x, x[..., :1]), dim=-1)
    wrapped = torch.cat((wrapped, wrapped[..., :1, :]), dim=-2)
    torch.testing.assert_close(model(x, t, text), model(wrapped, t, text)[..., :5, :7], atol=0, rtol=0)


def test_blocks_are_walked_in_order_by_whoever_runs_the_model():
    model, seen = tiny(), []

    def walk(blocks):
        for block in blocks:
            seen.append(block)
            yield block

    x, t, text = inputs()
    torch.testing.assert_close(model(x, t, text, walk=walk), model(x, t, text), atol=0, rtol=0)
    assert seen == list(model.blocks)


@pytest.mark.parametrize("head_dim", [24, 40, 64, 128])
def test_rotation_keeps_lengths_and_depends_on_distance_alone(head_dim):
    cos, sin = rope_table((3, 4, 5), head_dim)
    q, k = torch.randn(head_dim), torch.randn(head_dim)
    turned_q, turned_k = (rotate(x.expand(1, 60, 1, head_dim), cos, sin)[0, :, 0] for x in (q, k))
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(60), atol=1e-4, rtol=0)
    index = torch.arange(60).view(3, 4, 5)
    one_step = [(index[0, 1, 1], index[1, 2, 3]), (index[1, 0, 0], index[2, 1, 2]), (index[0, 2, 2], index[1, 3, 4])]
    dots = torch.stack([turned_q[a] @ turned_k[b] for a, b in one_step])
    torch.testing.assert_close(dots, dots[:1].expand(3), atol=1e-4, rtol=0)
    assert sum(axis_dims(head_dim)) == head_dim


# width, heads, batch, latent size: head widths of 16 to 128, odd token counts, a single frame
SHAPES = [
    (64, 4, 1, (3, 6, 10)),
    (48, 2, 3, (1, 4, 4)),
    (80, 2, 2, (5, 2, 6)),
    (128, 1, 2, (2, 10, 2)),
    (192, 3, 1, (4, 6, 6)),
]


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize(("dim", "heads", "batch", "size"), SHAPES)
def test_it_agrees_with_the_diffusers_transformer(dim, heads, batch, size, image):
    """Other configurations than the golden files hold, with random weights."""
    from diffusers import WanTransformer3DModel

    channels, img_dim = (36, 24) if image else (16, None)
    model = tiny(dim=dim, num_heads=heads, num_layers=3, in_dim=channels, img_dim=img_dim)
    theirs = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=dim // heads, in_channels=channels, out_channels=16, text_dim=24,
        freq_dim=32, ffn_dim=80, num_layers=3, image_dim=img_dim, added_kv_proj_dim=dim if image else None,
    ).eval()  # fmt: skip
    theirs.load_state_dict(to_naming(model.state_dict(), "dit", "diffusers"))
    x, t, text = inputs(batch=batch, size=size, channels=channels)
    t = torch.linspace(1, 999, batch)
    clip = torch.randn(batch, 257, 24) if image else None
    padded = torch.nn.functional.pad(text, (0, 0, 0, 512 - text.shape[1]))
    with torch.no_grad():
        expected = theirs(x, t, padded, encoder_hidden_states_image=clip, return_dict=False)[0]
    torch.testing.assert_close(model(x, t, text, clip), expected, atol=1e-4, rtol=0)
