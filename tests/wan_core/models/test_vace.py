"""VACE blocks: against the public implementation, against each other, and in the order in which they are walked."""

from dataclasses import replace

import pytest
import torch

from tests.tiny import randomised
from wan_core.configs import DitConfig
from wan_core.models.dit import VaceControl, WanDiT
from wan_core.models.vace import WanVace, build_dit
from wan_core.weights.keymaps import to_naming

TINY = DitConfig(
    dim=48, ffn_dim=80, num_heads=2, num_layers=4, text_dim=24, freq_dim=32, in_dim=16, out_dim=16,
    vace_layers=(0, 2), vace_in_dim=96,
)  # fmt: skip


def model(seed: int = 1, **changes) -> WanVace:
    return randomised(build_dit(replace(TINY, **changes)), seed)


def inputs(batch: int = 1, size=(3, 6, 8)):
    x, t, text = torch.randn(batch, 16, *size), torch.linspace(1, 999, batch), torch.randn(batch, 7, 24)
    return x, t, text, torch.randn(batch, 96, *size)


# width, heads, layers, VACE layers, batch, latent size
SHAPES = [
    (64, 4, 3, (0, 2), 1, (3, 6, 10)),
    (48, 2, 4, (0, 1, 2, 3), 3, (1, 4, 4)),
    (128, 1, 5, (0, 3), 2, (2, 10, 2)),
]


@pytest.mark.parametrize("scale", [1.0, 0.35])
@pytest.mark.parametrize(("dim", "heads", "layers", "vace_layers", "batch", "size"), SHAPES)
def test_it_agrees_with_the_diffusers_transformer(dim, heads, layers, vace_layers, batch, size, scale):
    from diffusers import WanVACETransformer3DModel

    ours = model(dim=dim, num_heads=heads, num_layers=layers, vace_layers=vace_layers)
    theirs = WanVACETransformer3DModel(
        num_attention_heads=heads, attention_head_dim=dim // heads, in_channels=16, out_channels=16, text_dim=24,
        freq_dim=32, ffn_dim=80, num_layers=layers, vace_layers=list(vace_layers), vace_in_channels=96,
    ).eval()  # fmt: skip
    theirs.load_state_dict(to_naming(ours.state_dict(), "dit", "diffusers"))
    x, t, text, context = inputs(batch, size)
    padded = torch.nn.functional.pad(text, (0, 0, 0, 512 - text.shape[1]))
    with torch.no_grad():
        expected = theirs(
            x, t, padded, control_hidden_states=context, return_dict=False,
            control_hidden_states_scale=torch.full((len(vace_layers),), scale),
        )[0]  # fmt: skip
        made = ours(x, t, text, vace=(VaceControl(context=context, strength=scale),))
        plain = ours(x, t, text)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    assert (made - plain).abs().max() > 1e-2, "the context changes nothing, so nothing was compared"


def test_without_a_context_it_is_the_model_without_vace_blocks():
    ours = model()
    plain = WanDiT(replace(TINY, vace_layers=(), vace_in_dim=None)).eval()
    plain.load_state_dict({name: tensor for name, tensor in ours.state_dict().items() if "vace" not in name})
    x, t, text, _ = inputs(2)
    with torch.no_grad():
        assert torch.equal(ours(x, t, text), plain(x, t, text))


def test_hints_of_several_contexts_add_up():
    """Linear in the last hint alone: a model of one block, whose hint meets nothing but the head's norm."""
    ours = model(num_layers=1, vace_layers=(0,))
    x, t, text, first = inputs()
    second, seen = torch.randn_like(first), []
    ours.head.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    with torch.no_grad():
        for vace in ([], [(first, 1.0)], [(second, 0.5)], [(first, 1.0), (second, 0.5)]):
            ours(x, t, text, vace=[VaceControl(context=context, strength=strength) for context, strength in vace])
    none, one, other, both = seen
    torch.testing.assert_close(both - none, (one - none) + (other - none), atol=1e-4, rtol=0)
    assert (one - none).abs().max() > 0.1
    assert (other - none).abs().max() > 0.1


def test_each_vace_block_is_walked_just_before_the_block_that_takes_its_hint():
    ours, seen = model(), []

    def walk(blocks):
        for block in blocks:
            seen.append(block)
            yield block

    x, t, text, context = inputs()
    with torch.no_grad():
        ours(x, t, text, walk=walk, vace=(VaceControl(context=context),))
    vace, main = ours.vace_blocks, ours.blocks
    assert seen == [vace[0], main[0], main[1], vace[1], main[2], main[3]]
    assert [ours.get_submodule(path) for path in ours.walked] == seen


@pytest.mark.parametrize("chunk", [1, 5, 17])
def test_cutting_the_tokens_changes_nothing_but_rounding(chunk):
    ours = model()
    x, t, text, context = inputs(2)
    vace = (VaceControl(context=context), VaceControl(context=context[:1], strength=0.4))
    with torch.no_grad():
        whole = ours(x, t, text, vace=vace)
        torch.testing.assert_close(ours(x, t, text, vace=vace, chunk=chunk), whole, atol=1e-4, rtol=0)


def test_with_autograd_it_computes_the_same():
    ours = model()
    x, t, text, context = inputs()
    vace = (VaceControl(context=context, strength=0.7),)
    with torch.no_grad():
        expected = ours(x, t, text, vace=vace)
    for chunk in (None, 7):
        torch.testing.assert_close(ours(x, t, text, vace=vace, chunk=chunk), expected, atol=1e-5, rtol=0)


def test_a_context_of_the_batch_and_one_for_all_of_it():
    ours = model()
    x, t, text, context = inputs(2)
    with torch.no_grad():
        one_for_all = ours(x, t, text, vace=(VaceControl(context=context[:1]),))
        repeated = ours(x, t, text, vace=(VaceControl(context=context[:1].repeat(2, 1, 1, 1, 1)),))
        each = ours(x, t, text, vace=(VaceControl(context=context),))
    assert torch.equal(one_for_all, repeated)
    torch.testing.assert_close(each[:1], one_for_all[:1], atol=1e-5, rtol=0)
    assert (each[1:] - one_for_all[1:]).abs().max() > 1e-2


def test_odd_sides_are_padded_as_the_latent_is():
    ours = model()
    x, t, text, context = inputs(size=(2, 5, 7))

    def wrapped(x: torch.Tensor) -> torch.Tensor:
        x = torch.cat((x, x[..., :1]), dim=-1)
        return torch.cat((x, x[..., :1, :]), dim=-2)

    with torch.no_grad():
        made = ours(x, t, text, vace=(VaceControl(context=context),))
        expected = ours(wrapped(x), t, text, vace=(VaceControl(context=wrapped(context)),))
    assert torch.equal(made, expected[..., :5, :7])


def test_a_context_of_another_size_and_layers_that_do_not_begin_with_0_are_mistakes():
    x, t, text, _ = inputs()
    with pytest.raises(ValueError, match="does not fit"):
        model()(x, t, text, vace=(VaceControl(context=torch.randn(1, 96, 2, 6, 8)),))
    for layers in ((1, 2), (0, 4), (0, 0), (2, 0)):
        with pytest.raises(ValueError, match="vace_layers"):
            build_dit(replace(TINY, vace_layers=layers))
