"""Strengths over the steps of a run, and what an expert wears in a step."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wan_core.errors import InputError
from wan_core.sampling.loras import MAX_PIECES, AddedLora, Strength, changes_at, constant, parse_strength
from wan_core.weights.lora import fit, open_lora
from wan_core.weights.lora_math import merged

COURSES = {
    "1": ([1, 1, 1, 1], 4),
    " -0.5 ": ([-0.5] * 3, 3),
    "1e1": ([10, 10], 2),
    "0: 1, 4: 0.5": ([1, 1, 1, 1, 0.5, 0.5], 6),
    "0:1,2:.5,3:-1": ([1, 1, 0.5, -1, -1], 5),
    "2: 1": ([0, 0, 1, 1], 4),
    "0: 1, 900: 0": ([1, 1, 1], 3),
    "0%: 1, 50%: 0": ([1, 1, 0, 0], 4),
    "0% : 1 , 50% : 0": ([1, 1, 1, 0, 0], 5),
    "25%: 1, 75%: +2": ([0, 1, 1, 2], 4),
    "12.5%: 1": ([0, 1, 1, 1, 1, 1, 1, 1], 8),
    "0%: 1, 100%: 0": ([1, 1, 1], 3),
    "0: 100, 1: -100": ([100, -100], 2),
}


@pytest.mark.parametrize("text", COURSES)
def test_a_strength_holds_from_its_step_to_the_next_piece(text):
    wanted, steps = COURSES[text]
    strength = parse_strength(text)
    assert [strength.at(step, steps) for step in range(steps)] == wanted


@pytest.mark.parametrize("steps", [4, 7, 20, 25, 29, 50, 100, 1000])
def test_a_percentage_that_is_a_whole_step_begins_at_that_step(steps):
    for step in range(steps):
        if step * 100 % steps == 0:
            strength = parse_strength(f"{step * 100 // steps}%: 1")
            assert [strength.at(k, steps) for k in range(steps)] == [0.0] * step + [1.0] * (steps - step)


BAD = {
    "": "no strength", "   ": "no strength", "x": "no strength", "1 2": "no strength", "1, 2": "no strength",
    "0x10": "no strength", "1;": "no strength", "None": "no strength", "--1": "no strength",
    "nan": "-100 to 100", "inf": "-100 to 100", "-Infinity": "-100 to 100", "101": "-100 to 100", "-1e3": "-100 to 100",
    "1e999": "-100 to 100", "9" * 500: "-100 to 100", "0: 101": "-100 to 100", "0: -9999": "-100 to 100",
    ":": "no piece", "0:": "no piece", ": 1": "no piece", "0: 1,": "no piece", ",0: 1": "no piece",
    "0: 1,, 2: 1": "no piece", "0: 1; 4: 0.5": "no piece", "0 1: 1": "no piece", "-1: 1": "no piece",
    "1.5: 1": "no piece", "0: 1: 2": "no piece", "0: nan": "no piece", "0: inf": "no piece", "0: 1e2": "no piece",
    "0: x": "no piece", "0: 0x1": "no piece", "0: 1_0": "no piece", "%: 1": "no piece", "1000%: 1": "no piece",
    "5.%: 1": "no piece", "0%%: 1": "no piece", "9999999: 1": "no piece", "0: 1.0000000001": "no piece",
    "0: 1\x00": "no piece", "0: " + "9" * 100_000: "no piece",
    "(" * 50_000 + ":": "no piece", "a:" * 50_000: "no piece",
    "0: 1, 50%: 0": "same way", "0%: 1, 3: 0": "same way",
    "4: 1, 0: 1": "must rise", "0: 1, 0: 2": "must rise", "50%: 1, 50%: 0": "must rise", "60%: 1, 20%: 0": "must rise",
    "101%: 1": "must rise", "0%: 1, 999%: 1": "must rise", "2: 1, 4: 1, 3: 1": "must rise",
    ",".join(f"{n}: 1" for n in range(MAX_PIECES + 1)): f"at most {MAX_PIECES}",
    "0:" + "," * 100_000: f"at most {MAX_PIECES}",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text[:20]))
def test_everything_else_is_refused_in_a_sentence(text):
    with pytest.raises(InputError) as caught:
        parse_strength(text)
    said = str(caught.value)
    assert BAD[text] in said and said.endswith(".") and len(said) < 300 and "\n" not in said and "\x00" not in said


def test_as_many_pieces_as_are_allowed_are_read():
    strength = parse_strength(",".join(f"{n}: {n / 100}" for n in range(MAX_PIECES)))
    assert [strength.at(n, 200) for n in (0, 1, 57, 99, 150)] == [0, 0.01, 0.57, 0.99, 0.99]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 100.001, -101])
def test_a_constant_out_of_range_is_refused(value):
    with pytest.raises(InputError, match="strength must be from -100 to 100"):
        constant(value)


def test_a_constant_holds_in_every_step():
    assert {constant(0.3).at(step, 9) for step in range(9)} == {0.3}
    assert constant(0.3) == parse_strength("0.3") == parse_strength("0: 0.3")


@pytest.mark.parametrize("factor", [1.0, -2.0, 0.0, 0.5])
@pytest.mark.parametrize("text", ["0: 1, 2: 0.5", "0%: -1, 30%: 4", "3"])
def test_scaling_multiplies_every_piece_and_moves_none(text, factor):
    one = parse_strength(text)
    scaled = one.scaled(factor)
    assert isinstance(scaled, Strength)
    assert [scaled.at(step, 8) for step in range(8)] == [one.at(step, 8) * factor for step in range(8)]


SHAPES = {f"blocks.{n}.self_attn.q.weight": (6, 6) for n in range(2)}


def made(folder: Path, name: str, blocks=(0, 1)):
    tensors = {}
    for n in blocks:
        tensors[f"diffusion_model.blocks.{n}.self_attn.q.lora_B.weight"] = torch.randn(6, 2)
        tensors[f"diffusion_model.blocks.{n}.self_attn.q.lora_A.weight"] = torch.randn(2, 6)
    save_file(tensors, folder / f"{name}.safetensors")
    return fit(open_lora(folder / f"{name}.safetensors"), SHAPES, None, "the model")


def added(high, low=None, strength: str = "1", strength_low: str = "1") -> AddedLora:
    return AddedLora(
        high=high, low=low, strength_high=parse_strength(strength), strength_low=parse_strength(strength_low)
    )


def test_the_order_in_which_they_were_added_changes_no_bit(tmp_path):
    a, b, c = (made(tmp_path, name) for name in "abc")
    loras = [added(a, strength="0.3"), added(b, strength="-0.7"), added(c), added(a, strength="1.1")]
    weight, results = torch.randn(6, 6), []
    for order in itertools.permutations(loras):
        worn = changes_at(order, "high", 0, 4)
        assert worn == changes_at(loras, "high", 0, 4)
        results.append(torch.stack([merged(weight, worn[name]) for name in SHAPES]))
    assert all(torch.equal(result, results[0]) for result in results)
    assert (results[0] - weight).abs().max() > 0.1


def test_changes_of_one_tensor_stand_together_in_the_order_of_the_files(tmp_path):
    late, early = made(tmp_path, "z", blocks=(0,)), made(tmp_path, "a")
    worn = changes_at([added(late), added(early)], "high", 0, 1)
    assert [len(worn[name]) for name in SHAPES] == [2, 1]
    assert [one.source.name for one in worn["blocks.0.self_attn.q.weight"]] == ["a.safetensors", "z.safetensors"]


def test_each_side_wears_its_own_file_at_its_own_strength(tmp_path):
    a, b = made(tmp_path, "a"), made(tmp_path, "b")
    loras = [added(a, b, "0: 0.5", "0: 0, 2: 0.25")]
    for side, step, name, strength in (("high", 0, "a", 0.5), ("high", 3, "a", 0.5), ("low", 2, "b", 0.25)):
        found = {(one.source.name, one.strength) for c in changes_at(loras, side, step, 4).values() for one in c}
        assert found == {(f"{name}.safetensors", strength)}


def test_nothing_is_worn_at_strength_0_before_the_first_piece_or_on_a_side_without_a_file(tmp_path):
    a = made(tmp_path, "a")
    assert changes_at([], "high", 0, 4) == {}
    assert changes_at([added(a, strength="0")], "high", 0, 4) == {}
    assert changes_at([added(a, strength="2: 1")], "high", 1, 4) == {}
    assert set(changes_at([added(a, strength="2: 1")], "high", 2, 4)) == set(SHAPES)
    assert changes_at([added(a, None)], "low", 0, 4) == {}
    assert changes_at([added(None, a)], "high", 0, 4) == {}


def test_equal_steps_of_a_run_wear_equal_changes_and_others_do_not(tmp_path):
    loras = [added(made(tmp_path, "a"), strength="0: 1, 2: 0.5")]
    steps = [changes_at(loras, "high", step, 4) for step in range(4)]
    assert steps[0] == steps[1] != steps[2] == steps[3]
