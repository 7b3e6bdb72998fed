"""Solvers against the official trajectories, diffusers' arithmetic and an ODE with a known solution."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from wan_core.sampling.experts import by_step
from wan_core.sampling.noise import initial_noise, leave_off, step_noise, take_up
from wan_core.sampling.sigmas import SCHEDULES, Schedule, from_sigmas, make_schedule
from wan_core.sampling.solvers import DEFAULT_SCHEDULE, SOLVERS

GOLDENS = Path(__file__).parents[2] / "goldens"
COMBOS = [(steps, shift) for steps in (4, 8, 30, 50) for shift in (3.0, 5.0, 8.0, 12.0)]
SOLVED = {**SOLVERS, "lcm": partial(SOLVERS["lcm"], noise=torch.zeros_like)}
"""Every solver, ready to be called without noise."""


def velocity(x, step):
    """The golden files' model."""
    return torch.sin(1.3 * x) * (0.3 + step.timestep / 1000) - 0.2 * x


def start() -> torch.Tensor:
    return initial_noise((1, 4, 2, 3, 3), 5)


def trajectory(solver, denoise, x, schedule, **hooks) -> torch.Tensor:
    steps = []
    last = SOLVED[solver](denoise, x, schedule, on_step=lambda result: steps.append(result.x), **hooks)
    assert torch.equal(steps[-1], last)
    return torch.stack(steps)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / "schedulers.safetensors")


@pytest.mark.parametrize(("steps", "shift"), COMBOS)
@pytest.mark.parametrize(("solver", "tag"), [("unipc", "unipc"), ("dpm++", "dpmpp"), ("euler", "euler")])
def test_every_step_of_the_official_trajectories_is_met(golden, solver, tag, steps, shift):
    key = f"out.{tag}.s{steps}_shift{shift:g}"
    official = make_schedule(solver, steps, shift) if solver != "euler" else from_sigmas(golden[f"{key}.sigmas"])
    ours = trajectory(solver, velocity, golden["in.x_T"], official)
    torch.testing.assert_close(ours, golden[f"{key}.traj"], atol=1e-5, rtol=0)


def diffusers_trajectory(solver: str, x: torch.Tensor, schedule: Schedule) -> torch.Tensor:
    """The public implementation's arithmetic on our table, its step index set by hand, in float64 throughout: in
    float32 it strays from that by up to 1e-5 in 100 steps."""
    x = x.double()
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    if solver == "unipc":
        scheduler = diffusers.UniPCMultistepScheduler(solver_order=2, solver_type="bh2", **settings)
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(
            solver_order=2, solver_type="midpoint", algorithm_type="dpmsolver++", **settings
        )
    scheduler.set_timesteps(len(schedule))
    scheduler.sigmas, scheduler.timesteps = schedule.sigmas.double(), schedule.timesteps
    scheduler.set_begin_index(0)
    steps = []
    for step in schedule.steps:
        x = scheduler.step(velocity(x, step), step.timestep, x, return_dict=False)[0]
        steps.append(x)
    return torch.stack(steps).float()


@pytest.mark.parametrize("shift", [1.0, 5.0, 17.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_other_step_counts_and_shifts_agree_with_the_public_implementation(solver, steps, shift):
    schedule = make_schedule(solver, steps, shift)
    ours, theirs = (run(solver, start(), schedule) for run in (_ours, diffusers_trajectory))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def _ours(solver, x, schedule):
    return trajectory(solver, velocity, x, schedule)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_a_table_of_another_scheduler_agrees_with_the_public_implementation(solver):
    schedule = from_sigmas(torch.tensor([0.97, 0.9, 0.6, 0.55, 0.1, 0.0]))
    ours, theirs = (run(solver, start(), schedule) for run in (_ours, diffusers_trajectory))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def gaussian_velocity(x, step):
    """The exact flow of data N(0.7, 0.4^2)."""
    alpha, sigma = 1 - step.sigma, step.sigma
    x0 = 0.7 + 0.16 * alpha / (0.16 * alpha**2 + sigma**2) * (x - alpha * 0.7)
    return (x - x0) / sigma


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("dpm++", 2), ("unipc", 2)])
def test_solvers_starting_at_exactly_1_converge_to_the_true_solution_at_their_order(solver, order):
    x = initial_noise((1, 4, 2, 3, 3), 5)
    end = 0.2  # the distance from the mean, over the deviation, is what the flow keeps
    truth = (1 - end) * 0.7 + (0.16 * (1 - end) ** 2 + end**2) ** 0.5 * x
    errors = []
    for steps in (16, 32, 64):
        schedule = from_sigmas(torch.linspace(1, end, steps + 1))
        errors.append((SOLVERS[solver](gaussian_velocity, x, schedule) - truth).abs().max().item())
    assert errors[0] < 0.1
    for coarse, fine in pairwise(errors):
        assert coarse / fine > 0.8 * 2**order


