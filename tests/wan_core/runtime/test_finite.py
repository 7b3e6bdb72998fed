"""NaN and infinity are named where they appear."""

import pytest
import torch

from wan_core.errors import NonFiniteError
from wan_core.runtime.finite import check_finite
from wan_core.sampling.sigmas import make_schedule
from wan_core.sampling.solvers import SOLVERS


def test_the_step_the_model_and_the_count_are_named():
    x = torch.zeros(1, 4, 3, 2, 2)
    x[0, 1, 2, 0, 1] = float("inf")
    x[0, 3] = float("nan")
    where = "step 7 of 20 at sigma 0.83, low-noise expert"
    with pytest.raises(NonFiniteError, match=rf"tiny .* {where}: 12 NaN and 1 infinite of 48, the first at \(0, 1, 2"):
        check_finite(x, where, "tiny", "Do this.")


@pytest.mark.parametrize("pair", [(float("inf"), float("-inf")), (float("nan"), 0.0), (float("-inf"), 0.0)])
def test_nothing_cancels_out(pair):
    with pytest.raises(NonFiniteError):
        check_finite(torch.tensor(pair), "step 1 of 1", "tiny", "Do this.")


def test_finite_values_pass_even_where_their_sum_overflows():
    check_finite(torch.full((4,), 3e38), "step 1 of 1", "tiny", "Do this.")
    check_finite(torch.randn(1, 16, 3, 4, 4), "step 1 of 1", "tiny", "Do this.")


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_a_run_stops_at_the_step_that_broke(solver):
    seen = []

    def denoise(x, step):
        seen.append(step.index)
        return x * float("nan") if step.index == 3 else x

    def on_step(result):
        check_finite(result.x, f"step {result.index + 1} of {result.total}", "tiny", "Do this.")

    with pytest.raises(NonFiniteError, match="step 4 of 8"):
        SOLVERS[solver](denoise, torch.randn(1, 4, 1, 2, 2), make_schedule("unipc", 8, 5.0), on_step=on_step)
    assert seen == [0, 1, 2, 3]
