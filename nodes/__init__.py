"""The extension: THE list of nodes. Ids are for ever, widgets are only ever appended."""

from pathlib import Path

from comfy_api.latest import ComfyExtension, io

from .bridge import ToModel
from .edit import InpaintMask, SubjectPictures
from .fun import CameraControl, CameraPath, FunControl
from .guidance import GuidanceCFGZero, GuidanceNAG, GuidanceOverSteps, GuidanceSkipBlocks
from .host import add_model_folders
from .image import CLIPVisionEncode, ImageToVideo
from .latent import EmptyLatent, VAEDecode, VAEEncode
from .loaders import LoadCLIPVision, LoadModel, LoadTextEncoder, LoadVAE
from .lora import LoRA, LoRAStack
from .memory import Memory, Plan
from .sampling import Sampler
from .text import TextEncode
from .training import TrainingData, TrainLoRA
from .vace import Vace
from .video import LoadVideoLatent, SaveVideo

NODES: list[type[io.ComfyNode]] = [
    LoadModel,
    LoadTextEncoder,
    LoadVAE,
    LoadCLIPVision,
    TextEncode,
    CLIPVisionEncode,
    EmptyLatent,
    ImageToVideo,
    VAEEncode,
    Sampler,
    VAEDecode,
    LoRA,
    LoRAStack,
    TrainingData,
    TrainLoRA,
    Memory,
    Plan,
    FunControl,
    CameraPath,
    CameraControl,
    Vace,
    SaveVideo,
    LoadVideoLatent,
    ToModel,
    GuidanceOverSteps,
    GuidanceCFGZero,
    GuidanceSkipBlocks,
    GuidanceNAG,
    InpaintMask,
    SubjectPictures,
]


class WanCoreExtension(ComfyExtension):
    """What ``comfy_entrypoint`` hands to the host."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        add_model_folders(Path(__file__).parent.parent / "models")
        return NODES
