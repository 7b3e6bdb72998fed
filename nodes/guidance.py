"""Extras of guidance on the model wire. Each node adds one; chain them in any order."""

from comfy_api.latest import io

from ..wan_core.stages import guidance as stage
from .host import NodeRun
from .wires import Model

CATEGORY = "Wan Core/3 sample"


def _outputs() -> list[io.Output]:
    return [Model.Output(display_name="model", tooltip="The model, to be guided like this.")]


def _finished(run: NodeRun, model) -> io.NodeOutput:
    run.notify(stage.described(model.guidance))
    return run.output(model)


class GuidanceOverSteps(io.ComfyNode):
    """A guidance for each step."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreGuidanceOverSteps",
            display_name="Wan Core Guidance over Steps",
            category=CATEGORY,
            description="A guidance for each step, in place of the sampler's guidance and guidance_low.",
            inputs=[
                Model.Input("model"),
                io.String.Input(
                    "guidance",
                    default="0%: 5, 50%: 1",
                    tooltip="'0: 6, 4: 3.5' is 6 until step 4 and 3.5 from there; '0%: 5, 50%: 1' counts in parts of "
                    "the run; '6, 5, 4' is one for each step, the last goes on. 1: no second pass, half the time. "
                    "Empty: as the sampler is set.",
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, guidance) -> io.NodeOutput:
        return _finished(NodeRun(cls), stage.guidance_over_steps(model, guidance))


class GuidanceCFGZero(io.ComfyNode):
    """CFG-Zero*."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreGuidanceCFGZero",
            display_name="Wan Core CFG-Zero*",
            category=CATEGORY,
            description="CFG-Zero*: rescales the negative side of guidance, and lets the first steps stand still.",
            inputs=[
                Model.Input("model"),
                io.Boolean.Input(
                    "rescale",
                    default=True,
                    tooltip="The negative side is scaled to be as near to the positive as it can be, in every step.",
                ),
                io.Int.Input(
                    "zero_steps",
                    default=1, min=0, max=stage.MAX_ZERO_STEPS,
                    tooltip="So many first steps of the run change nothing and take no time. 1 is usual for text to "
                    "video, 0 or 1 with a start image, 0 for few-step models.",
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, rescale, zero_steps) -> io.NodeOutput:
        return _finished(NodeRun(cls), stage.cfg_zero_star(model, rescale, zero_steps))


class GuidanceSkipBlocks(io.ComfyNode):
    """Skip-layer guidance."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreGuidanceSkipBlocks",
            display_name="Wan Core Skip-Layer Guidance",
            category=CATEGORY,
            description="Guides away from the model without some of its blocks (SLG, STG): cleaner shapes and motion.",
            inputs=[
                Model.Input("model"),
                io.String.Input(
                    "blocks",
                    default="9",
                    tooltip="Blocks to skip, from 0: '9' or '9, 10' or '8-10'. Usual: 9 or 10. Empty: none, off.",
                ),
                io.Float.Input(
                    "start",
                    default=0.1, min=0.0, max=1.0, step=0.01,
                    tooltip="Begin after this part of the run's steps.",
                ),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="End at this part of them."),
                io.Float.Input(
                    "scale",
                    default=0.0, min=0.0, max=stage.MAX_SCALE, step=0.1,
                    tooltip="0: the negative pass skips the blocks, which costs nothing (needs guidance above 1). "
                    "Above 0: a pass more, this strong; 1 to 3 is usual. It works at guidance 1 too.",
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, blocks, start, end, scale) -> io.NodeOutput:
        return _finished(NodeRun(cls), stage.skip_blocks(model, blocks, start, end, scale))


class GuidanceNAG(io.ComfyNode):
    """Normalised attention guidance."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreGuidanceNAG",
            display_name="Wan Core NAG",
            category=CATEGORY,
            description="NAG: a negative prompt that works at guidance 1 too, as for distilled models.",
            inputs=[
                Model.Input("model"),
                io.Float.Input(
                    "scale",
                    default=11.0, min=1.0, max=stage.MAX_SCALE, step=0.1,
                    tooltip="How far to go away from the negative prompt. 1: off. 11 is usual for Wan.",
                ),
                io.Float.Input(
                    "tau",
                    default=2.5, min=0.01, max=stage.MAX_SCALE, step=0.01,
                    tooltip="How many times longer than without guidance a result may get.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.25, min=0.0, max=1.0, step=0.01,
                    tooltip="How much of the guided result is taken. 0: off.",
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, scale, tau, alpha) -> io.NodeOutput:
        return _finished(NodeRun(cls), stage.nag(model, scale, tau, alpha))
