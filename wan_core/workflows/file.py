"""A workflow file -> JSON that is known to be harmless: of a bounded size and depth, with finite numbers and names."""

import json
import math
from pathlib import Path

from ..errors import WorkflowError

MAX_BYTES = 8_000_000
"""The largest template of ComfyUI has 0.4 MB; a file of this size takes 200 MB at most when it is read."""
MAX_DEPTH = 100


def read(path: Path) -> tuple[bytes, dict]:
    """The bytes of a workflow file and what they say. Raises WorkflowError with one sentence."""
    try:
        if not path.is_file():
            raise WorkflowError(f"{path} is not a file. Name a workflow that ComfyUI saved or exported (.json).")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise WorkflowError(
                f"{path} has {size:,} bytes, and workflows of up to {MAX_BYTES:,} are read. Take embedded pictures out."
            )
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as reason:
        raise WorkflowError(f"{path} cannot be read: {reason.strerror or reason}.") from reason
    except ValueError as reason:
        raise WorkflowError(f"{str(path)!r} is no path: {reason}.") from reason
    return content, parse(content, path.name)


def parse(content: bytes, name: str) -> dict:
    """What a workflow file says."""
    try:
        document = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError:
        raise WorkflowError(_too_deep(name)) from None
    except UnicodeDecodeError:
        raise WorkflowError(f"{name} is not text in UTF-8, so no workflow in JSON. Export it from ComfyUI.") from None
    except ValueError as reason:
        raise WorkflowError(f"{name} is not a workflow in JSON: {reason}. Export it from ComfyUI.") from None
    _check_values(document, name)
    if not isinstance(document, dict):
        raise WorkflowError(f"{name} holds a JSON {_kind(document)}, and a workflow is an object.")
    return document


def _refuse_constant(text: str):
    raise ValueError(f"it holds {text}, which JSON does not have")


def _too_deep(name: str) -> str:
    return f"{name} is nested more than {MAX_DEPTH} levels deep, which no workflow is."


def _check_values(document: object, name: str) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        below = []
        for value in level:
            if isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, float) and not math.isfinite(value):
                raise WorkflowError(f"{name} holds a number that is not finite, which no widget takes.")
            elif isinstance(value, str) and not value.isascii():
                _check_text(value, name)
        level = below
        if not level:
            return
    raise WorkflowError(_too_deep(name))


def _check_text(value: str, name: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise WorkflowError(f"{name} holds half of a character (a lone surrogate), which cannot be written.") from None


def _kind(value: object) -> str:
    kinds = {list: "list", str: "text", bool: "truth value", int: "number", float: "number", type(None): "null"}
    return kinds[type(value)]


def dumps(document: dict) -> str:
    """Back into text."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
