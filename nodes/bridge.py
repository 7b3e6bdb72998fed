"""Our model on a native MODEL wire: ComfyUI's own samplers ask, our runtime answers.

The native model object stays what it is (conditions, schedule, latent format, guidance and wrappers are ComfyUI's);
only its network is replaced, by one that holds no weights and asks a :class:`~..wan_core.stages.predict.Predictor`.
What would need native weights or layers is refused in a sentence. Beside ``host.py`` the only file that imports the
host: its classes are what native samplers and nodes accept.
"""

import comfy.conds
import comfy.hooks
import comfy.model_base
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..wan_core.errors import InputError, MismatchError
from ..wan_core.models.dit import VaceControl
from ..wan_core.sampling.guidance_options import PLAIN
from ..wan_core.stages.load import ModelHandle
from ..wan_core.stages.predict import Asked, Predictor
from ..wan_core.variants import Feature, WanVariant
from .host import NodeRun, host_ports
from .native_wires import VACE_OURS
from .wires import Model

WHO = "This MODEL is run by Wan Core"
PATCHES = (
    f"{WHO}: native nodes cannot read or change its weights. Add LoRAs with the Wan Core LoRA node, before Wan Core "
    "Model to MODEL; for anything else load the file with native Load Diffusion Model."
)
HOOKS = (
    f"{WHO}: hooks cannot change its weights. Add LoRAs with the Wan Core LoRA node, before Wan Core Model to MODEL; "
    "its over_steps changes their strength over the steps."
)
MERGE = f"{WHO}: its weights cannot be merged with others. Load both with native Load Diffusion Model for that."
SAVE = f"{WHO}: it cannot be saved. It is the file that Wan Core Load Model read; LoRAs of it are files of their own."
LAYERS = (
    f"{WHO}: native nodes cannot change its attention, blocks or positions. Choose the attention with the Wan Core "
    "Memory node, before Wan Core Model to MODEL, or remove the node."
)
NETWORK = (
    f"{WHO}: its network cannot be compiled or taken apart by native nodes. Remove the torch.compile node (Wan Core's "
    "kernels are fused already), or load the file with native Load Diffusion Model."
)
PRECISION = f"{WHO}: what it computes in is chosen in Wan Core Load Model (precision). Remove the node."
CARDS = f"{WHO}: it computes on one device. Remove the multi-GPU node."
CONTROL = f"{WHO}: it takes no ControlNet. Remove the node that applies it, or load the file with native nodes."
TRAINING = f"{WHO}: it cannot be copied or trained by native nodes. Train with Wan Core Train LoRA."

TAKEN: dict[Feature | None, frozenset[str]] = {
    None: frozenset({"denoise_mask"}),  # the native sampler blends; of the 5B it is in the timesteps already
    Feature.REFERENCE: frozenset({"reference_latent"}),
    Feature.CAMERA: frozenset({"camera_conditions"}),
    Feature.VACE: frozenset({"vace_context", "vace_strength"}),
}
"""Of what a native model hands to its network, the part that a model with a feature takes."""
NEEDS: dict[str, frozenset[Feature]] = {
    "concat_latent_image": frozenset({Feature.CONCAT, Feature.START, Feature.CONTROL}),
    "reference_latents": frozenset({Feature.REFERENCE}),
    "camera_conditions": frozenset({Feature.CAMERA}),
    "vace_frames": frozenset({Feature.VACE}),
}
"""Key of a conditioning -> the features of which a model needs one. Native models drop what they do not take."""
FOREIGN = (
    "audio_embed", "control_video", "reference_motion", "face_video_pixels", "pose_video_latent", "context_latents",
    "cross_attn_pose", "clip_vision_output_pose", "clip_vision_output_ref", "pose_strength", "reference_strength",
    "driving_mask_28ch",
)  # fmt: skip
"""Keys that native nodes write for models that Wan Core does not have."""
CHANGES_LAYERS = ("patches", "patches_replace", "optimized_attention_override", "rope_options", "animate2_cache")
"""Keys of ``transformer_options`` that native nodes also set without asking the model."""


