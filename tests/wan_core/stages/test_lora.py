"""LoRAs in a sampling run: what they change, when, and that nothing of them stays behind."""

import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from wan_core.errors import InputError, MismatchError, ModelFileError
from wan_core.models.dit import WanDiT
from wan_core.runtime.linear import StoredLinear
from wan_core.runtime.ports import Compute, Ports
from wan_core.runtime.residency import Resident
from wan_core.sampling.loras import changes_at, parse_strength
from wan_core.stages.load import ModelHandle, load_model
from wan_core.stages.lora import add_lora, parse_blocks
from wan_core.stages.sample import Settings, StartLatent, sample
from wan_core.stages.sides import Condition
from wan_core.weights.lora import LoraFile

SHAPE = (1, 16, 2, 4, 6)
CPU, META = torch.device("cpu"), torch.device("meta")
SMALL, PAIR = "t2v-1.3b", "t2v-a14b"
Q, FFN, HEAD = "blocks.0.self_attn.q", "blocks.1.ffn.0", "head.head"


def condition(seed: int) -> Condition:
    return Condition(text=torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(seed)))


def run(model, ports=None, samples=None, **settings):
    start = StartLatent(samples=torch.zeros(SHAPE) if samples is None else samples)
    settings = {"seed": 3, "steps": 4, "guidance_high": 2.0, **settings}
    return sample(model, condition(5), condition(6), start, Settings(**settings), ports or Ports())


def low_rank(path, seed: int = 11):
    """A file for three layers -> its path and what it adds to each weight."""
    generator = torch.Generator().manual_seed(seed)
    tensors, adds = {}, {}
    for module, out in ((Q, 48), (FFN, 64), (HEAD, 64)):
        up, down = torch.randn(out, 4, generator=generator) * 0.1, torch.randn(4, 48, generator=generator) * 0.3
        name = f"diffusion_model.{module}"
        tensors |= {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down, f"{name}.alpha": torch.tensor(8.0)}
        adds[f"{module}.weight"] = 2 * up @ down
    save_file(tensors, path)
    return path, adds


def all_kinds(path):
    """A file that changes layers, norms, biases, modulations and the input layer."""
    path, adds = low_rank(path)
    others = {
        "blocks.0.norm3.diff": ("blocks.0.norm3.weight", (48,)),
        "blocks.2.ffn.2.diff_b": ("blocks.2.ffn.2.bias", (48,)),
        "blocks.1.diff_m": ("blocks.1.modulation", (1, 6, 48)), "head.diff_m": ("head.modulation", (1, 2, 48)),
        "patch_embedding.diff": ("patch_embedding.weight", (48, 16, 1, 2, 2)),
        "blocks.1.self_attn.norm_q.diff": ("blocks.1.self_attn.norm_q.weight", (48,)),
    }  # fmt: skip
    tensors = {f"diffusion_model.{name}": torch.randn(shape) * 0.1 for name, (_, shape) in others.items()}
    save_file({**tensors, **_read(path)}, path)
    return path, adds | {target: tensors[f"diffusion_model.{name}"] for name, (target, _) in others.items()}


def _read(path):
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


@pytest.fixture
def lora(tmp_path):
    return low_rank(tmp_path / "a.safetensors")[0]


@pytest.fixture
def other(tmp_path):
    return low_rank(tmp_path / "b.safetensors", seed=12)[0]


def wearing(model, path, low=None, strength="1", strength_low="1", told=None, **more):
    return add_lora(
        model, path, low,
        strength=parse_strength(strength), strength_low=parse_strength(strength_low),
        notify=(lambda text: None) if told is None else told.append, **more,
    )  # fmt: skip


def by_hand(name: str, adds, strength: float = 1.0, low=None, strength_low: float = 1.0):
    """The same tiny model with the changes in its weights."""
    model = tiny.model(name)
    for side, changes, factor in ((model.high, adds, strength), (model.low, low or {}, strength_low)):
        for target, value in changes.items():
            side.module.state_dict()[target].add_(value * factor)
    return model


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def pointers(weights: Resident) -> list[int]:
    return [tensor.data_ptr() for tensor in weights.module.state_dict().values()]


@pytest.mark.parametrize("strength", [1.0, 0.4, -0.5])
def test_a_run_with_a_lora_is_the_run_of_a_model_with_the_change_merged_by_hand(strength, tmp_path):
    path, adds = all_kinds(tmp_path / "a.safetensors")
    found = run(wearing(tiny.model(SMALL), path, strength=str(strength)))
    close(found, run(by_hand(SMALL, adds, strength)))
    assert (found - run(tiny.model(SMALL))).abs().max() > 0.01


def test_strength_0_is_no_lora_to_the_bit_and_nothing_is_read(lora, monkeypatch):
    plain, worn = run(tiny.model(SMALL)), wearing(tiny.model(SMALL), lora, strength="0")
    monkeypatch.setattr(LoraFile, "parts", lambda *_: pytest.fail("read"))
    assert torch.equal(run(worn), plain)


def test_the_model_that_came_in_is_as_before_to_the_bit(tmp_path):
    path, _ = all_kinds(tmp_path / "a.safetensors")
    model = tiny.model(SMALL)
    before, home = run(model), pointers(model.high)
    state = {name: tensor.clone() for name, tensor in model.high.module.state_dict().items()}
    assert not torch.equal(run(wearing(model, path)), before)
    assert model.loras == ()
    assert torch.equal(run(model), before)
    assert pointers(model.high) == home
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.high.module.state_dict().items())


def test_a_then_b_then_a_is_a_to_the_bit(lora, other):
    model = tiny.model(SMALL)
    a, b = wearing(model, lora), wearing(model, other)
    first, between = run(a), run(b)
    assert torch.equal(run(a), first) and torch.equal(run(b), between)
    assert not torch.equal(first, between)
    assert torch.equal(between, run(wearing(tiny.model(SMALL), other)))


def test_two_loras_in_either_order_are_the_same_to_the_bit(lora, other):
    model = tiny.model(SMALL)
    both = run(wearing(wearing(model, lora, strength="0.7"), other, strength="0.2"))
    assert torch.equal(run(wearing(wearing(model, other, strength="0.2"), lora, strength="0.7")), both)
    assert not torch.equal(run(wearing(wearing(model, other, strength="0.7"), lora, strength="0.2")), both)


def test_two_loras_add_up(tmp_path):
    (a, adds), (b, more) = low_rank(tmp_path / "a.safetensors"), low_rank(tmp_path / "b.safetensors", seed=12)
    model = wearing(wearing(tiny.model(SMALL), a, strength="0.7"), b, strength="0.2")
    close(run(model), run(by_hand(SMALL, {name: 0.7 * adds[name] + 0.2 * more[name] for name in adds})))


def test_a_change_of_strength_builds_and_opens_nothing_again(lora):
    builds, module = [], tiny.randomised(WanDiT(tiny.variant(SMALL).dit), 1)
    weights = Resident("m", 1, CPU, lambda: builds.append(1) or module)
    model = ModelHandle(variant=tiny.variant(SMALL), high=weights)
    models = [wearing(model, lora, strength=text) for text in ("1", "0.5", "0: 1, 2: 0.3")]
    assert not builds, "putting a LoRA on a model reads nothing of the model"
    untouched = {name: t.data_ptr() for name, t in module.state_dict().items() if not name.startswith((Q, FFN, HEAD))}
    for one in models:
        run(one)
    assert builds == [1] and all(one.high is weights for one in models)
    files = {id(one.loras[0].high.file) for one in models}
    assert len(files) == 1
    assert {name: t.data_ptr() for name, t in module.state_dict().items() if name in untouched} == untouched


def test_weights_are_merged_once_for_all_steps_of_one_strength(lora, monkeypatch):
    merges, parts = [], LoraFile.parts
    constant, changing = (wearing(tiny.model(SMALL), lora, strength=text) for text in ("1", "0: 1, 2: 0.5, 4: 0"))
    monkeypatch.setattr(LoraFile, "parts", lambda self, *rest: merges.append(1) or parts(self, *rest))
    run(constant, steps=6)
    assert len(merges) == 3
    merges.clear()
    run(changing, steps=6)
    assert len(merges) == 6


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    path, _ = low_rank(tmp_path / "a.safetensors")
    first = run(wearing(tiny.model(SMALL), path))
    _, adds = low_rank(tmp_path / "new.safetensors", seed=12)
    os.replace(tmp_path / "new.safetensors", path)
    os.utime(path, ns=(1, 1))
    found = run(wearing(tiny.model(SMALL), path))
    assert not torch.equal(found, first)
    close(found, run(by_hand(SMALL, adds)))


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_size_of_the_change_is_drawn_for_each_block(tmp_path):
    sizes = {"blocks.0.self_attn.q": 1.0, "blocks.1.ffn.0": 0.25}
    shapes = {"blocks.0.self_attn.q": (48, 48), "blocks.1.ffn.0": (64, 48)}
    tensors = {}
    for name, size in sizes.items():
        out, into = shapes[name]
        up, down = torch.zeros(out, 2), torch.zeros(2, into)
        up[0, 0], down[0, 0] = size, 1.0
        tensors |= {f"diffusion_model.{name}.lora_B.weight": up, f"diffusion_model.{name}.lora_A.weight": down}
    save_file(tensors, tmp_path / "a.safetensors")
    told = []
    wearing(tiny.model(SMALL), tmp_path / "a.safetensors", told=told)
    assert told[0].endswith("Change per block: █▃")


def test_a_lora_of_zeros_is_refused(tmp_path, lora):
    save_file({name: torch.zeros_like(tensor) for name, tensor in _read(lora).items()}, tmp_path / "zero.safetensors")
    with pytest.raises(MismatchError, match=r"zero\.safetensors changes nothing: every change in it is zero"):
        wearing(tiny.model(SMALL), tmp_path / "zero.safetensors")


def test_blocks_without_any_change_are_refused(tmp_path, lora):
    path, _ = low_rank(tmp_path / "a.safetensors")
    name = "diffusion_model.blocks.0.self_attn.q.lora_"
    only = {name + half: torch.ones(shape) for half, shape in (("A.weight", (1, 48)), ("B.weight", (48, 1)))}
    save_file(only, path)
    with pytest.raises(MismatchError, match="changes nothing in the chosen blocks"):
        wearing(tiny.model(SMALL), path, blocks="1")


# --- over the steps, and on both experts -----------------------------------------------------------------------------


def forwards(model, **settings):
    """What the network answers at each evaluation of a run."""
    answers = []
    hook = model.high.module.register_forward_hook(lambda module, args, out: answers.append(out.clone()))
    run(model, solver="euler", guidance_high=1.0, **settings)
    hook.remove()
    return answers


def test_a_strength_over_steps_is_two_runs_joined_at_the_step(lora):
    model, settings = tiny.model(SMALL), {"solver": "euler", "steps": 6}
    course = wearing(model, lora, strength="0: 1, 2: 0.5")
    whole, half = wearing(model, lora, strength="1"), wearing(model, lora, strength="0.5")
    left = run(whole, end_step=2, **settings)
    joined = run(half, start_step=2, samples=left, **settings)
    assert torch.equal(run(course, end_step=2, **settings), left)
    assert torch.equal(run(course, start_step=2, samples=left, **settings), joined)
    # A latent on the wire is denormalised and scaled, so against a run that is not cut rounding is left.
    torch.testing.assert_close(run(course, **settings), joined, atol=1e-4, rtol=0)
    for wrong in (whole, half, wearing(model, lora, strength="0: 1, 3: 0.5")):
        assert (run(wrong, **settings) - joined).abs().max() > 1e-3


def test_the_network_changes_at_its_step_to_the_bit(lora):
    model = tiny.model(SMALL)
    course = forwards(wearing(model, lora, strength="0: 1, 2: 0.5"), steps=5)
    whole = forwards(wearing(model, lora, strength="1"), steps=5)
    assert len(course) == len(whole) == 5
    assert [torch.equal(a, b) for a, b in zip(course, whole)] == [True, True, False, False, False]


def test_percentages_count_the_steps_of_the_whole_run_also_in_a_part_of_it(lora):
    model = tiny.model(SMALL)
    settings = {"steps": 6, "solver": "euler"}
    left = run(wearing(model, lora), end_step=2, **settings)
    by_share = run(wearing(model, lora, strength="0%: 1, 50%: 0"), start_step=2, samples=left, **settings)
    by_step = run(wearing(model, lora, strength="0: 1, 3: 0"), start_step=2, samples=left, **settings)
    assert torch.equal(by_share, by_step)
    assert not torch.equal(by_share, run(wearing(model, lora), start_step=2, samples=left, **settings))


