"""One golden file: its config, its tensors, and what kind it is."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wan_core.configs import DitConfig, VaeConfig
from wan_core.models.dit import WanDiT
from wan_core.models.vace import build_dit
from wan_core.models.vae import WanVAE
from wan_core.variants import LatentSpec


@dataclass(frozen=True)
class Expected:
    """Our value for one expected tensor, its tolerance (absolute), and where it counts (None: everywhere)."""

    value: Tensor
    tolerance: float
    where: Tensor | None = None


Results = dict[str, Expected]


class UnknownFileError(Exception):
    """The file is not in the documented format."""


class Golden:
    """A file of reference vectors."""

    def __init__(self, path: Path):
        try:
            self._file = safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise UnknownFileError(f"not readable: {error}") from error
        metadata = self._file.metadata() or {}
        if "config" not in metadata:
            raise UnknownFileError("its metadata has no 'config'")
        try:
            self.config: dict = json.loads(metadata["config"])
        except json.JSONDecodeError as error:
            raise UnknownFileError(f"its config is no JSON: {error}") from error
        self.stem = path.stem
        self.names = set(self._file.keys())

    @property
    def expected(self) -> list[str]:
        return sorted(name for name in self.names if name.startswith("out."))

    @cached_property
    def kind(self) -> str:
        """The name's first part, for transformers with what the config says."""
        first = self.stem.split("_")[0]
        kind = {"vae21": "vae", "vae22": "vae"}.get(first, first)
        return f"dit {self._dit_family()}" if kind == "dit" else kind

    def _dit_family(self) -> str:
        config, keys = self.config, self.names
        if "audio_dim" in config:
            return "s2v"
        if "sd.control_adapter.conv.weight" in keys:
            return "camera"
        if "sd.ref_conv.weight" in keys:
            return "ref_conv"
        if "sd.vace_patch_embedding.weight" in keys:
            return "vace"
        return "base"

    def tensor(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(f"{self.stem} has no tensor {name}")
        return self._file.get_tensor(name)

    def optional(self, name: str) -> Tensor | None:
        return self.tensor(name) if name in self.names else None

    def series(self, prefix: str) -> list[Tensor]:
        """``prefix.0``, ``prefix.1`` ... as far as they go; a lone ``prefix`` counts as a series of one."""
        if prefix in self.names:
            return [self.tensor(prefix)]
        found = []
        while f"{prefix}.{len(found)}" in self.names:
            found.append(self.tensor(f"{prefix}.{len(found)}"))
        return found

    def weights(self, prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: self.tensor(name) for name in sorted(self.names) if name.startswith(prefix)}

    def into(self, module: nn.Module, prefix: str = "sd.") -> nn.Module:
        """Load the file's weights strictly."""
        module.load_state_dict(self.weights(prefix))
        return module.eval().requires_grad_(False)


def dit(golden: Golden, config: dict, prefix: str = "sd.") -> WanDiT:
    """The transformer of a golden file; where its config leaves a number out, the official default stands."""
    positions = golden.optional(f"{prefix}img_emb.emb_pos")
    known = {name: config[name] for name in ("freq_dim", "text_dim", "text_len", "eps") if name in config}
    cfg = DitConfig(
        dim=config["dim"],
        ffn_dim=config["ffn_dim"],
        num_heads=config["num_heads"],
        num_layers=config["num_layers"],
        in_dim=config["in_dim"],
        out_dim=config["out_dim"],
        patch=tuple(config.get("patch_size", (1, 2, 2))),
        img_dim=config.get("img_dim"),
        img_tokens=None if positions is None else positions.shape[1],
        ref_dim=config.get("in_dim_ref_conv"),
        camera_dim=_width_of(golden, f"{prefix}control_adapter.conv.weight"),
        vace_layers=tuple(config.get("vace_layers", ())),
        vace_in_dim=config.get("vace_in_dim"),
        **known,
    )
    return golden.into(build_dit(cfg), prefix)


def _width_of(golden: Golden, name: str) -> int | None:
    """Input channels of a convolution, where the file has it."""
    weight = golden.optional(name)
    return None if weight is None else weight.shape[1]


def vae(golden: Golden, config: dict, prefix: str = "sd.") -> WanVAE:
    """The VAE of a golden file; 2.2 is told by its parameter names."""
    is_22 = any(name.startswith(f"{prefix}encoder.downsamples.0.downsamples.") for name in golden.names)
    cfg = VaeConfig(
        dim=config["dim"],
        dec_dim=config.get("dec_dim", config["dim"]),
        z_dim=config["z_dim"],
        dim_mult=tuple(config["dim_mult"]),
        num_res_blocks=config["num_res_blocks"],
        temporal_downsample=tuple(config["temperal_downsample"]),
        patch=2 if is_22 else 1,
        shortcuts=is_22,
    )
    return golden.into(WanVAE(cfg), prefix)


def latent_spec(golden: Golden) -> LatentSpec:
    """The file's own latent statistics."""
    mean, std = golden.tensor("in.latents_mean"), golden.tensor("in.latents_std")
    return LatentSpec(
        channels=len(mean), stride_t=4, stride_hw=8, fps=16, vae="", mean=tuple(mean.tolist()), std=tuple(std.tolist())
    )
