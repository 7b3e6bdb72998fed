"""What Fun models add to the transformer: nothing where nothing is given, and each addition by itself."""

import torch

from tests.wan_core.models.test_dit import inputs, tiny


def test_a_reference_is_one_frame_more_in_front_that_is_not_in_the_result():
    """A model whose reference convolution is its patch embedding sees a clip with one more frame."""
    model = tiny(ref_dim=16)
    weight = model.patch_embedding
    model.ref_conv.weight.data, model.ref_conv.bias.data = weight.weight.data[:, :, 0].clone(), weight.bias.data.clone()
    x, t, text = inputs(size=(4, 6, 8))
    whole = model(x, t, text)
    cut = model(x[:, :, 1:], t, text, reference=x[:, :, 0])
    torch.testing.assert_close(cut, whole[:, :, 1:], atol=1e-5, rtol=0)
    assert (cut - model(x[:, :, 1:], t, text)).abs().max() > 1e-2


def test_a_reference_has_the_timestep_of_the_clip_where_its_first_frame_is_clean():
    model = tiny(ref_dim=16)
    x, t, text = inputs(size=(3, 6, 8))
    reference = torch.randn(1, 16, 6, 8)
    per_token = t[:, None].expand(1, 3 * 3 * 4)
    whole = model(x, t, text, reference=reference)
    torch.testing.assert_close(model(x, per_token, text, reference=reference), whole, atol=1e-5, rtol=0)
    clean = per_token.clone()
    clean[:, :12] = 0
    assert (model(x, clean, text, reference=reference) - whole).abs().max() > 1e-3


def test_odd_sides_of_a_reference_are_padded_as_those_of_the_clip():
    model = tiny(ref_dim=16)
    x, t, text = inputs(size=(2, 5, 7))
    assert model(x, t, text, reference=torch.randn(1, 16, 5, 7)).shape == x.shape


def test_a_camera_is_added_frame_by_frame_to_the_tokens_before_the_blocks():
    model = tiny(camera_dim=24 * 64)
    x, t, text = inputs(batch=2, size=(3, 6, 8))
    camera = torch.randn(2, 24, 3, 48, 64)
    moved = model(x, t, text, camera=camera)
    whole = model.control_adapter
    folded = torch.nn.functional.pixel_unshuffle(camera.transpose(1, 2).flatten(0, 1), 8)
    seen = whole.conv(folded)
    block = whole.residual_blocks[0]
    seen = seen + block.conv2(torch.relu(block.conv1(seen)))
    tokens = seen.unflatten(0, (2, 3)).movedim(1, 2).flatten(2).transpose(1, 2)
    plain = model.patch_embedding.forward
    model.patch_embedding.forward = lambda latent: plain(latent) + tokens
    torch.testing.assert_close(model(x, t, text), moved, atol=1e-5, rtol=0)
    model.patch_embedding.forward = plain
    assert (model(x, t, text) - moved).abs().max() > 1e-2


def test_together_gives_each_side_its_own_reference_and_camera():
    from wan_core.models.dit import Inputs

    model = tiny(ref_dim=16, camera_dim=24 * 64)
    x, t, text = inputs(size=(2, 6, 8))
    sides = [
        Inputs(x=x, t=t, text=text, reference=torch.randn(1, 16, 6, 8), camera=torch.randn(1, 24, 2, 48, 64)),
        Inputs(x=x, t=t, text=text),
    ]
    first, second = model.together(sides)
    assert torch.equal(second, model(x, t, text))
    assert torch.equal(first, model(x, t, text, reference=sides[0].reference, camera=sides[0].camera))