def test_each_expert_of_a_pair_wears_its_own_file_at_its_own_strength(tmp_path):
    (a, high), (b, low) = low_rank(tmp_path / "a.safetensors"), low_rank(tmp_path / "b.safetensors", seed=12)
    model, settings = tiny.model(PAIR), {"switch_step": 2}
    found = run(wearing(model, a, b, strength="0.8", strength_low="0.3"), **settings)
    close(found, run(by_hand(PAIR, high, 0.8, low, 0.3), **settings))
    assert (found - run(by_hand(PAIR, high, 0.3, low, 0.8), **settings)).abs().max() > 1e-3
    assert (found - run(by_hand(PAIR, low, 0.8, high, 0.3), **settings)).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["high", "low"])
def test_a_file_on_one_expert_leaves_the_other_as_it_is(side, tmp_path):
    path, adds = low_rank(tmp_path / "a.safetensors")
    model = tiny.model(PAIR)
    one = wearing(model, path, None) if side == "high" else wearing(model, None, path)
    wanted = by_hand(PAIR, adds) if side == "high" else by_hand(PAIR, {}, low=adds)
    found = run(one, switch_step=2)
    close(found, run(wanted, switch_step=2))
    assert (found - run(model, switch_step=2)).abs().max() > 1e-3


def test_a_file_with_both_prefixes_gives_each_expert_its_own(tmp_path):
    (a, high), (b, low) = low_rank(tmp_path / "a.safetensors"), low_rank(tmp_path / "b.safetensors", seed=12)
    parts = {"transformer.": _read(a), "transformer_2.": _read(b)}
    path = tmp_path / "both.safetensors"
    save_file({k.replace("diffusion_model.", start): t for start, ts in parts.items() for k, t in ts.items()}, path)
    told = []
    found = run(wearing(tiny.model(PAIR), path, path, told=told), switch_step=2)
    close(found, run(by_hand(PAIR, high, low=low), switch_step=2))
    assert all("applied 9 of 18" in text and "other expert" in text for text in told) and len(told) == 2


# --- what is told and refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "side", "says"),
    [
        ("style_low_noise", "high", "LoRA of the low-noise expert, and is on the high-noise one"),
        ("style-HIGH", "low", "LoRA of the high-noise expert, and is on the low-noise one"),
        ("style_high_noise", "high", None),
        ("style_low", "low", None),
        ("style_high_and_low", "low", None),
        ("slow_style", "high", None),
        ("style", "high", None),
    ],
)
def test_a_file_that_is_named_for_the_other_side_is_told(file, side, says, tmp_path):
    path, told = low_rank(tmp_path / f"{file}.safetensors")[0], []
    wearing(tiny.model(PAIR), *((path, None) if side == "high" else (None, path)), told=told)
    assert f"{side}-noise expert: {path.name}: applied 9 of 9 tensors" in told[0]
    assert len(told) == (1 if says is None else 2)
    assert says is None or (path.name in told[1] and says in told[1])


def test_a_single_model_is_no_side(tmp_path):
    path, told = low_rank(tmp_path / "style_low_noise.safetensors")[0], []
    wearing(tiny.model(SMALL), path, told=told)
    assert len(told) == 1 and told[0].startswith(f"{path.name}: applied 9 of 9 tensors")


def test_a_low_noise_file_on_a_single_model_is_told_and_not_used(lora, other):
    model, told = tiny.model(SMALL), []
    one = wearing(model, lora, other, told=told)
    assert f"no low-noise expert: {other.name} is not used" in told[0]
    assert one.loras[0].low is None
    assert torch.equal(run(one), run(wearing(model, lora)))


def test_strict_refuses_what_is_not_used_and_nothing_else(tmp_path, lora):
    clip = tmp_path / "clip.safetensors"
    extra = {"diffusion_model.blocks.0.cross_attn.k_img.diff_b": torch.randn(48)}
    save_file({**_read(lora), **extra}, clip)
    model, told = tiny.model(SMALL), []
    with pytest.raises(MismatchError, match=r"applied 9 of 10 .*no CLIP branch.*'strict'"):
        wearing(model, clip, strict=True, told=told)
    assert not told
    assert torch.equal(run(wearing(model, clip)), run(wearing(model, lora, strict=True)))


