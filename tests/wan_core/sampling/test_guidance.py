"""Guidance: the formula, and no pass that is not needed."""

import pytest
import torch

from wan_core.errors import InputError
from wan_core.sampling.guidance import guided, separately
from wan_core.sampling.sigmas import Step

STEP = Step(index=0, sigma=0.8, sigma_next=0.5, timestep=800.0)


class Counted:
    """A model that counts its passes by condition."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, step, condition):
        self.calls.append(condition)
        return x * step.sigma + condition


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 6.0])
def test_guidance_goes_from_the_unconditioned_through_the_conditioned_velocity(scale):
    model, x = Counted(), torch.randn(1, 2, 1, 2, 2)
    out = guided(separately(model), 2.0, -1.0, scale)(x, STEP)
    torch.testing.assert_close(out, 0.8 * x - 1.0 + scale * 3.0)
    assert sorted(model.calls) == [-1.0, 2.0]


def test_at_guidance_1_the_negative_side_is_never_evaluated():
    model, x = Counted(), torch.randn(1, 2, 1, 2, 2)
    assert torch.equal(guided(separately(model), 2.0, -1.0, 1.0)(x, STEP), 0.8 * x + 2.0)
    assert model.calls == [2.0]


def test_guidance_without_a_negative_side_is_refused_instead_of_dropped():
    with pytest.raises(InputError, match="guidance 5 needs a negative prompt"):
        guided(separately(Counted()), 2.0, None, 5.0)
    assert guided(separately(Counted()), 2.0, None, 1.0)(torch.zeros(1), STEP) == 2.0


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_a_guidance_that_is_no_scale_is_refused(scale):
    with pytest.raises(InputError, match=f"got {scale}"):
        guided(separately(Counted()), 2.0, -1.0, scale)
