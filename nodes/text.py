"""Prompts -> CONDITIONING."""

from comfy_api.latest import io

from ..wan_core.stages import text
from ..wan_core.text.defaults import NEGATIVE_PROMPT
from .host import NodeRun
from .wires import ClipWire


class TextEncode(io.ComfyNode):
    """Positive and negative prompt in one node, read as the official code reads them."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreTextEncode",
            display_name="Wan Core Text Encode",
            category="Wan Core/2 encode",
            description="Encodes what you want to see and what you do not. Each prompt may be up to 512 tokens long.",
            inputs=[
                io.Clip.Input("clip", tooltip="The umT5 text encoder."),
                io.String.Input(
                    "positive",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What the video shows. English and Chinese work best.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default=NEGATIVE_PROMPT,
                    tooltip="What it must not show. The text given here is the official one of Wan.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="positive"), io.Conditioning.Output(display_name="negative")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, positive, negative) -> io.NodeOutput:
        run = NodeRun(cls)
        prompts = (positive, negative)
        if not isinstance(clip, ClipWire):  # the native loader's: read the prompts as native nodes do
            return run.output(*(clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts))
        encoded = (text.encode_text(clip.handle, prompt, run.ports) for prompt in prompts)
        return run.output(*([[context, {"pooled_output": None}]] for context in encoded))