def test_a_lora_of_another_width_names_both_widths(tmp_path):
    path = tmp_path / "big.safetensors"
    name = f"diffusion_model.{Q}.lora_"
    save_file({f"{name}B.weight": torch.randn(5120, 1), f"{name}A.weight": torch.randn(1, 5120)}, path)
    with pytest.raises(MismatchError, match=r"made for a 14B; t2v-1\.3b high is 48 wide"):
        wearing(tiny.model(SMALL), path)


@pytest.mark.parametrize("place", ["gone.safetensors", "."])
def test_a_file_that_is_not_there_is_refused_in_a_sentence(place, tmp_path):
    with pytest.raises(ModelFileError, match=r"cannot be opened|is not a file"):
        wearing(tiny.model(SMALL), tmp_path / place)


BLOCKS = {
    "": None, "  ": None, "0": {0}, "0-2": {0, 1, 2}, "2, 0": {0, 2},
    "1-1,0 - 1": {0, 1}, "9": {9}, "0-39": set(range(40)),
}  # fmt: skip


@pytest.mark.parametrize("text", BLOCKS)
def test_blocks_are_numbers_and_ranges(text):
    assert parse_blocks(text, 40) == BLOCKS[text]


@pytest.mark.parametrize(
    "text", ["x", "-1", "40", "0-40", "3-1", ",", "1,", "1;2", "1.5", "1--2", "0x1", "all", "9" * 5000, "1 2", "1\x00"]
)
def test_other_blocks_are_refused_in_a_sentence(text, lora):
    with pytest.raises(InputError, match="from 0 to 39") as caught:
        parse_blocks(text, 40)
    assert len(str(caught.value)) < 300 and "\x00" not in str(caught.value)


def test_only_the_chosen_blocks_are_changed(tmp_path):
    path, adds = all_kinds(tmp_path / "a.safetensors")
    chosen = {name: value for name, value in adds.items() if name.startswith("blocks.1.")}
    assert 0 < len(chosen) < len(adds)
    close(run(wearing(tiny.model(SMALL), path, blocks="1")), run(by_hand(SMALL, chosen)))
    with pytest.raises(InputError, match="from 0 to 2"):
        wearing(tiny.model(SMALL), path, blocks="3")


# --- files that are stored narrow ------------------------------------------------------------------------------------


def stored(path, form: str):
    """A tiny model file -> the handle that computes it in float32, and a plain float32 model of the same numbers."""
    state = dict(tiny.model(SMALL).high.module.state_dict())
    exact, tensors = {}, {}
    for name, tensor in state.items():
        if form == "fp8" and tensor.ndim == 2 and name.startswith("blocks."):
            scale = tensor.abs().max() / 448
            tensors[name], tensors[name.replace(".weight", ".scale_weight")] = (
                (tensor / scale).to(torch.float8_e4m3fn),
                scale,
            )
            exact[name] = tensors[name].float() * scale
        else:
            tensors[name] = tensor.to(torch.float32 if form == "fp8" else torch.bfloat16)
            exact[name] = tensors[name].float()
    if form == "fp8":
        tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(tensors, path, {"config": '{"transformer": {"num_heads": 2}}'})
    model = load_model(path, compute=Compute(device=CPU), dtype="fp32", notify=lambda text: None)
    plain = WanDiT(model.variant.dit)
    plain.load_state_dict(exact)
    return model, replace(model, high=tiny.resident(plain, "plain")), exact


