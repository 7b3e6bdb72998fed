"""NAG in cross-attention and skipped blocks, each against a reference of its own."""

import numpy as np
import pytest
import torch

from tests import tiny
from wan_core.models.dit import Inputs, WanDiT
from wan_core.models.nag import Nag, NegativeText, normalised


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(positive: np.ndarray, negative: np.ndarray, nag: Nag) -> np.ndarray:
    """Token by token, in float64."""
    out = np.empty_like(positive)
    for where in np.ndindex(positive.shape[:2]):
        p, n = positive[where].ravel(), negative[where].ravel()
        guided = nag.scale * p - (nag.scale - 1) * n
        ratio = np.abs(guided).sum() / np.abs(p).sum()
        guided = guided * min(ratio, nag.tau) / ratio
        out[where] = (nag.alpha * guided + (1 - nag.alpha) * p).reshape(positive.shape[2:])
    return out


@pytest.mark.parametrize("nag", [Nag(), Nag(scale=4, tau=1.2, alpha=1), Nag(scale=1.5, tau=50, alpha=0.5)], ids=str)
def test_nag_is_its_formula(nag):
    positive, negative = drawn(1, 2, 7, 3, 8), drawn(2, 2, 7, 3, 8)
    wanted = reference(positive.double().numpy(), negative.double().numpy(), nag)
    np.testing.assert_allclose(normalised(positive, negative, nag).numpy(), wanted, atol=2e-5, rtol=0)


def test_no_token_gets_longer_than_tau_times_and_zeros_stay_numbers():
    positive, negative = drawn(1, 1, 50, 2, 8), drawn(2, 1, 50, 2, 8)
    made = normalised(positive, negative, Nag(scale=30, tau=1.5, alpha=1))
    ratio = made.abs().sum((-2, -1)) / positive.abs().sum((-2, -1))
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.5))
    nothing = torch.zeros(1, 2, 2, 4)
    assert normalised(nothing, nothing, Nag()).isfinite().all()
    assert normalised(nothing, drawn(2, 1, 2, 2, 4), Nag()).isfinite().all()


def test_half_types_come_back_as_they_went_in():
    made = normalised(drawn(1, 1, 5, 2, 8).bfloat16(), drawn(2, 1, 5, 2, 8).bfloat16(), Nag())
    assert made.dtype == torch.bfloat16


@pytest.fixture(params=["t2v-1.3b", "i2v-14b-480p"])
def network(request) -> WanDiT:
    return tiny.randomised(WanDiT(tiny.variant(request.param).dit), 3)


def inputs(network: WanDiT, **more) -> Inputs:
    cfg = network.config
    clip = None if cfg.img_dim is None else drawn(7, 1, 257, cfg.img_dim)
    x = drawn(4, 1, cfg.in_dim, 2, 4, 6)
    return Inputs(x=x, t=torch.tensor([700.0]), text=drawn(5, 1, 6, cfg.text_dim), clip=clip, **more)


@torch.no_grad()
def run(network: WanDiT, *which: Inputs, chunk: int | None = None) -> list[torch.Tensor]:
    return network.together(which, chunk=chunk)


def attended(network: WanDiT, block: int, text: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Cross-attention to a text in float64, written out: heads before the output projection."""
    layer, cfg = network.blocks[block].cross_attn, network.config
    padded = torch.nn.functional.pad(text, (0, 0, 0, cfg.text_len - text.shape[1])).double()
    first, _, last = network.text_embedding
    hidden = torch.nn.functional.gelu(padded @ first.weight.double().T + first.bias.double(), approximate="tanh")
    context = hidden @ last.weight.double().T + last.bias.double()

    def linear(module, value):
        return value @ module.weight.double().T + module.bias.double()

    def normed(module, value):
        rms = (value.pow(2).mean(-1, keepdim=True) + module.eps).sqrt()
        return value / rms * module.weight.double()

    q = normed(layer.norm_q, linear(layer.q, x.double())).unflatten(-1, (cfg.num_heads, -1))
    k = normed(layer.norm_k, linear(layer.k, context)).unflatten(-1, (cfg.num_heads, -1))
    v = linear(layer.v, context).unflatten(-1, (cfg.num_heads, -1))
    scores = torch.einsum("blhd,bshd->bhls", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhls,bshd->blhd", scores.softmax(-1), v)


@torch.no_grad()
def test_cross_attention_with_a_negative_prompt_is_nag_of_both_attentions():
    network = tiny.randomised(WanDiT(tiny.variant("t2v-1.3b").dit), 3)
    layer, nag = network.blocks[1].cross_attn, Nag(scale=6, tau=1.1, alpha=0.7)
    text, other, x = drawn(5, 1, 6, 24), drawn(6, 1, 9, 24), drawn(8, 1, 12, 48)
    one = network._negative(NegativeText(text=other, nag=nag))
    positive = layer.key_value(network._text(text, None))
    made = layer.to_context(x, positive, None, None, (layer.key_value(one.text_BSd), one.bias, nag))
    heads = reference(*(attended(network, 1, side, x).numpy() for side in (text, other)), nag)
    wanted = torch.from_numpy(heads).flatten(2) @ layer.o.weight.double().T + layer.o.bias.double()
    torch.testing.assert_close(made.double(), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_negative_prompt_changes_the_pass_that_has_it_and_no_other(network, chunk):
    negative = NegativeText(text=drawn(6, 1, 9, 24), nag=Nag())
    (plain,) = run(network, inputs(network), chunk=chunk)
    guided, beside = run(network, inputs(network, negative=negative), inputs(network), chunk=chunk)
    assert torch.equal(beside, plain)
    assert (guided - plain).abs().max() > 1e-2
    with torch.no_grad():
        one = inputs(network)
        alone = network(one.x, one.t, one.text, one.clip, chunk=chunk, negative=negative)
    assert torch.equal(alone, guided)


def test_a_negative_prompt_equal_to_the_positive_one_changes_nothing_but_rounding(network):
    (plain,) = run(network, inputs(network))
    (guided,) = run(network, inputs(network, negative=NegativeText(text=drawn(5, 1, 6, 24), nag=Nag())))
    torch.testing.assert_close(guided, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("skip", [{0}, {1}, {0, 2}])
def test_skipped_blocks_are_as_if_the_model_did_not_have_them(network, skip):
    (plain,) = run(network, inputs(network))
    skipped, beside = run(network, inputs(network, skip=frozenset(skip)), inputs(network))
    assert torch.equal(beside, plain)
    kept = [block for number, block in enumerate(network.blocks) if number not in skip]
    network.blocks = torch.nn.ModuleList(kept)
    assert torch.equal(skipped, run(network, inputs(network))[0])
    assert not torch.equal(skipped, plain)
