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


NODE_CLASS_MAPPINGS = {"WanTestDump": Dump, "WanTestLoaded": Loaded}
