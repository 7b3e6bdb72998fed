"""Whole runs with a tiny transformer against the official pipelines: schedule, guidance, experts, clean first frame."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from wan_core.configs import DitConfig
from wan_core.models.dit import WanDiT
from wan_core.sampling.experts import by_boundary, expert_names
from wan_core.sampling.given import GivenParts
from wan_core.sampling.guidance import guided, separately
from wan_core.sampling.sigmas import make_schedule
from wan_core.sampling.solvers import SOLVERS

GOLDENS = Path(__file__).parents[2] / "goldens"
ATOL = 5e-4


class Golden:
    """A pipeline file: tensors, config and the models it holds."""

    def __init__(self, name: str):
        with safe_open(GOLDENS / f"{name}.safetensors", "pt") as file:
            self.config = json.loads(file.metadata()["config"])
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def denoise(self, scale: float, prefix: str = "sd", timesteps=None):
        """The guided model; ``timesteps(step)`` gives one per token where the sample has a clean frame."""
        model = WanDiT(DitConfig(**self.config["dit"])).eval().requires_grad_(False)
        weights = {key.removeprefix(f"{prefix}."): value for key, value in self.tensors.items()}
        model.load_state_dict({key: weights[key] for key in model.state_dict()})

        def predict(x, step, text):
            t = torch.tensor([step.timestep]) if timesteps is None else timesteps(step)
            return model(x, t, text[None])

        return guided(separately(predict), self["in.context"], self["in.context_null"], scale)

    def run(self, denoise, x, shown=lambda x: x):
        schedule = make_schedule(self.config["solver"], self.config["steps"], self.config["shift"])
        assert schedule.timesteps.long().tolist() == self["out.timesteps"].tolist()
        steps = []
        SOLVERS[self.config["solver"]](denoise, x, schedule, on_step=lambda r: steps.append(shown(r.x)[0]))
        torch.testing.assert_close(torch.stack(steps), self["out.traj"], atol=ATOL, rtol=0)
        return schedule


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_text_to_video_follows_the_official_run(one_thread):
    golden = Golden("pipeline_t2v")
    schedule = golden.run(golden.denoise(golden.config["guide_scale_low_high"][1]), golden["in.noise"][None])
    torch.testing.assert_close(schedule.sigmas, golden["out.sigmas"], atol=1e-6, rtol=0)


def test_two_experts_follow_the_official_run_across_the_switch(one_thread):
    golden = Golden("pipeline_moe_t2v")
    guidance_low, guidance_high = golden.config["guide_scale_low_high"]
    boundary = golden.config["boundary"]
    high, low = golden.denoise(guidance_high, "sd_high"), golden.denoise(guidance_low, "sd_low")
    schedule = golden.run(by_boundary(high=high, low=low, boundary=boundary), golden["in.noise"][None])
    used_high = [name == "high" for name in expert_names(schedule, boundary=boundary)]
    assert used_high == golden["out.used_high"].bool().tolist()


def test_a_clean_first_frame_follows_the_official_run(one_thread):
    golden = Golden("pipeline_ti2v_image")
    noise = golden["in.noise"][None]
    made, latent = torch.ones(1, 1, *noise.shape[2:]), torch.zeros_like(noise)
    made[:, :, :1], latent[:, :, :1] = 0, golden["inter.z"][None]
    given = GivenParts(latent=latent, made=made)
    denoise = golden.denoise(golden.config["guide_scale"], timesteps=lambda step: given.timesteps(step.timestep, noise))
    golden.run(given.around(denoise), noise, given.impose)