@pytest.mark.parametrize("form", ["bf16", "fp8"])
def test_a_narrow_file_keeps_its_storage_and_is_changed_at_each_use(form, tmp_path):
    path, adds = low_rank(tmp_path / "lora.safetensors")
    model, plain, exact = stored(tmp_path / f"{form}.safetensors", form)
    before, home = run(model), pointers(model.high)
    close(before, run(plain))
    layer = model.high.module.blocks[0].self_attn.q
    assert isinstance(layer, StoredLinear) and layer.is_narrow
    bits = layer.weight.view(torch.uint8).clone()

    found = run(wearing(model, path, strength="0: 0.8, 3: 0.5"))
    plain.high.module.load_state_dict({name: t + 0.8 * adds.get(name, 0) for name, t in exact.items()})
    first = forwards(plain)[0]
    close(forwards(wearing(model, path, strength="0.8"))[0], first)
    assert (found - before).abs().max() > 0.01
    assert layer.weight.dtype is (torch.bfloat16 if form == "bf16" else torch.float8_e4m3fn)
    assert torch.equal(layer.weight.view(torch.uint8), bits)
    assert layer.worn and layer.weight.data_ptr() in home

    assert torch.equal(run(model), before)
    assert layer.worn == () and pointers(model.high) == home


def test_a_weight_stored_as_it_computes_is_merged_and_not_worn(lora):
    model = tiny.model(SMALL)
    home = dict(zip(model.high.module.state_dict(), pointers(model.high)))
    run(wearing(model, lora))
    now = dict(zip(model.high.module.state_dict(), pointers(model.high)))
    assert {name for name in home if home[name] != now[name]} == {f"{module}.weight" for module in (Q, FFN, HEAD)}


# --- failures and moves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_lora_that_fails_half_way_leaves_the_base_in_place(which, lora, monkeypatch):
    model, calls, parts = tiny.model(SMALL), [], LoraFile.parts
    before, home = run(model), pointers(model.high)

    def failing(self, *rest):
        calls.append(1)
        if len(calls) == which:
            raise torch.OutOfMemoryError("no room")
        return parts(self, *rest)

    monkeypatch.setattr(LoraFile, "parts", failing)
    with pytest.raises(torch.OutOfMemoryError):
        run(wearing(model, lora))
    assert pointers(model.high) == home
    assert torch.equal(run(model), before)
    again = run(wearing(model, lora))
    assert torch.equal(again, run(wearing(tiny.model(SMALL), lora)))


def test_a_change_of_strength_that_fails_leaves_no_lora_of_either_strength(lora, monkeypatch):
    model = tiny.model(SMALL)
    before, home = run(model), pointers(model.high)
    first, half = run(wearing(model, lora)), wearing(model, lora, strength="0.5")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(LoraFile, "parts", lambda *_: 1 / 0)
        run(half)
    assert pointers(model.high) == home
    assert torch.equal(run(wearing(model, lora)), first) and torch.equal(run(model), before)


@pytest.mark.parametrize("form", ["fp32", "bf16"])
def test_values_that_are_not_finite_stop_the_run_and_leave_the_base(form, tmp_path, lora):
    tensors = _read(lora)
    tensors[f"diffusion_model.{HEAD}.lora_A.weight"][0, 0] = float("nan")
    bad = tmp_path / "bad.safetensors"
    save_file(tensors, bad)
    model = tiny.model(SMALL) if form == "fp32" else stored(tmp_path / "m.safetensors", form)[0]
    before = run(model)
    with pytest.raises(ModelFileError, match=r"bad\.safetensors: .*head\.head\.lora_A.* not finite"):
        run(wearing(model, bad))
    assert torch.equal(run(model), before)


def test_going_home_takes_a_lora_off_and_it_can_be_worn_again(lora):
    model = tiny.model(SMALL)
    home = pointers(model.high)
    worn = changes_at(wearing(model, lora).loras, "high", 0, 1)
    model.high.wear(worn)
    changed = model.high.module.blocks[0].self_attn.q.weight.clone()
    model.high.move_to(META)
    model.high.move_to(CPU)
    assert pointers(model.high) == home
    model.high.wear(worn)
    assert torch.equal(model.high.module.blocks[0].self_attn.q.weight, changed)


def test_moving_takes_a_lora_off_a_narrow_layer_too(lora, tmp_path):
    model, _, _ = stored(tmp_path / "m.safetensors", "bf16")
    model.high.wear(changes_at(wearing(model, lora).loras, "high", 0, 1))
    layers = [layer for layer in model.high.module.modules() if isinstance(layer, StoredLinear)]
    assert sum(bool(layer.worn) for layer in layers) == 3
    model.high.move_to(META)
    assert not any(layer.worn for layer in layers)
