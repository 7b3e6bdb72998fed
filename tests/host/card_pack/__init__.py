"""A card that is really the CPU, so that the host's memory manager does what it does on a card.

The host accepts --novram, --lowvram and --highvram only without --cpu, and on the CPU itself it moves nothing.
WAN_TEST_CARD holds what such a flag sets (``state``) and the free bytes that the card always reports (``free``). The
device "cpu:0" is not "cpu" to the host, and is the CPU to torch. What is loaded and unloaded goes to the log.
"""

import json
import logging
import os

import comfy.model_management as mm
import torch

CARD = torch.device("cpu", 0)
GIVEN = json.loads(os.environ["WAN_TEST_CARD"])
NODE_CLASS_MAPPINGS = {}
log = logging.getLogger(__name__)

is_device_cpu, get_free_memory = mm.is_device_cpu, mm.get_free_memory
model_load, model_unload = mm.LoadedModel.model_load, mm.LoadedModel.model_unload


def free_memory_of_the_card(dev=None, torch_free_too=False):
    if dev is not None and dev != CARD:
        return get_free_memory(dev, torch_free_too)
    return (GIVEN["free"], GIVEN["free"]) if torch_free_too else GIVEN["free"]


def load_and_tell(self, lowvram_model_memory=0, **kwargs):
    log.info("CARD load %s allowed %s", type(self.model.model).__name__, lowvram_model_memory)
    return model_load(self, lowvram_model_memory, **kwargs)


def unload_and_tell(self, *args, **kwargs):
    log.info("CARD unload %s", type(self.model.model).__name__)
    return model_unload(self, *args, **kwargs)


mm.vram_state = mm.VRAMState[GIVEN["state"]]
mm.get_torch_device = lambda: CARD
mm.is_device_cpu = lambda device: device != CARD and is_device_cpu(device)
mm.get_free_memory = free_memory_of_the_card
mm.LoadedModel.model_load = load_and_tell
mm.LoadedModel.model_unload = unload_and_tell
