"""Errors a user can act on. Every message says what is wrong, which values were met and what to do about it."""

from collections.abc import Iterable


class WanError(ValueError):
    """Base of every error this package raises on purpose."""


class ModelFileError(WanError):
    """A model file is damaged, of an unknown kind, or holds other tensors than its kind needs."""


class MismatchError(WanError):
    """Two parts that are fine by themselves do not fit together (model and VAE, text encoder, image features ...)."""


class InputError(WanError):
    """A size, count, text, image or setting is out of range."""


class NonFiniteError(WanError):
    """A stage produced NaN or infinity."""


class CapacityError(WanError):
    """The work cannot fit in the memory that there is."""


class OutputError(WanError):
    """A result cannot be written; nothing of it is left behind, and what was there before is untouched."""


class WorkflowError(WanError):
    """A workflow file is damaged, or no graph that can be converted."""


class TrainingError(WanError):
    """Training cannot begin or go on; what had been learned until then is on disk."""


def first_few(names: Iterable[str], limit: int = 5) -> str:
    """``a, b, c ... and 12 more``: the beginning of a list for a message."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} ... and {len(names) - limit} more"


def gigabytes(n_bytes: float) -> str:
    """Bytes as ``12.3 GB`` (10^9 bytes)."""
    return f"{n_bytes / 1e9:.1f} GB"
