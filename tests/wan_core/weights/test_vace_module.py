"""A T2V model and a VACE module are the VACE model whose parts they are, to the bit."""

import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from wan_core.models.vace import build_dit
from wan_core.runtime.ports import Compute
from wan_core.stages.load import load_model

COMPUTE = Compute(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def states() -> list[dict[str, torch.Tensor]]:
    config = tiny.variant("vace-1.3b").dit
    return [dict(tiny.randomised(build_dit(config), seed).state_dict()) for seed in (1, 2)]


def write(folder, name: str, state: dict, part: str, prefix: str = "", **more):
    """A file of the ``vace`` tensors, of the ``others`` or of all."""
    keep = {"vace": lambda n: n.startswith("vace_"), "others": lambda n: not n.startswith("vace_"), "all": lambda n: n}
    path = folder / f"{name}.safetensors"
    tensors = {prefix + key: tensor.contiguous() for key, tensor in state.items() if keep[part](key)}
    save_file(tensors | more, path, {"config": '{"num_heads": 2}'})
    return path


def load(path, low=None, **modules):
    told = []
    handle = load_model(path, low, compute=COMPUTE, dtype="fp32", notify=told.append, **modules)
    return handle, told


def same(handle_side, state) -> bool:
    made = handle_side.module.state_dict()
    return set(made) == set(state) and all(torch.equal(made[name], state[name]) for name in state)


@pytest.mark.parametrize("base_prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("module_prefix", ["", "diffusion_model."])
def test_model_and_module_are_the_whole_model(tmp_path, states, base_prefix, module_prefix):
    whole, _ = load(write(tmp_path, "whole", states[0], "all"))
    marker = {"scaled_fp8": torch.zeros(0)} if not module_prefix else {}
    base = write(tmp_path, "base", states[0], "others", base_prefix)
    module = write(tmp_path, "module", states[0], "vace", module_prefix, **marker)
    joined, told = load(base, module=module)
    assert joined.variant.dit == whole.variant.dit and joined.variant.dit.vace_layers
    assert told[-1].startswith("Wan 2.1 VACE")
    assert joined.high.sizes() == whole.high.sizes()
    assert same(joined.high, states[0]) and same(whole.high, states[0])


def test_without_the_module_it_is_the_t2v_model(tmp_path, states):
    plain, _ = load(write(tmp_path, "base", states[0], "others"))
    assert not plain.variant.dit.vace_layers


def test_a_pair_takes_a_module_each_or_one_for_both(tmp_path, states):
    high, low = (write(tmp_path, f"t2v_{side}_noise", s, "others") for side, s in zip(("high", "low"), states))
    first, second = (write(tmp_path, f"module_{side}", s, "vace") for side, s in zip(("high", "low"), states))
    each, told = load(high, low, module=first, low_noise_module=second)
    assert each.variant.experts == 2 and each.variant.title.startswith("Wan 2.2 Fun VACE A14B")
    assert same(each.high, states[0]) and same(each.low, states[1])
    assert not any("both experts" in sentence for sentence in told)
    both, told = load(high, low, module=first)
    assert any("module_high.safetensors is added to both experts" in sentence for sentence in told)
    shared = {name: tensor for name, tensor in states[0].items() if name.startswith("vace_")}
    assert same(both.low, states[1] | shared)
