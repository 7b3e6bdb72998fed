"""LoRAs on the model wire."""

from comfy_api.latest import io

from ..wan_core.sampling.loras import constant, parse_strength
from ..wan_core.stages.lora import add_lora
from .host import NONE, NodeRun, file_fingerprint, model_files, model_path
from .wires import Model

CATEGORY = "Wan Core/1 load"
FOLDER = "loras"
SAME = "same"
ROWS = range(1, 6)
ROW = ("lora_name", "strength", "low_noise_lora", "strength_low")


def _row(files: list[str], number: str = "") -> list[io.WidgetInput]:
    """The widgets of one LoRA; ``number`` ends their names."""
    return [
        io.Combo.Input(
            f"lora_name{number}",
            options=[NONE, *files],
            default=NONE,
            tooltip="The LoRA; on a Wan 2.2 14B pair, that of the high-noise expert.",
        ),
        io.Float.Input(
            f"strength{number}",
            default=1.0, min=-20.0, max=20.0, step=0.05,
            tooltip="How strong it is. Of a pair, on the high-noise expert. 0: off.",
        ),
        io.Combo.Input(
            f"low_noise_lora{number}",
            options=[SAME, NONE, *files],
            default=SAME,
            tooltip="The LoRA of the low-noise expert of a pair. same: the one above; none: no LoRA there.",
        ),
        io.Float.Input(
            f"strength_low{number}",
            default=1.0, min=-20.0, max=20.0, step=0.05,
            tooltip="How strong it is on the low-noise expert of a pair.",
        ),
    ]  # fmt: skip


def _add(run: NodeRun, model, lora_name, strength, low_noise_lora, strength_low, over_steps="", **more):
    """The model with one row's LoRA; as it came where none is chosen."""
    if low_noise_lora == SAME:
        low_noise_lora = lora_name if model.low is not None else NONE
    paths = [None if name == NONE else model_path(FOLDER, name) for name in (lora_name, low_noise_lora)]
    if paths == [None, None]:
        return model
    course = parse_strength(over_steps) if over_steps.strip() else constant(1.0)
    strengths = {"strength": course.scaled(strength), "strength_low": course.scaled(strength_low)}
    return add_lora(model, *paths, **strengths, **more, notify=run.notify)


def _finished(run: NodeRun, before, after) -> io.NodeOutput:
    if after is before:
        run.notify("No LoRA is chosen: the model goes on as it came.")
    return run.output(after)


class LoRA(io.ComfyNode):
    """One LoRA on a model, or on both experts of a pair. Chain the node for several."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreLoRA",
            display_name="Wan Core LoRA",
            category=CATEGORY,
            description="Puts a LoRA on the model and tells what was applied and what was not, and why.",
            inputs=[
                Model.Input("model"),
                *_row(model_files(FOLDER)),
                io.String.Input(
                    "over_steps",
                    default="",
                    optional=True,
                    tooltip="Multiplies the strengths over the steps: '0: 1, 4: 0.5' is full strength until step 4 and "
                    "half from there; '0%: 1, 50%: 0' switches it off half-way. Empty: the same in all steps.",
                ),
                io.String.Input(
                    "blocks",
                    default="",
                    optional=True,
                    tooltip="Which transformer blocks it may change, such as '0-9, 20'. Empty: all of the model.",
                ),
                io.Boolean.Input(
                    "strict", default=False, optional=True, tooltip="Every tensor of the file has to be used."
                ),
            ],
            outputs=[Model.Output(display_name="model", tooltip="The model with the LoRA on it.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name, low_noise_lora, **kwargs):
        return file_fingerprint(FOLDER, lora_name, low_noise_lora)

    @classmethod
    def execute(cls, model, **widgets) -> io.NodeOutput:
        run = NodeRun(cls)
        return _finished(run, model, _add(run, model, **widgets))


class LoRAStack(io.ComfyNode):
    """Several LoRAs on a model in one node."""

    @classmethod
    def define_schema(cls):
        files = model_files(FOLDER)
        return io.Schema(
            node_id="WanCoreLoRAStack",
            display_name="Wan Core LoRA Stack",
            category=CATEGORY,
            description="Puts up to five LoRAs on the model; their order changes nothing.",
            inputs=[Model.Input("model"), *(widget for number in ROWS for widget in _row(files, f"_{number}"))],
            outputs=[Model.Output(display_name="model", tooltip="The model with the LoRAs on it.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **widgets):
        names = [value for name, value in widgets.items() if name.startswith(("lora_name", "low_noise_lora"))]
        return file_fingerprint(FOLDER, *names)

    @classmethod
    def execute(cls, model, **widgets) -> io.NodeOutput:
        run = NodeRun(cls)
        made = model
        for number in ROWS:
            row = {name: widgets[f"{name}_{number}"] for name in ROW}
            made = _add(run, made, **row)
        return _finished(run, model, made)
