"""The first pass: every clip as latents and every caption as token ids and context rows, once, on disk."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import TrainingError
from ..runtime.ports import Ports
from ..stages.load import TextEncoderHandle, VaeHandle
from ..stages.text import encode_tokens, tokenize
from .clips import Clips
from .state import read_safetensors, write_safetensors
from .vae_task import to_video

log = logging.getLogger(__name__)

BATCH = 16
"""Clips in the VAE at once."""


@dataclass(frozen=True, kw_only=True)
class EncodedClips:
    """All clips of a data set.

    latents: normalised, ``[N, C, T, h, w]``. images: the same of the first frame followed by grey, None unless asked
    for. ids: token ids of every different caption; the last is the empty one. rows: their context rows ``[tokens,
    dim]``, None where the text encoder is trained too. captions: for each clip, which of ``ids`` fit it.
    """

    latents: Tensor
    images: Tensor | None
    ids: list[list[int]]
    rows: list[Tensor] | None
    captions: list[list[int]]

    def __len__(self) -> int:
        return len(self.latents)


def encode_clips(
    clips: Clips, vae: VaeHandle, encoder: TextEncoderHandle, *, images: bool, rows: bool, key: str, path: Path
) -> EncodedClips:
    """Encode a data set, or read what an earlier run has encoded.

    Args:
        images: also encode what image-to-video models are given beside the noise.
        rows: also encode the captions (they are not, where the encoder is trained too).
        key: names everything that the result depends on; a file made with another key is made again.
        path: the file.
    """
    found = _read(path, key)
    if found is None:
        texts, captions = _texts(clips)
        ports = Ports()
        tokens = [tokenize(encoder, text, ports) for text in texts]
        tensors = _encode_latents(clips, vae, images)
        if rows:
            context = [encode_tokens(encoder, one, ports)[0, : len(one.ids)] for one in tokens]
            tensors["rows"] = torch.cat(context)
        entry = {"key": key, "ids": [one.ids for one in tokens], "captions": captions}
        write_safetensors(path, tensors, {"clips": json.dumps(entry)})
        found = tensors, entry
    tensors, entry = found
    lengths = [len(one) for one in entry["ids"]]
    return EncodedClips(
        latents=tensors["latents"],
        images=tensors.get("images"),
        ids=entry["ids"],
        rows=list(tensors["rows"].split(lengths)) if "rows" in tensors else None,
        captions=entry["captions"],
    )


def _read(path: Path, key: str) -> tuple[dict[str, Tensor], dict] | None:
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_safetensors(path)
        entry = json.loads(metadata["clips"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{path} holds no encoded clips that can be read ({error}). Remove it, or choose another file."
        ) from error
    return (tensors, entry) if entry["key"] == key else None


def _texts(clips: Clips) -> tuple[list[str], list[list[int]]]:
    """All different captions and the empty one at the end; and which of them fit each clip."""
    index: dict[str, int] = {}
    captions = [[index.setdefault(text, len(index)) for text in clips[i].captions] for i in range(len(clips))]
    return [*index, ""], captions


@torch.no_grad()
def _encode_latents(clips: Clips, vae: VaeHandle, images: bool) -> dict[str, Tensor]:
    began, latents, first = time.monotonic(), [], []
    network = vae.weights.module
    for start in range(0, len(clips), BATCH):
        video = to_video(np.stack([clips[i].frames for i in range(start, min(start + BATCH, len(clips)))]))
        latents.append(vae.spec.normalise(network.encode(video).float()))
        if images:
            video[:, :, 1:] = 0
            first.append(vae.spec.normalise(network.encode(video).float()))
        if start // BATCH % 20 == 19:
            log.info("encoded %d of %d clips in %.0f s", start + BATCH, len(clips), time.monotonic() - began)
    return {"latents": torch.cat(latents)} | ({"images": torch.cat(first)} if images else {})
