"""Every kind of change against its formula, written out here element by element or by another way."""

import itertools

import pytest
import torch

from wan_core.weights.lora_math import KINDS, Worn, merged

OUT, IN, RANK = 6, 8, 3
CONV = (OUT, IN, 1, 2, 2)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


class Tensors:
    """A source that holds its tensors."""

    def __init__(self, parts):
        self._parts = parts

    def parts(self, change, device):
        return {role: tensor.to(device, torch.float32) for role, tensor in self._parts.items()}


def worn(kind: str, parts, strength: float = 1.0) -> Worn:
    return Worn(kind=kind, source=Tensors(parts), change=None, strength=strength)


def low_rank(alpha: float | None = None, conv: bool = False, **more):
    parts = {"up": draw(OUT, RANK), "down": draw(RANK, IN), **more}
    if conv:
        parts |= {"up": draw(OUT, RANK, 1, 1, 1), "down": draw(RANK, *CONV[1:])}
    return parts if alpha is None else {**parts, "alpha": torch.tensor(alpha)}


def added(kind: str, weight, parts, strength: float = 1.0):
    """What is added; neither weight nor parts may be changed by it."""
    before = [tensor.clone() for tensor in (weight, *parts.values())]
    found = KINDS[kind].added(weight, parts, strength)
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, *parts.values())))
    return found


def close(found, wanted):
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (3.0, 1.0), (1.5, 0.5), (12.0, 4.0), (0.0, 0.0)])
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0, -0.7, 2.0])
def test_low_rank_adds_alpha_over_rank_times_up_times_down(alpha, scale, strength):
    parts = low_rank(alpha)
    wanted = torch.zeros(OUT, IN)
    for o, i, r in itertools.product(range(OUT), range(IN), range(RANK)):
        wanted[o, i] += strength * scale * parts["up"][o, r] * parts["down"][r, i]
    close(added("low rank", draw(OUT, IN), parts, strength), wanted)


def test_alpha_may_be_one_value_in_a_list():
    parts = low_rank()
    with_alpha = {**parts, "alpha": torch.tensor([1.5])}
    weight = draw(OUT, IN)
    close(added("low rank", weight, with_alpha), added("low rank", weight, parts) / 2)


def test_a_convolution_is_low_rank_over_its_whole_kernel():
    parts = low_rank(1.5, conv=True)
    wanted = 0.5 * torch.einsum("or,rithw->oithw", parts["up"][:, :, 0, 0, 0], parts["down"])
    close(added("low rank", draw(*CONV), parts), wanted)


def test_a_middle_convolution_stands_between_the_halves():
    rank_in = 5
    parts = {"up": draw(OUT, RANK, 1, 1), "mid": draw(RANK, rank_in, 3, 3), "down": draw(rank_in, IN, 1, 1)}
    parts["alpha"] = torch.tensor(2.5)
    x = draw(1, IN, 7, 7)
    conv = torch.nn.functional.conv2d
    wanted = conv(conv(conv(x, parts["down"]), parts["mid"]), parts["up"]) * (2.5 / rank_in)
    close(conv(x, added("low rank", draw(OUT, IN, 3, 3), parts)), wanted)


def loha(core: bool = False, alpha: float | None = None):
    parts = {}
    for n in "12":
        a, b = (draw(RANK, OUT), draw(RANK, IN)) if core else (draw(OUT, RANK), draw(RANK, IN))
        parts |= {f"hada_w{n}_a": a, f"hada_w{n}_b": b}
        if core:
            parts[f"hada_t{n}"] = draw(RANK, RANK, 2, 2)
    return parts if alpha is None else {**parts, "alpha": torch.tensor(alpha)}


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (6.0, 2.0)])
def test_loha_is_the_product_of_two_low_ranks_element_by_element(alpha, scale):
    parts = loha(alpha=alpha)
    wanted = torch.empty(OUT, IN)
    for o, i in itertools.product(range(OUT), range(IN)):
        one = sum(parts["hada_w1_a"][o, r] * parts["hada_w1_b"][r, i] for r in range(RANK))
        two = sum(parts["hada_w2_a"][o, r] * parts["hada_w2_b"][r, i] for r in range(RANK))
        wanted[o, i] = one * two * scale
    close(added("hadamard", draw(OUT, IN), parts), wanted)


def test_loha_with_cores_is_a_tucker_product_of_convolutions():
    parts = loha(core=True, alpha=1.5)
    factors = []
    for n in "12":
        made = torch.zeros(OUT, IN, 2, 2)
        for i, j in itertools.product(range(RANK), range(RANK)):
            outer = parts[f"hada_w{n}_a"][i][:, None] * parts[f"hada_w{n}_b"][j][None, :]
            made += outer[:, :, None, None] * parts[f"hada_t{n}"][i, j]
        factors.append(made)
    close(added("hadamard", draw(OUT, IN, 2, 2), parts), factors[0] * factors[1] * 0.5)


def kron(one, two):
    """Blocks of ``two``, each times an element of ``one``."""
    rows = [torch.cat([value * two for value in row], dim=1) for row in one]
    return torch.cat(rows, dim=0)


LOKR = {
    "both whole": ({"lokr_w1": (2, 4), "lokr_w2": (3, 2)}, None),
    "first in parts": ({"lokr_w1_a": (2, 3), "lokr_w1_b": (3, 4), "lokr_w2": (3, 2)}, 3),
    "second in parts": ({"lokr_w1": (2, 4), "lokr_w2_a": (3, 2), "lokr_w2_b": (2, 2)}, 2),
    "both in parts": ({"lokr_w1_a": (2, 3), "lokr_w1_b": (3, 4), "lokr_w2_a": (3, 2), "lokr_w2_b": (2, 2)}, 2),
}


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("case", LOKR)
def test_lokr_is_a_kronecker_product_and_alpha_counts_only_with_a_rank(case, alpha):
    shapes, rank = LOKR[case]
    parts = {role: draw(*shape) for role, shape in shapes.items()}
    one = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    two = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    scale = alpha / rank if alpha and rank else 1.0
    if alpha is not None:
        parts["alpha"] = torch.tensor(alpha)
    close(added("kronecker", draw(OUT, IN), parts), kron(one, two) * scale)


