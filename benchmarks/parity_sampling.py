"""How schedules, solver steps and whole sampling runs are judged."""

import torch
from torch import Tensor, nn

from wan_core.sampling.experts import by_boundary, expert_names
from wan_core.sampling.given import GivenParts
from wan_core.sampling.guidance import guided, separately
from wan_core.sampling.sigmas import Schedule, Step, make_schedule
from wan_core.sampling.solvers import SOLVERS, Denoise

from .parity_golden import Expected, Golden, Results, dit, latent_spec, vae

TABLES = {
    "unipc": "unipc",
    "dpmpp": "dpm++",
    "euler": "dpm++",
    "comfy_simple": "simple",
    "diffusers_euler": "diffusers",
}
"""Name in the golden file -> our schedule."""
SOLVER_OF = {"unipc": "unipc", "dpmpp": "dpm++", "euler": "euler"}


def trajectory(solver: str, denoise: Denoise, x: Tensor, schedule: Schedule) -> Tensor:
    """``x`` after each step, stacked."""
    steps: list[Tensor] = []
    SOLVERS[solver](denoise, x, schedule, on_step=lambda result: steps.append(result.x))
    return torch.stack(steps)


def judge_schedulers(golden: Golden) -> Results:
    results: Results = {}
    for name in golden.expected:
        _, table, *parts, what = name.split(".")
        tag = ".".join(parts)  # a shift may hold a dot
        steps, shift = tag[1:].split("_shift")
        schedule = make_schedule(TABLES[table], int(steps), float(shift))
        if table == "euler":  # sigmas of the dpm++ table, timesteps not truncated
            schedule = Schedule(sigmas=schedule.sigmas, timesteps=schedule.sigmas[:-1] * 1000)
        if what == "traj":
            x = trajectory(SOLVER_OF[table], _analytic, golden.tensor("in.x_T"), schedule)
            results[name] = Expected(x, 1e-5)
        else:
            results[name] = Expected(getattr(schedule, what), 1e-6)
    return results


def _analytic(x: Tensor, step: Step) -> Tensor:
    """The model of the scheduler goldens: ``sin(1.3 x) (0.3 + t / 1000) - 0.2 x``."""
    return torch.sin(1.3 * x) * (0.3 + step.timestep / 1000) - 0.2 * x


def judge_pipeline(golden: Golden) -> Results:
    """Noise -> guided sampling (with one or two experts, or a clean first frame) -> video."""
    config = golden.config
    schedule = make_schedule(config["solver"].replace("dpmpp", "dpm++"), config["steps"], config["shift"])
    texts = [golden.tensor(name)[None] for name in ("in.context", "in.context_null")]
    noise = golden.tensor("in.noise")[None]
    decoder = vae(golden, config["vae"], "sd_vae.") if config.get("vae") else None
    given = _given_first_frame(golden, decoder, noise) if "in.image" in golden.names else None

    def one(prefix: str, guidance: float) -> Denoise:
        model = dit(golden, config["dit"], prefix)
        return guided(separately(lambda x, step, text: _predict(model, x, step, text, given)), *texts, guidance)

    boundary = config.get("boundary")
    low, high = config.get("guide_scale_low_high", [config.get("guide_scale")] * 2)
    if boundary is None:
        denoise = one("sd.", high)
    else:
        denoise = by_boundary(high=one("sd_high.", high), low=one("sd_low.", low), boundary=boundary)
    denoise = denoise if given is None else given.around(denoise)
    traj = trajectory(config["solver"].replace("dpmpp", "dpm++"), denoise, noise, schedule)
    traj = traj if given is None else torch.stack([given.impose(x) for x in traj])  # as official code keeps it
    results = {
        "out.traj": Expected(traj[:, 0], 5e-4),
        "out.sigmas": Expected(schedule.sigmas, 1e-6),
        "out.timesteps": Expected(schedule.timesteps, 1e-6),
    }
    if boundary is not None:
        used = [name == "high" for name in expert_names(schedule, boundary=boundary)]
        results["out.used_high"] = Expected(torch.tensor(used).long(), 0)
    if decoder is not None:
        video = decoder.decode(latent_spec(golden).denormalise(traj[-1])).clamp(-1, 1)
        results["out.video_clamped"] = Expected(video[0], 5e-4)
    return results


def _predict(model: nn.Module, x: Tensor, step: Step, text: Tensor, given: GivenParts | None) -> Tensor:
    t = x.new_full((1,), step.timestep) if given is None else given.timesteps(step.timestep, x)
    return model(x, t, text)


def _given_first_frame(golden: Golden, encoder: nn.Module, noise: Tensor) -> GivenParts:
    latent = latent_spec(golden).normalise(encoder.encode(golden.tensor("in.image")[None]))
    whole, made = torch.zeros_like(noise), torch.ones(1, 1, *noise.shape[2:])
    whole[:, :, : latent.shape[2]], made[:, :, : latent.shape[2]] = latent, 0
    return GivenParts(latent=whole, made=made)