@pytest.mark.parametrize("solver", SOLVED)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shift", [0.5, 5.0, 100.0])
def test_every_solver_stays_finite_on_every_table(solver, schedule, shift):
    for steps in (1, 2, 3, 4, 20, 300):
        result = SOLVED[solver](velocity, start(), make_schedule(schedule, steps, shift))
        assert result.isfinite().all()
        assert result.abs().max() < 100


@pytest.mark.parametrize("solver", SOLVED)
def test_the_last_step_to_0_ends_exactly_at_the_estimate_of_the_clean_latent(solver):
    results = []
    SOLVED[solver](velocity, start(), make_schedule(DEFAULT_SCHEDULE[solver], 6, 5.0), on_step=results.append)
    assert torch.equal(results[-1].x, results[-1].x0)
    assert [(r.index, r.done, r.total) for r in results] == [(i, i + 1, 6) for i in range(6)]


@pytest.mark.parametrize(("shift", "steps"), [(12.0, 92), (17.0, 64), (12.0, 100)])
def test_equal_truncated_timesteps_cost_no_step(shift, steps):
    schedule = make_schedule("unipc", steps, shift)
    assert schedule.timesteps[0] == schedule.timesteps[1]
    seen = []

    def denoise(x, step):
        seen.append(step.index)
        return velocity(x, step)

    ours = trajectory("unipc", denoise, start(), schedule)
    assert seen == list(range(steps))
    torch.testing.assert_close(ours, diffusers_trajectory("unipc", start(), schedule), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_euler_in_two_runs_is_bit_equal_to_one(cut):
    whole = make_schedule("simple", 10, 8.0)
    once = SOLVERS["euler"](velocity, start(), whole)
    half = SOLVERS["euler"](velocity, start(), whole.slice(0, cut))
    assert torch.equal(SOLVERS["euler"](velocity, half, whole.slice(cut, 10)), once)
    carried = take_up(leave_off(half, whole.sigmas[cut].item()), whole.sigmas[cut].item())
    torch.testing.assert_close(SOLVERS["euler"](velocity, carried, whole.slice(cut, 10)), once, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", SOLVED)
def test_a_run_that_stops_early_has_made_the_first_steps_of_the_whole(solver):
    whole = make_schedule("simple", 10, 8.0)
    assert torch.equal(
        trajectory(solver, velocity, start(), whole.slice(0, 6)), trajectory(solver, velocity, start(), whole)[:6]
    )


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_solver_history_survives_the_change_of_expert(solver):
    schedule = make_schedule(solver, 8, 5.0)

    def other(x, step):
        return 0.5 * velocity(x, step) + 0.1

    def by_hand(x, step):
        return velocity(x, step) if step.index < 3 else other(x, step)

    pair = by_step(high=velocity, low=other, switch_step=3)
    one_run = SOLVERS[solver](pair, start(), schedule)
    assert torch.equal(one_run, SOLVERS[solver](by_hand, start(), schedule))
    half = SOLVERS[solver](velocity, start(), schedule.slice(0, 3))
    forgetful = SOLVERS[solver](other, half, schedule.slice(3, 8))
    assert (one_run - forgetful).abs().max() > 1e-3


def test_lcm_is_bit_equal_to_the_hosts_loop_with_the_hosts_noise():
    schedule = make_schedule("simple", 4, 8.0)
    generator = torch.Generator().manual_seed(12)
    x = start()
    for step in schedule.steps:
        x = x - velocity(x, step) * step.sigma
        if step.sigma_next > 0:
            x = step.sigma_next * torch.randn(x.shape, generator=generator) + (1.0 - step.sigma_next) * x
    ours = SOLVERS["lcm"](velocity, start(), schedule, noise=step_noise(11, "cpu"))
    torch.testing.assert_close(ours, x, atol=1e-6, rtol=0)


def test_lcm_without_noise_is_refused():
    with pytest.raises(ValueError, match="noise"):
        SOLVERS["lcm"](velocity, start(), make_schedule("simple", 4, 8.0))


@pytest.mark.parametrize("solver", SOLVED)
def test_the_latent_stays_float32_whatever_the_model_returns(solver):
    def denoise(x, step):
        assert x.dtype == torch.float32
        return velocity(x, step).bfloat16()

    assert SOLVED[solver](denoise, start(), make_schedule("simple", 4, 8.0)).dtype == torch.float32


def test_every_solver_has_a_schedule_of_its_own():
    assert DEFAULT_SCHEDULE.keys() == SOLVERS.keys()
    assert set(DEFAULT_SCHEDULE.values()) <= SCHEDULES.keys()
