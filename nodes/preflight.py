"""What comes after the sampler, looked at before the first step: hours of sampling must not end in a wrong VAE."""

from ..wan_core.errors import MismatchError, ModelFileError
from ..wan_core.stages import load
from ..wan_core.variants import WanVariant
from .host import model_path, vae_folder

VAE_LOADERS = {"WanCoreLoadVAE": "vae_name", "VAELoader": "vae_name"}


def check_decoder(prompt: dict | None, sampler_id: str | None, variant: WanVariant) -> None:
    """Refuse a VAE of another latent space that is wired to decode what this sampler makes.

    Looks only at nodes that take the sampler's latent directly and a VAE from a loader; whatever it cannot follow is
    left to the decode node.

    Args:
        prompt: the job in API form.
        sampler_id: the sampler's id in it.
    """
    for node in (prompt or {}).values():
        inputs = node.get("inputs", {})
        takes_latent = any(_source(inputs.get(name)) == sampler_id for name in ("samples", "latent_image", "latent"))
        name = _vae_file(prompt, inputs) if takes_latent and sampler_id is not None else None
        if name is None:
            continue
        try:
            channels = load.vae_channels(model_path(vae_folder(name), name))
        except (ModelFileError, FileNotFoundError):
            continue  # no Wan VAE file: its own loader says what is wrong with it
        if channels not in (None, variant.latent.channels):
            raise MismatchError(
                f"{variant.title} makes latents of {variant.latent.channels} channels, and {name}, which is to decode "
                f"them, takes {channels}. Choose the {variant.latent.vae}."
            )


def _source(value) -> str | None:
    return str(value[0]) if isinstance(value, list) and len(value) == 2 else None


def _vae_file(prompt: dict, inputs: dict) -> str | None:
    loader = prompt.get(_source(inputs.get("vae")) or "", {})
    name = loader.get("inputs", {}).get(VAE_LOADERS.get(loader.get("class_type", ""), ""))
    return name if isinstance(name, str) else None
