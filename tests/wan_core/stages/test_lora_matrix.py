"""Every dialect of LoRA files on text and image models of one expert and of two: each tensor is accounted for, what is
changed is what the file says, and nothing of it stays behind or depends on an order."""

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.lora_dialects import DIALECTS, LOW_ONLY, LOW_RANK, RANK, layers_of, make
from tests import tiny
from tests.wan_core.stages.lora_models import MODELS, cfg_of, put_on, run
from wan_core.errors import MismatchError
from wan_core.stages.load import dit_shapes
from wan_core.weights.lora import NO_CLIP, OTHER_INPUTS, OTHER_SIDE, fit, open_lora
from wan_core.weights.lora_math import merged

CASES = [(dialect, kind) for kind in MODELS for dialect in DIALECTS if dialect != LOW_ONLY or "pair" in kind]


def written(folder, dialect: str, kind: str, seed: int = 3, name: str = "a"):
    path = folder / f"{name}.safetensors"
    save_file(make(dialect, cfg_of(kind), seed), path)
    return path


def sides(model) -> dict:
    return {"high": model.high} | ({"low": model.low} if model.low else {})


def state_of(model) -> dict[str, torch.Tensor]:
    return {
        f"{side} {name}": tensor.clone()
        for side, weights in sides(model).items()
        for name, tensor in weights.module.state_dict().items()
    }


@pytest.mark.parametrize(("dialect", "kind"), CASES)
def test_applied_and_ignored_are_all_tensors_of_the_file_each_once(dialect, kind, tmp_path):
    told = []
    model = put_on(tiny.model(MODELS[kind]), written(tmp_path, dialect, kind), dialect=dialect, told=told)
    found = [one for one in (model.loras[0].high, model.loras[0].low) if one is not None]
    assert len(found) == len(told) == (2 if model.low and dialect != LOW_ONLY else 1)
    for one, text in zip(found, told):
        used = {name for change in one.changes for name in change.names.values()}
        assert used == set(one.file.checkpoint.header) and not one.ignored
        assert f"applied {one.total} of {one.total} tensors" in text


@pytest.mark.parametrize("kind", ["T2V", "T2V pair", "I2V pair"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_file_for_an_image_model_with_clip_leaves_out_the_clip_layers_and_says_so(dialect, kind, tmp_path):
    file = open_lora(written(tmp_path, dialect, "I2V"))
    found = fit(file, dit_shapes(cfg_of(kind)), "low" if dialect == LOW_ONLY else None, "the model")
    names = list(file.checkpoint.header)
    of_clip = [name for name in names if any(mark in name for mark in ("k_img", "v_img", "add_k_proj", "add_v_proj"))]
    wide = [] if kind == "I2V pair" else [name for name in names if "patch_embedding" in name]
    wanted = {reason: sorted(group) for reason, group in ((NO_CLIP, of_clip), (OTHER_INPUTS, wide)) if group}
    assert {reason: sorted(group) for reason, group in found.ignored.items()} == wanted
    assert found.applied + len(of_clip) + len(wide) == found.total


@pytest.mark.parametrize("dialect", [dialect for dialect in DIALECTS if dialect != LOW_ONLY])
def test_a_file_for_a_text_model_is_whole_on_an_image_model_but_for_its_input_layer(dialect, tmp_path):
    file = open_lora(written(tmp_path, dialect, "T2V"))
    for kind in ("I2V", "I2V pair"):
        found = fit(file, dit_shapes(cfg_of(kind)), None, "the model")
        wide = [name for name in file.checkpoint.header if "patch_embedding" in name]
        assert found.ignored == ({OTHER_INPUTS: wide} if wide else {})
        assert found.applied + len(wide) == found.total


@pytest.mark.parametrize("kind", ["T2V", "I2V"])
def test_a_file_for_the_low_noise_expert_is_refused_by_a_single_model(kind, tmp_path):
    with pytest.raises(MismatchError, match=OTHER_SIDE):
        put_on(tiny.model(MODELS[kind]), written(tmp_path, LOW_ONLY, kind))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dialect", LOW_RANK)
def test_every_naming_means_the_product_of_its_halves_on_its_layer(dialect, kind, tmp_path):
    cfg, names = cfg_of(kind), LOW_RANK[dialect]
    tensors = make(dialect, cfg)
    side = "low" if dialect == LOW_ONLY else None
    worn = fit(open_lora(written(tmp_path, dialect, kind)), dit_shapes(cfg), side, "the model").worn(0.5)
    assert set(worn) == {f"{layer}.weight" for layer in layers_of(cfg)}
    for layer in layers_of(cfg):
        up, down = (tensors[f"{names.of(layer)}.{half}"] for half in (names.up, names.down))
        weight = torch.randn(up.shape[0], down.shape[1])
        wanted = weight + 0.5 * (names.alpha or RANK) / RANK * up @ down
        torch.testing.assert_close(merged(weight, worn[f"{layer}.weight"]), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dialect", "kind"), CASES)
def test_a_then_b_then_a_and_taking_it_off_change_no_bit(dialect, kind, tmp_path):
    a, b = written(tmp_path, dialect, kind), written(tmp_path, dialect, kind, seed=4, name="b")
    model = tiny.model(MODELS[kind])
    state, plain = state_of(model), run(model, kind)
    first = run(put_on(model, a, dialect=dialect), kind)
    between = run(put_on(model, b, dialect=dialect), kind)
    assert torch.equal(run(put_on(model, a, dialect=dialect), kind), first)
    assert torch.equal(run(model, kind), plain)
    assert all(torch.equal(tensor, state[name]) for name, tensor in state_of(model).items())
    for one, other in ((first, plain), (between, plain), (first, between)):
        assert (one - other).abs().max() > 1e-3
    fresh = tiny.model(MODELS[kind])
    assert torch.equal(run(put_on(fresh, b, dialect=dialect), kind), between)


@pytest.mark.parametrize(("dialect", "kind"), CASES)
def test_two_files_in_either_order_change_no_bit(dialect, kind, tmp_path):
    a, b = written(tmp_path, dialect, kind), written(tmp_path, "PEFT (diffusion_model.)", kind, seed=4, name="b")
    model = tiny.model(MODELS[kind])
    both = run(put_on(put_on(model, a, dialect=dialect), b, 0.3), kind)
    assert torch.equal(run(put_on(put_on(model, b, 0.3), a, dialect=dialect), kind), both)
    for alone in (put_on(model, a, dialect=dialect), put_on(model, b, 0.3)):
        assert (run(alone, kind) - both).abs().max() > 1e-3
