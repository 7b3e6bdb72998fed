"""Wan Core: the Wan 2.1 / 2.2 video models as ComfyUI nodes. Everything is imported when the host asks for it."""

import logging

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    """The host's way in. It reports an exception here as one warning, so the traceback is logged before it goes on."""
    try:
        from .nodes import WanCoreExtension
    except BaseException:
        logging.getLogger(__name__).error("Wan Core could not be loaded", exc_info=True)
        raise
    return WanCoreExtension()
