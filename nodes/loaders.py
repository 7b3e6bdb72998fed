"""Model files -> wires."""

from comfy_api.latest import io

from ..wan_core.stages import load
from ..wan_core.variants import VARIANTS
from .host import NONE, NodeRun, compute, file_fingerprint, model_files, model_path, vae_files, vae_folder
from .wires import ClipVisionWire, ClipWire, Model, VaeWire

CATEGORY = "Wan Core/1 load"
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
PRECISIONS = ["auto", "fp32", "bf16", "fp16"]
"""umT5 has no fp16: it leaves its range."""


def _warn_of_pickle(run: NodeRun, *names: str) -> None:
    for name in names:
        if name.lower().endswith(PICKLES):
            run.notify(
                f"{name} is a pickle: it is read whole at once. Convert it to safetensors, from the pack's folder: "
                "python -m wan_core.weights.convert IN.pth OUT.safetensors"
            )


def _precision_input(options: list[str] = PRECISIONS) -> io.Combo.Input:
    return io.Combo.Input(
        "precision",
        options=options,
        default="auto",
        tooltip="What it computes in. auto: the best for the file and this machine.",
    )


class LoadModel(io.ComfyNode):
    """A diffusion model, or the two experts of a Wan 2.2 pair, as one wire."""

    @classmethod
    def define_schema(cls):
        files = model_files("diffusion_models")
        return io.Schema(
            node_id="WanCoreLoadModel",
            display_name="Wan Core Load Model",
            category=CATEGORY,
            description="Loads a Wan 2.1 or 2.2 diffusion model, or both experts of a Wan 2.2 14B pair as one model.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=files,
                    tooltip="The model file; of a Wan 2.2 14B pair, the high-noise file.",
                ),
                io.Combo.Input(
                    "low_noise_model",
                    options=[NONE, *files],
                    default=NONE,
                    tooltip="The low-noise file of a Wan 2.2 14B pair; 'none' for every other model.",
                ),
                io.Combo.Input(
                    "variant",
                    options=["auto", *(row.name for row in VARIANTS)],
                    default="auto",
                    tooltip="Which model it is. auto: read from the file. It decides the sampler's defaults.",
                ),
                _precision_input(),
                io.Combo.Input(
                    "module_name",
                    options=[NONE, *files],
                    default=NONE,
                    optional=True,
                    tooltip="A file of VACE blocks alone, for a T2V model; of a pair, for the high-noise file.",
                ),
                io.Combo.Input(
                    "low_noise_module",
                    options=[NONE, *files],
                    default=NONE,
                    optional=True,
                    tooltip="The file of VACE blocks for the low-noise file. none: module_name is added to both.",
                ),
            ],
            outputs=[Model.Output(display_name="model", tooltip="The model, for the Wan Core sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name, low_noise_model, module_name=NONE, low_noise_module=NONE, **kwargs):
        return file_fingerprint("diffusion_models", model_name, low_noise_model, module_name, low_noise_module)

    @classmethod
    def execute(
        cls, model_name, low_noise_model, variant, precision, module_name=NONE, low_noise_module=NONE
    ) -> io.NodeOutput:
        run = NodeRun(cls)
        _warn_of_pickle(run, model_name, low_noise_model, module_name, low_noise_module)
        names = {"low_noise_path": low_noise_model, "module": module_name, "low_noise_module": low_noise_module}
        paths = {slot: None if name == NONE else model_path("diffusion_models", name) for slot, name in names.items()}
        handle = load.load_model(
            model_path("diffusion_models", model_name),
            **paths,
            variant=variant,
            compute=compute("dit"),
            dtype=precision,
            notify=run.notify,
        )
        return run.output(handle)


class LoadTextEncoder(io.ComfyNode):
    """umT5 as CLIP."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreLoadTextEncoder",
            display_name="Wan Core Load Text Encoder",
            category=CATEGORY,
            description="Loads the umT5 text encoder that all Wan models share.",
            inputs=[
                io.Combo.Input(
                    "text_encoder_name",
                    options=model_files("text_encoders"),
                    tooltip="A umT5-XXL file, for example umt5_xxl_fp8_e4m3fn_scaled.safetensors.",
                ),
                _precision_input(["auto", "fp32", "bf16"]),
            ],
            outputs=[io.Clip.Output(display_name="text encoder")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, text_encoder_name, **kwargs):
        return file_fingerprint("text_encoders", text_encoder_name)

    @classmethod
    def execute(cls, text_encoder_name, precision) -> io.NodeOutput:
        run = NodeRun(cls)
        _warn_of_pickle(run, text_encoder_name)
        path = model_path("text_encoders", text_encoder_name)
        handle = load.load_text_encoder(path, compute=compute("umt5"), dtype=precision)
        return run.output(ClipWire(handle))


class LoadVAE(io.ComfyNode):
    """A Wan VAE, or a tiny one that only decodes."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreLoadVAE",
            display_name="Wan Core Load VAE",
            category=CATEGORY,
            description="Loads the Wan 2.1 VAE (all models but the 5B) or the Wan 2.2 VAE (the 5B model).",
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=vae_files(),
                    tooltip="wan_2.1_vae for every model but the 5B, wan2.2_vae for the 5B. taew2 and lighttaew2 files "
                    "decode quickly and only about right.",
                ),
                _precision_input(),
            ],
            outputs=[io.Vae.Output(display_name="VAE")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_name, **kwargs):
        return file_fingerprint(vae_folder(vae_name), vae_name)

    @classmethod
    def execute(cls, vae_name, precision) -> io.NodeOutput:
        run = NodeRun(cls)
        _warn_of_pickle(run, vae_name)
        path = model_path(vae_folder(vae_name), vae_name)
        handle = load.load_vae(path, compute=compute("vae"), dtype=precision, notify=run.notify)
        return run.output(VaeWire(handle))


class LoadCLIPVision(io.ComfyNode):
    """The CLIP image encoder of Wan 2.1 image models."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreLoadCLIPVision",
            display_name="Wan Core Load CLIP Vision",
            category=CATEGORY,
            description="Loads the CLIP ViT-H image encoder. Only Wan 2.1 image-to-video models take it.",
            inputs=[
                io.Combo.Input(
                    "clip_vision_name",
                    options=model_files("clip_vision"),
                    tooltip="The ViT-H image encoder, for example clip_vision_h.safetensors.",
                ),
                _precision_input(),
            ],
            outputs=[io.ClipVision.Output(display_name="CLIP vision")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, clip_vision_name, **kwargs):
        return file_fingerprint("clip_vision", clip_vision_name)

    @classmethod
    def execute(cls, clip_vision_name, precision) -> io.NodeOutput:
        run = NodeRun(cls)
        _warn_of_pickle(run, clip_vision_name)
        path = model_path("clip_vision", clip_vision_name)
        handle = load.load_clip_vision(path, compute=compute("clip_vision"), dtype=precision)
        return run.output(ClipVisionWire(handle))