def test_lokr_of_a_convolution_multiplies_whole_kernels():
    parts = {"lokr_w1": draw(2, 4), "lokr_w2": draw(3, 2, 2, 2)}
    wanted = torch.empty(OUT, IN, 2, 2)
    for o, i in itertools.product(range(OUT), range(IN)):
        wanted[o, i] = parts["lokr_w1"][o // 3, i // 2] * parts["lokr_w2"][o % 3, i % 2]
    close(added("kronecker", draw(OUT, IN, 2, 2), parts), wanted)


def test_lokr_with_a_core_makes_its_second_factor_of_it():
    parts = {"lokr_w1": draw(2, 4), "lokr_w2_a": draw(RANK, 3), "lokr_w2_b": draw(RANK, 2)}
    parts |= {"lokr_t2": draw(RANK, RANK, 2, 2), "alpha": torch.tensor(1.5)}
    second = torch.zeros(3, 2, 2, 2)
    for i, j in itertools.product(range(RANK), range(RANK)):
        outer = parts["lokr_w2_a"][i][:, None] * parts["lokr_w2_b"][j][None, :]
        second += outer[:, :, None, None] * parts["lokr_t2"][i, j]
    wanted = torch.empty(OUT, IN, 2, 2)
    for o, i in itertools.product(range(OUT), range(IN)):
        wanted[o, i] = parts["lokr_w1"][o // 3, i // 2] * second[o % 3, i % 2] * 0.5
    close(added("kronecker", draw(OUT, IN, 2, 2), parts), wanted)


FAMILIES = {
    "low rank": lambda: low_rank(1.5),
    "hadamard": lambda: loha(alpha=1.5),
    "kronecker": lambda: {"lokr_w1": draw(2, 4), "lokr_w2": draw(3, 2)},
}


@pytest.mark.parametrize("strength", [1.0, 0.4, -1.0])
@pytest.mark.parametrize("kind", FAMILIES)
def test_dora_over_outputs_divides_by_the_rows_of_the_original_weight(kind, strength):
    weight, parts, scale = draw(OUT, IN), FAMILIES[kind](), draw(OUT, 1)
    moved = weight + added(kind, weight, parts)
    wanted = torch.stack([moved[o] * scale[o] / (weight[o] ** 2).sum().sqrt() for o in range(OUT)])
    close(added(kind, weight, {**parts, "dora": scale}, strength), (wanted - weight) * strength)


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("kind", FAMILIES)
def test_dora_over_inputs_divides_by_the_columns_of_the_changed_weight(kind, strength):
    weight, parts, scale = draw(OUT, IN), FAMILIES[kind](), draw(1, IN)
    moved = weight + added(kind, weight, parts)
    wanted = torch.stack([moved[:, i] * scale[0, i] / (moved[:, i] ** 2).sum().sqrt() for i in range(IN)], dim=1)
    close(added(kind, weight, {**parts, "dora": scale}, strength), (wanted - weight) * strength)


@pytest.mark.parametrize("over", ["outputs", "inputs"])
def test_dora_of_a_convolution_takes_whole_kernels(over):
    weight, parts = draw(*CONV), low_rank(conv=True)
    moved = weight + added("low rank", weight, parts)
    if over == "outputs":
        scale = draw(OUT, 1, 1, 1, 1)
        wanted = torch.stack([moved[o] * scale[o] / weight[o].norm() for o in range(OUT)])
    else:
        scale = draw(1, IN, 1, 1, 1)
        wanted = torch.stack([moved[:, i] * scale[0, i] / moved[:, i].norm() for i in range(IN)], dim=1)
    close(added("low rank", weight, {**parts, "dora": scale}), wanted - weight)


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("shape", [(OUT,), (OUT, 1)])
def test_a_magnitude_vector_divides_by_the_rows_of_the_changed_weight(shape, strength):
    weight, parts, length = draw(OUT, IN), low_rank(), draw(*shape)
    moved = weight + parts["up"] @ parts["down"]
    wanted = torch.stack([moved[o] * length.flatten()[o] / (moved[o] ** 2).sum().sqrt() for o in range(OUT)])
    close(added("low rank", weight, {**parts, "magnitude": length}, strength), (wanted - weight) * strength)


def test_a_magnitude_vector_of_a_convolution_takes_whole_kernels():
    weight, parts, length = draw(*CONV), low_rank(conv=True), draw(1, OUT, 1, 1, 1)
    moved = weight + added("low rank", weight, parts)
    wanted = torch.stack([moved[o] * length[0, o] / moved[o].norm() for o in range(OUT)])
    close(added("low rank", weight, {**parts, "magnitude": length}), wanted - weight)


@pytest.mark.parametrize(
    ("kind", "role", "shape"),
    [
        ("difference", "diff", (OUT, IN)),
        ("difference", "diff", CONV),
        ("bias difference", "diff_b", (OUT,)),
        ("bias of up", "up_bias", (OUT,)),
        ("modulation difference", "diff_m", (1, 6, IN)),
    ],
)
@pytest.mark.parametrize("strength", [1.0, 0.0, -0.5])
def test_a_difference_is_added_as_it_is(kind, role, shape, strength):
    value = draw(*shape)
    close(added(kind, draw(*shape), {role: value}, strength), value * strength)


def test_a_difference_without_its_leading_one_is_the_same():
    value, weight = draw(6, IN), draw(1, 6, IN)
    close(added("modulation difference", weight, {"diff_m": value}), value[None])


@pytest.mark.parametrize("strength", [1.0, 0.25, 0.0])
def test_a_whole_tensor_takes_the_place_of_the_weight_by_its_strength(strength):
    weight, value = draw(OUT, IN), draw(OUT, IN)
    found = merged(weight, [worn("replacement", {"set_weight": value}, strength)])
    close(found, weight * (1 - strength) + value * strength)


TRANSPOSED = {
    "low rank": {"up": (IN, RANK), "down": (RANK, OUT)},
    "difference": {"diff": (IN, OUT)},
    "replacement": {"set_weight": (IN, OUT)},
    "hadamard": {"hada_w1_a": (IN, 2), "hada_w1_b": (2, OUT), "hada_w2_a": (IN, 2), "hada_w2_b": (2, OUT)},
    "kronecker": {"lokr_w1": (4, 2), "lokr_w2": (2, 3)},
}


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_a_transposed_change_is_refused_though_it_has_as_many_elements(kind):
    with pytest.raises(ValueError, match="no change of"):
        added(kind, draw(OUT, IN), {role: draw(*shape) for role, shape in TRANSPOSED[kind].items()})


EVERY = {
    "low rank": lambda: low_rank(1.5),
    "hadamard": lambda: loha(alpha=1.5),
    "kronecker": lambda: {"lokr_w1": draw(2, 4), "lokr_w2": draw(3, 2)},
    "difference": lambda: {"diff": draw(OUT, IN)},
    "replacement": lambda: {"set_weight": draw(OUT, IN)},
}


@pytest.mark.parametrize("kind", EVERY)
def test_strength_0_gives_the_weight_to_the_bit_and_reads_nothing(kind):
    class Closed:
        def parts(self, change, device):
            raise AssertionError("read")

    weight = draw(OUT, IN)
    assert torch.equal(merged(weight, [Worn(kind=kind, source=Closed(), change=None, strength=0.0)]), weight)


@pytest.mark.parametrize("kind", EVERY)
def test_a_negative_strength_takes_away_what_the_positive_one_adds(kind):
    weight, parts = draw(OUT, IN), EVERY[kind]()
    both = [worn(kind, parts, 0.8), worn(kind, parts, -0.8)]
    assert (merged(weight, both[:1]) - weight).abs().max() > 0.1
    close(merged(weight, both), weight)


def test_several_changes_are_each_measured_against_the_weight_so_their_order_is_the_same():
    weight = draw(OUT, IN)
    changes = [worn(kind, make(), 0.5) for kind, make in EVERY.items()]
    changes.append(worn("low rank", {**low_rank(), "dora": draw(OUT, 1)}, 0.5))
    wanted = weight + sum(change.added(weight) for change in changes)
    for order in itertools.islice(itertools.permutations(changes), 0, 720, 97):
        close(merged(weight, order), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_made_in_float32(dtype):
    weight, parts = draw(OUT, IN).to(dtype), low_rank()
    small = {**parts, "up": parts["up"] * 1e-4}
    found = merged(weight, [worn("low rank", small)])
    assert found.dtype is torch.float32
    close(found - weight.float(), small["up"] @ small["down"])
    assert (found - weight.float()).abs().max() > 0


def test_every_kind_is_tried_here():
    assert set(KINDS) == {*EVERY, "bias difference", "bias of up", "modulation difference"}
