"""The trainer. What nodes show of it is here, so that they need not import it to be listed."""

TABLE = "metadata.csv"
"""The table of a folder of clips: columns ``file_name`` and ``text``."""
TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")
"""Layers of a block that a LoRA changes unless others are asked for."""
