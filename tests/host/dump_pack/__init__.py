"""A node for tests: writes any tensor on a wire to a file, so that wires can be compared outside the host."""

import json
from pathlib import Path

import comfy.model_management
import folder_paths
from safetensors.torch import save_file


class AnyWire(str):
    """Connects to everything."""

    def __ne__(self, other):
        return False


class Dump:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (AnyWire("*"),), "name": ("STRING", {})}}

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    def run(self, value, name):
        if isinstance(value, dict):
            value = value["samples"]
        elif isinstance(value, list):
            value = value[0][0]
        path = Path(folder_paths.get_output_directory(), f"{name}.safetensors")
        save_file({"value": value.detach().float().contiguous()}, path)
        return {}


class Loaded:
    """Writes down which models the host has in its list now."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {})}, "optional": {"after": (AnyWire("*"),)}}

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    def run(self, name, after=None):
        models = [type(loaded.model.model).__name__ for loaded in comfy.model_management.current_loaded_models]
        Path(folder_paths.get_output_directory(), f"{name}.json").write_text(json.dumps(models))
        return {}


class Call:
    """Calls a method of what is on a wire, as packs of others do."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (AnyWire("*"),), "method": ("STRING", {}), "given": ("STRING", {})}}

    RETURN_TYPES = (AnyWire("*"),)
    FUNCTION = "run"
    OUTPUT_NODE = True

    def run(self, value, method, given):
        called = value
        for name in method.split("."):
            called = getattr(called, name)
        called(**json.loads(given))
        return (value,)


class FakeControlNet:
    """All that native samplers ask of a ControlNet."""

    extra_hooks = previous_controlnet = None
    multigpu_clones: dict = {}

    def get_models(self):
        return []

    def get_extra_hooks(self):
        return []

    def inference_memory_requirements(self, dtype):
        return 0

    def pre_run(self, model, percent_to_timestep_function):
        pass

    def get_control(self, *args):
        return {"output": []}

    def cleanup(self):
        pass


class Control:
    """Puts a ControlNet on CONDITIONING."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",)}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "run"

    def run(self, conditioning):
        return ([[text, {**more, "control": FakeControlNet()}] for text, more in conditioning],)


class WithoutText:
    """CONDITIONING that holds no text."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "run"

    def run(self):
        return ([[None, {}]],)


NODE_CLASS_MAPPINGS = {
    "WanTestCall": Call,
    "WanTestControl": Control,
    "WanTestDump": Dump,
    "WanTestLoaded": Loaded,
    "WanTestWithoutText": WithoutText,
}