def _refuses(sentence: str):
    """A method that does nothing but say why not."""

    def refuse(self, *args, **kwargs):
        raise MismatchError(sentence)

    return refuse


def _taken(variant: WanVariant) -> frozenset[str]:
    return frozenset().union(*(TAKEN.get(feature, frozenset()) for feature in variant.features))


def _check_conditioning(entry: dict, variant: WanVariant) -> None:
    """Refuse what the model would drop: one entry of a conditioning, as the native sampler hands it over."""
    dropped = [key for key, features in NEEDS.items() if not features & variant.features] + list(FOREIGN)
    dropped += ["time_dim_concat"] if variant.features else []
    carried = sorted(key for key in dropped if entry.get(key) is not None)
    if carried:
        raise MismatchError(
            f"The conditioning carries {', '.join(carried)}, which {variant.title} does not take. Remove the node that "
            "adds it, or load the model that it is for."
        )
    image = entry.get("concat_latent_image")
    if image is not None and Feature.CONTROL not in variant.features and image.shape[1] > variant.latent.channels:
        raise MismatchError(  # of which a native model would take the first half for its picture
            f"The conditioning carries a control video (concat_latent_image of {image.shape[1]} channels), but "
            f"{variant.title} takes none. Load a Fun Control model, or remove the control node."
        )
    if any((start, end) != (0.0, 1.0) for start, end, _ in entry.get(VACE_OURS) or ()):
        raise MismatchError(
            "A VACE context that counts in a part of the steps: native samplers do not count them. Set start_percent "
            "and end_percent to 0 and 1, or use the Wan Core Sampler."
        )


class Network(torch.nn.Module):
    """Stands where native ComfyUI has the network. It has no weights: the runtime has them."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        cfg = predictor.model.variant.dit
        self.dtype = torch.float32
        """What is handed to it; it casts by itself."""
        self.patch_embedding = torch.nn.Module()
        self.patch_embedding.weight = torch.empty(cfg.dim, cfg.in_dim, *cfg.patch, device="meta")
        """Native code reads from its shape how many channels go in."""
        self.patch_size, self.dim, self.in_dim, self.out_dim = cfg.patch, cfg.dim, cfg.in_dim, cfg.out_dim
        self.predictor = predictor

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(f"{NETWORK} ('{name}' was asked for.)") from None

    def forward(
        self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, control=None, **more
    ):
        """As the native network, with its wrappers; more conditions than the model has are refused by name."""
        options = {} if transformer_options is None else transformer_options
        if context is None:
            raise MismatchError("A conditioning without a text: Wan has none. Connect a Text Encode node to each side.")
        given = {name: value for name, value in more.items() if value is not None}
        unknown = given.keys() - TAKEN[None] - _taken(self.predictor.model.variant)
        if control is not None:
            raise MismatchError(CONTROL)
        if unknown:
            raise MismatchError(
                f"The conditioning carries {', '.join(sorted(unknown))}, which Wan Core's model does not take. Remove "
                "the node that adds it, or load the file with native Load Diffusion Model."
            )
        if any(options.get(name) for name in CHANGES_LAYERS):
            raise MismatchError(LAYERS)
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, options)
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        return run.execute(x, timestep, context, clip_fea, time_dim_concat, options, **given)

    def _predict(
        self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None,
        reference_latent=None, camera_conditions=None, vace_context=None, vace_strength=(), **more,
    ):  # fmt: skip
        options = transformer_options or {}
        sigma = options.get("sigmas")
        contexts = () if vace_context is None else vace_context.unbind(1)
        asked = Asked(
            x=x,
            t=timestep,
            text=context,
            clip=clip_fea,
            reference=reference_latent,
            camera=camera_conditions,
            vace=tuple(
                VaceControl(context=context, strength=float(strength))
                for context, strength in zip(contexts, vace_strength, strict=True)
            ),
            subjects=time_dim_concat,
            sigma=None if sigma is None else sigma.max(),
            sigmas=options.get("sample_sigmas"),
        )
        return self.predictor.predict(asked)


class _Bridged:
    """What differs from a native model: memory is the runtime's, weights are nobody's to read, and no condition that
    the model does not take is dropped."""

    def extra_conds(self, **kwargs):
        """What native samplers make of a conditioning, a camera path too."""
        _check_conditioning(kwargs, self.diffusion_model.predictor.model.variant)
        made = super().extra_conds(**kwargs)
        if kwargs.get("camera_conditions") is not None:
            made["camera_conditions"] = comfy.conds.CONDRegular(kwargs["camera_conditions"])
        return made

    def memory_required(self, input_shape, cond_shapes=None) -> int:
        """Native samplers ask before they load anything, and then whether both sides of guidance fit as one batch."""
        predictor = self.diffusion_model.predictor
        variant = predictor.model.variant
        if len(input_shape) != 5 or input_shape[1] != variant.latent.channels:
            raise MismatchError(
                f"The latent is {list(input_shape)[1:]} (channels, frames, height, width); {variant.title} takes "
                f"{variant.latent.channels} channels. Make it with Wan Core Empty Latent from this model, or encode "
                f"with the {variant.latent.vae}."
            )
        batch, _, *size = input_shape
        return predictor.smallest_work_bytes(batch, *size)

    state_dict = _refuses(PATCHES)
    load_state_dict = _refuses(PATCHES)
    state_dict_for_saving = _refuses(SAVE)


class BridgedWan21(_Bridged, comfy.model_base.WAN21):
    """Conditions as for native Wan 2.1, and for the pairs of Wan 2.2."""


class BridgedWan22(_Bridged, comfy.model_base.WAN22):
    """Conditions as for native Wan 2.2 5B: given frames in the latent."""


class BridgedVace(_Bridged, comfy.model_base.WAN21_Vace):
    """Conditions as for native VACE models."""


class Patcher(comfy.model_patcher.ModelPatcher):
    """A native MODEL without weights of its own. Clones, schedules, guidance functions and wrappers work."""

    add_patches = _refuses(PATCHES)
    get_key_patches = _refuses(MERGE)
    model_state_dict = _refuses(PATCHES)
    state_dict_for_saving = _refuses(SAVE)
    add_hook_patches = _refuses(HOOKS)
    add_weight_wrapper = _refuses(PATCHES)
    set_injections = _refuses(PATCHES)
    set_model_patch = _refuses(LAYERS)
    set_model_patch_replace = _refuses(LAYERS)
    set_model_optimized_attention = _refuses(LAYERS)
    set_model_rope_options = _refuses(LAYERS)
    set_model_compute_dtype = _refuses(PRECISION)
    deepclone_multigpu = _refuses(CARDS)

    def clone(self, *args, force_deepcopy=False, **kwargs):
        if force_deepcopy:
            raise MismatchError(TRAINING)
        return super().clone(*args, **kwargs)

    def register_all_hook_patches(self, hooks, *args, **kwargs):
        if hooks.get_type(comfy.hooks.EnumHookType.Weight):
            raise MismatchError(HOOKS)
        return super().register_all_hook_patches(hooks, *args, **kwargs)

    def add_object_patch(self, name, obj) -> None:
        if name.split(".")[0] == "diffusion_model":
            raise MismatchError(LAYERS)
        if name == "manual_cast_dtype":
            raise MismatchError(PRECISION)
        super().add_object_patch(name, obj)

    def get_model_object(self, name):
        if name.split(".")[0] == "diffusion_model":
            raise MismatchError(NETWORK)
        return super().get_model_object(name)

    def cleanup(self) -> None:
        """The end of every native run, by an error or a cancel too: the device is given back."""
        self.model.diffusion_model.predictor.close()
        super().cleanup()

    def detach(self, unpatch_all=True):
        if unpatch_all:
            self.model.diffusion_model.predictor.close()
        return super().detach(unpatch_all)


def to_native(model: ModelHandle, side: str | None = None, boundary: float | None = None) -> Patcher:
    """The model as native ComfyUI takes it. Nothing is read; weights are shared with every other use of the handle.

    Args:
        side: ``high`` or ``low``: one expert of a pair alone. None: the model, or both experts changed by noise level.
        boundary: sigma at and above which the high-noise expert works; None: the model's own.
    """
    predictor = Predictor(model, host_ports(), side=side, boundary=boundary)
    made = _native_model(model.variant)
    made.diffusion_model = Network(predictor)
    home = torch.device("cpu")
    made.device = home
    return Patcher(made, load_device=predictor.device, offload_device=home, size=1)  # 0 would be counted


def _native_model(variant: WanVariant) -> comfy.model_base.BaseModel:
    """The native object of a variant, without a network."""
    cfg = variant.dit
    concat = Feature.CONCAT in variant.features and not {Feature.CONTROL, Feature.CAMERA} & variant.features
    config = {
        "image_model": "wan2.1", "model_type": "i2v" if concat else "t2v", "dim": cfg.dim, "ffn_dim": cfg.ffn_dim,
        "num_heads": cfg.num_heads, "num_layers": cfg.num_layers, "in_dim": cfg.in_dim, "out_dim": cfg.out_dim,
        "patch_size": cfg.patch, "disable_unet_model_creation": True,
    }  # fmt: skip
    if variant.latent.clean_frames:
        return BridgedWan22(comfy.supported_models.WAN22_T2V(config), image_to_video=True)
    if Feature.VACE in variant.features:
        return BridgedVace(comfy.supported_models.WAN21_Vace(config))
    row = comfy.supported_models.WAN21_I2V if concat else comfy.supported_models.WAN21_T2V
    return BridgedWan21(row(config), image_to_video=concat)


class ToModel(io.ComfyNode):
    """The door to native samplers, schedulers and guiders."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreToModel",
            display_name="Wan Core Model to MODEL",
            category="Wan Core/3 sample",
            description="Lets ComfyUI's own samplers, schedulers and guiders run a Wan Core model, with its LoRAs and "
            "its memory. LoRA, torch.compile, merge and patch nodes of ComfyUI do not work on it.",
            inputs=[
                Model.Input("model"),
                io.Float.Input(
                    "boundary",
                    default=0.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Noise level at which a pair changes to the low-noise expert. 0: the model's own (0.875 or "
                    "0.9).",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL", tooltip="For one native sampler; a pair's experts are changed inside."
                ),
                io.Model.Output(
                    display_name="high_noise", tooltip="A pair's high-noise expert, for the first of two samplers."
                ),
                io.Model.Output(
                    display_name="low_noise", tooltip="A pair's low-noise expert, for the second of two samplers."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, boundary) -> io.NodeOutput:
        run = NodeRun(cls)
        if not 0 <= boundary <= 1:  # true for NaN too
            raise InputError(f"boundary must be from 0 (the model's own) to 1; got {boundary}. Wan uses 0.9.")
        both = to_native(model, boundary=boundary or None)
        if model.guidance != PLAIN:
            run.notify(
                "The guidance nodes on this model do nothing here: guidance is the native sampler's. Use the Wan Core "
                "Sampler for them."
            )
        if model.low is None:
            stop = ExecutionBlocker(
                f"{model.name} is one model, not a pair: it has no experts by themselves. Connect the output MODEL."
            )
            return run.output(both, stop, stop)
        level = boundary or model.variant.boundary
        run.notify(
            f"MODEL changes from {model.high.name} to {model.low.name} below noise level {level:g}; high_noise and "
            "low_noise are the experts by themselves, for two samplers."
        )
        return run.output(both, to_native(model, side="high"), to_native(model, side="low"))
