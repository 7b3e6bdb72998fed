"""LATENT, conditions and model -> LATENT."""

from comfy_api.latest import io

from ..wan_core.sampling.sigmas import SCHEDULES
from ..wan_core.sampling.solvers import SOLVERS
from ..wan_core.stages import sample
from .host import NodeRun
from .native_wires import read_conditioning, read_latent, write_latent
from .preflight import check_decoder
from .wires import Model

MAX_STEPS = 1000


class Sampler(io.ComfyNode):
    """One sampler for every model; a pair's experts are switched inside."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreSampler",
            display_name="Wan Core Sampler",
            category="Wan Core/3 sample",
            description="Makes the video. Every 0 means: what the model was made for. The node tells what it chose.",
            inputs=[
                Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent"),
                *_widgets(),
                io.Sigmas.Input(
                    "sigmas", optional=True, tooltip="A schedule of your own; steps, shift and denoise are then unused."
                ),
                # Optional, as everything that is added must be: jobs saved without it go on running.
                io.Boolean.Input(
                    "add_noise",
                    default=True,
                    optional=True,
                    tooltip="Off: the latent already holds the noise of the first step, as after a split of sigmas.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent, sigmas=None, **widgets) -> io.NodeOutput:
        run = NodeRun(cls)
        check_decoder(cls.hidden.prompt, run.node_id, model.variant)
        widgets["guidance_high"] = widgets.pop("guidance")
        settings = sample.Settings(**widgets, sigmas=sigmas)
        samples = sample.sample(
            model,
            read_conditioning(positive, "positive"),
            read_conditioning(negative, "negative"),
            read_latent(latent),
            settings,
            run.ports,
        )
        return run.output(write_latent(latent, samples, model.variant.defaults.fps))


def _widgets() -> list[io.WidgetInput]:
    # fmt: off
    return [
        io.Int.Input(
            "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip="Equal seeds, equal noise."
        ),
        io.Int.Input("steps", default=0, min=0, max=MAX_STEPS, tooltip="0: the model's own (40 or 50)."),
        io.Float.Input(
            "guidance",
            default=0.0, min=0.0, max=30.0, step=0.1,
            tooltip="How strictly the prompt is followed (CFG); of a pair, in the high-noise steps. 0: the model's "
            "own. 1: no second pass, for distilled models.",
        ),
        io.Float.Input(
            "guidance_low",
            default=0.0, min=0.0, max=30.0, step=0.1,
            tooltip="Guidance in a pair's low-noise steps. 0: as guidance, or the model's own.",
        ),
        io.Float.Input(
            "shift",
            default=0.0, min=0.0, max=100.0, step=0.1,
            tooltip="Time shift of the schedule. 0: the model's own.",
        ),
        io.Combo.Input("solver", options=list(SOLVERS), default="unipc", tooltip="unipc is the official one."),
        io.Combo.Input(
            "schedule",
            options=[sample.AUTO, *SCHEDULES],
            default=sample.AUTO,
            tooltip="The noise levels of the steps. auto: the one that belongs to the solver.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0, min=0.01, max=1.0, step=0.01,
            tooltip="Below 1 the latent that comes in is changed by this share instead of being made anew.",
        ),
        io.Int.Input(
            "start_step", default=0, min=0, max=MAX_STEPS,
            tooltip="Begin at this step, with a latent that another sampler left there (no noise is added).",
        ),
        io.Int.Input(
            "end_step", default=10000, min=1, max=10000,
            tooltip="Stop after this step; a latent with noise left goes to the next sampler.",
        ),
        io.Float.Input(
            "boundary", default=0.0, min=0.0, max=1.0, step=0.001,
            tooltip="Noise level at which a pair changes to the low-noise expert. 0: the model's own (0.875 or 0.9).",
        ),
        io.Int.Input(
            "switch_step", default=0, min=0, max=MAX_STEPS,
            tooltip="Change to the low-noise expert at this step instead. 0: by boundary.",
        ),
    ]
    # fmt: on
