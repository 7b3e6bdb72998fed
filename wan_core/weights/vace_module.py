"""VACE blocks from a file of their own, beside the T2V model they belong to.

Such files (Kijai/WanVideo_comfy, ``Wan2_1-VACE_module_*``) hold ``vace_*`` tensors only. Joined with the model's own
file they are the same as a whole VACE model, and everything after this works on names and shapes alone.
"""

import re
from collections.abc import Callable

from torch import Tensor

from ..errors import MismatchError, ModelFileError
from ..variants import LATENT_21
from .checkpoint import Checkpoint
from .detect import Detected
from .header import TensorInfo
from .keymaps import PREFIXES

_VACE = re.compile(r"vace_(blocks|patch_embedding)\.")
_NO_WEIGHT = re.compile(r"scaled_fp8$|model_type\.")
_EMBEDDING = "vace_patch_embedding.weight"


def join_vace(base: Checkpoint, found: Detected, module: Checkpoint) -> Checkpoint:
    """A T2V model and a VACE module as one checkpoint.

    Args:
        base: the model, a ``dit``; ``found`` is what was detected of it.
        module: the file with the VACE blocks.

    Raises:
        ModelFileError: ``module`` is no such file.
        MismatchError: the two do not belong together.
    """
    names, config = _inside(module), found.config
    both = f"{base.path.name} and the VACE module {module.path.name}"
    if config.vace_layers:
        raise MismatchError(
            f"{base.path.name} is a VACE model and has the blocks of {module.path.name} already; leave module_name at "
            "'none'."
        )
    if config.in_dim != config.out_dim or config.img_dim is not None:
        raise MismatchError(
            f"{base.path.name} is an image model ({config.in_dim} channels in); a VACE module belongs to a T2V model. "
            "Choose a T2V model, or leave module_name at 'none'."
        )
    if config.out_dim != LATENT_21.channels:
        raise MismatchError(
            f"{base.path.name} makes latents of {config.out_dim} channels; VACE modules are for T2V models of the "
            f"{LATENT_21.vae}, of {LATENT_21.channels}. Choose one of those, or leave module_name at 'none'."
        )
    width = module.header[names[_EMBEDDING]].shape[0]
    if width != config.dim:
        raise MismatchError(
            f"{both} do not belong together: the model is {config.dim} wide, the module {width}. Take the module for "
            "the model's size (1.3B: 1536, 14B: 5120)."
        )
    if found.naming != "official":
        raise MismatchError(
            f"{base.path.name} has {found.naming} names, and VACE modules go with official ones. Use a T2V model with "
            "official names (as ComfyUI's and Kijai's files have them), or a whole VACE model."
        )
    if "vace_blocks.0.modulation" not in names or not any(name.endswith("self_attn.q.weight") for name in names):
        raise ModelFileError(
            f"{module.path.name} has VACE blocks in another naming than the official one. Use a module with official "
            "names, or the whole model."
        )
    return _joined(base, module, {found.prefix + name: full for name, full in names.items()})


def _inside(module: Checkpoint) -> dict[str, str]:
    """Name without prefix -> full name in the file, of a file that holds a VACE module and nothing else."""
    prefix = next((one for one in PREFIXES["dit"] if one + _EMBEDDING in module.header), None)
    if prefix is None:
        raise ModelFileError(
            f"{module.path.name} is no VACE module: it has no '{_EMBEDDING}'. Choose a file that holds VACE blocks "
            "alone, or 'none'."
        )
    names = {name.removeprefix(prefix): name for name in module.header}
    others = [name for name in names if not _VACE.match(name) and not _NO_WEIGHT.match(name)]
    if others:
        raise ModelFileError(
            f"{module.path.name} is more than a VACE module: it has {len(others)} other tensors (such as "
            f"{sorted(others)[0]}). If it is a whole VACE model, choose it as model_name and leave module_name at "
            "'none'."
        )
    return {short: full for short, full in names.items() if _VACE.match(short)}


def _joined(base: Checkpoint, module: Checkpoint, names: dict[str, str]) -> Checkpoint:
    header: dict[str, TensorInfo] = {**base.header, **{name: module.header[full] for name, full in names.items()}}

    def get(name: str) -> Tensor:
        return module.get(names[name]) if name in names else base.get(name)

    return Checkpoint(base.path, header, base.metadata, get, _both(base.close, module.close), base.files + module.files)


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def close() -> None:
        first()
        second()

    return close
