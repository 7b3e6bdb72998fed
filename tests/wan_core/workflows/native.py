"""Small native workflows in both forms, as ComfyUI writes them."""

from wan_core.workflows.convert import Converted, convert
from wan_core.workflows.widgets import NATIVE

OUTPUTS = {
    "UNETLoader": ["MODEL"], "CLIPLoader": ["CLIP"], "VAELoader": ["VAE"], "CLIPVisionLoader": ["CLIP_VISION"],
    "LoraLoaderModelOnly": ["MODEL"], "LoraLoader": ["MODEL", "CLIP"], "ModelSamplingSD3": ["MODEL"],
    "CLIPTextEncode": ["CONDITIONING"], "EmptyHunyuanLatentVideo": ["LATENT"], "KSampler": ["LATENT"],
    "KSamplerAdvanced": ["LATENT"], "VAEDecode": ["IMAGE"], "SaveImage": [], "ComfySwitchNode": ["MODEL"],
    "PrimitiveInt": ["INT"], "PrimitiveBoolean": ["BOOLEAN"], "CreateVideo": ["VIDEO"], "SaveVideo": [],
    "Reroute": ["*"], "PrimitiveNode": ["INT"], "MarkdownNote": [],
}  # fmt: skip
"""The outputs of the nodes that page forms are made of here."""


class Native:
    """An API-form workflow under construction; ``add`` returns the wire of the node's first output."""

    def __init__(self):
        self.prompt: dict[str, dict] = {}

    def add(self, kind: str, *, key: str | None = None, **inputs) -> list:
        key = key or str(len(self.prompt) + 1)
        self.prompt[key] = {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}
        return [key, 0]

    def prompts(self, encoder: str = "wan") -> tuple[list, list]:
        """Text encoder and both prompts."""
        clip = self.add("CLIPLoader", clip_name="umt5.safetensors", type=encoder, device="default")
        return tuple(self.add("CLIPTextEncode", clip=clip, text=text) for text in ("a fox", "blurry"))

    def latent(self) -> list:
        return self.add("EmptyHunyuanLatentVideo", width=832, height=480, length=81, batch_size=1)

    def model(self, name: str = "wan2.1_t2v_1.3B_fp16.safetensors", shift: float | None = 5.0, lora: str = "") -> list:
        model = self.add("UNETLoader", unet_name=name, weight_dtype="default")
        if lora:
            model = self.add("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=0.8)
        return model if shift is None else self.add("ModelSamplingSD3", model=model, shift=shift)

    def save(self, latent: list) -> None:
        vae = self.add("VAELoader", vae_name="wan_2.1_vae.safetensors")
        images = self.add("VAEDecode", samples=latent, vae=vae)
        self.add("SaveImage", images=images, filename_prefix="x")


def ksampler(native: Native, model: list, **changes) -> list:
    """A whole workflow around a KSampler."""
    positive, negative = native.prompts()
    inputs = {
        "seed": 7, "steps": 30, "cfg": 6.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        "model": model, "positive": positive, "negative": negative, "latent_image": native.latent(),
    }  # fmt: skip
    latent = native.add("KSampler", key="s", **inputs | changes)
    native.save(latent)
    return latent


def advanced(native: Native, model: list, texts: tuple, latent: list, key: str, **changes) -> list:
    """A KSamplerAdvanced."""
    inputs = {
        "add_noise": "enable", "noise_seed": 7, "steps": 20, "cfg": 3.5, "sampler_name": "euler",
        "scheduler": "simple", "start_at_step": 0, "end_at_step": 10, "return_with_leftover_noise": "enable",
        "model": model, "positive": texts[0], "negative": texts[1], "latent_image": latent,
    }  # fmt: skip
    return native.add("KSamplerAdvanced", key=key, **inputs | changes)


LOW = {
    "add_noise": "disable", "noise_seed": 0, "start_at_step": 10, "end_at_step": 10000,
    "return_with_leftover_noise": "disable",
}  # fmt: skip
HIGH_FILE, LOW_FILE = (f"wan2.2_t2v_{side}_noise_14B_fp8_scaled.safetensors" for side in ("high", "low"))


def pair(native: Native, high: list, low: list, first: dict | None = None, second: dict | None = None) -> None:
    """A whole workflow around two samplers, ``h`` and ``l``, that share the steps of a pair."""
    texts = native.prompts()
    latent = advanced(native, high, texts, native.latent(), "h", **first or {})
    latent = advanced(native, low, texts, latent, "l", **LOW | (second or {}))
    native.save(latent)


def moved(native: Native) -> Converted:
    """It converted, in the API form."""
    return convert(native.prompt)


def kinds(document: dict) -> list[str]:
    """The classes of an API form."""
    return sorted(node["class_type"] for node in document.values())


def of(document: dict, kind: str) -> dict:
    """The inputs of the one node of a class."""
    (node,) = [node for node in document.values() if node["class_type"] == kind]
    return node["inputs"]


def page_of(prompt: dict, *, first_id: int = 1, widgets_as_inputs: bool = False) -> dict:
    """The page form of an API form. Wired widgets are named among the inputs, others only if that is asked for."""
    ids = {key: number for number, key in enumerate(prompt, first_id)}
    links, nodes = [], []
    for key, node in prompt.items():
        kind, inputs = node["class_type"], node["inputs"]
        names = NATIVE.get(kind, ())
        entries = []
        for name in [*(name for name in inputs if name not in names), *names]:
            value = inputs.get(name)
            wired = isinstance(value, list)
            if name in names and not wired and not widgets_as_inputs:
                continue
            entry = {"name": name, "type": "*", "link": None}
            entry |= {"widget": {"name": name}} if name in names else {}
            if wired:
                origin = OUTPUTS[prompt[value[0]]["class_type"]]
                entry |= {"link": len(links) + 1, "type": origin[value[1]]}
                links.append([len(links) + 1, ids[value[0]], value[1], ids[key], len(entries), origin[value[1]]])
            entries.append(entry)
        values = []
        for name in names:
            values.append(0 if isinstance(inputs.get(name), list) else inputs.get(name))
            values += ["randomize"] if name in ("seed", "noise_seed") else []
        outputs = [{"name": kind, "type": kind, "links": []} for kind in OUTPUTS[kind]]
        nodes.append(
            {
                "id": ids[key], "type": kind, "pos": [300 * ids[key], 0], "size": [200, 100], "flags": {},
                "order": ids[key], "mode": 0, "inputs": entries, "outputs": outputs, "properties": {},
                "widgets_values": values,
            }
        )  # fmt: skip
    for link in links:
        nodes[link[1] - first_id]["outputs"][link[2]]["links"].append(link[0])
    return {
        "last_node_id": len(nodes) + first_id - 1, "last_link_id": len(links), "nodes": nodes, "links": links,
        "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip
