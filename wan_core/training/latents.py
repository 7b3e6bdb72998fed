"""The first pass: every clip as latents and every caption as token ids and context rows, once, on disk."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import TrainingError
from ..models.vae import WanVAE
from ..runtime.ports import Ports
from ..stages.load import TextEncoderHandle, VaeHandle
from ..stages.text import encode_tokens, tokenize
from ..stages.vae import check_encodes, working_bytes
from ..text.tokenizer import Tokens
from .clips import Clips
from .state import read_safetensors, write_safetensors
from .vae_task import to_video

log = logging.getLogger(__name__)

LOG_SECONDS = 30
BATCH_PIXELS = 16 * 64 * 64
"""Pixels of a frame in the VAE at once, over all clips of a batch; a larger clip goes alone."""


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
    clips: Clips,
    vae: VaeHandle,
    encoder: TextEncoderHandle,
    *,
    images: bool,
    rows: bool,
    key: str,
    text_key: str,
    path: Path,
    ports: Ports,
) -> EncodedClips:
    """Encode a data set; what an earlier run has encoded is read, what it did without is added.

    Args:
        images: also encode what image-to-video models are given beside the noise.
        rows: also encode the captions (they are not, where the encoder is trained too).
        key: names everything that the latents depend on; a file made with another key is made again.
        text_key: names the text encoder; captions encoded with another are encoded again.
        path: the file.
        ports: the host; told how many clips are encoded.
    """
    tensors, entry = _read(path, key)
    known = {*tensors}
    if "latents" not in tensors:
        tensors["latents"] = _encode_latents(clips, vae, ports, first_only=False)
    if images and "images" not in tensors:
        tensors["images"] = _encode_latents(clips, vae, ports, first_only=True)
    if entry.get("text_key") != text_key:
        texts, captions = _texts(clips)
        ids = [tokenize(encoder, text, ports).ids for text in texts]
        entry |= {"text_key": text_key, "ids": ids, "captions": captions}
        known = set()
        tensors.pop("rows", None)
    if len(entry["captions"]) != len(tensors["latents"]):
        raise TrainingError(
            f"{path} holds {len(tensors['latents'])} clips, the data set {len(entry['captions'])} now: it has changed. "
            "Remove the file to encode it again."
        )
    if rows and "rows" not in tensors:
        tensors["rows"] = torch.cat([_rows(encoder, ids, ports) for ids in entry["ids"]])
    if known != {*tensors}:
        write_safetensors(path, tensors, {"clips": json.dumps(entry)})
    lengths = [len(one) for one in entry["ids"]]
    return EncodedClips(
        latents=tensors["latents"],
        images=tensors["images"] if images else None,
        ids=entry["ids"],
        rows=list(tensors["rows"].split(lengths)) if rows else None,
        captions=entry["captions"],
    )


def _read(path: Path, key: str) -> tuple[dict[str, Tensor], dict]:
    """What the file holds, nothing if it was made with another key."""
    if not path.is_file():
        return {}, {"key": key}
    try:
        tensors, metadata = read_safetensors(path)
        entry = json.loads(metadata["clips"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{path} holds no encoded clips that can be read ({error}). Remove it, or choose another file."
        ) from error
    return (tensors, entry) if entry["key"] == key else ({}, {"key": key})


def _texts(clips: Clips) -> tuple[list[str], list[list[int]]]:
    """All different captions and the empty one at the end; and which of them fit each clip."""
    index: dict[str, int] = {}
    captions = [[index.setdefault(text, len(index)) for text in clips[i].captions] for i in range(len(clips))]
    return [*index, ""], captions


def _rows(encoder: TextEncoderHandle, ids: list[int], ports: Ports) -> Tensor:
    ports.check_cancel()
    return encode_tokens(encoder, Tokens(ids=ids, total=len(ids)), ports)[0, : len(ids)]


@torch.no_grad()
def _encode_latents(clips: Clips, vae: VaeHandle, ports: Ports, first_only: bool) -> Tensor:
    """All clips, or the first frame of each followed by grey, normalised, on the CPU."""
    check_encodes(vae)
    began = said = time.monotonic()
    latents = []
    height, width = clips[0].frames.shape[1:3]
    batch, stride = max(1, BATCH_PIXELS // (height * width)), vae.spec.stride_hw
    network = ports.memory.place(
        vae.weights, working_bytes(vae, batch, height // stride, width // stride), certain=False
    )
    for start in range(0, len(clips), batch):
        video = to_video(np.stack([clips[i].frames for i in range(start, min(start + batch, len(clips)))]))
        if first_only:
            video[:, :, 1:] = 0
        latents.append(vae.spec.normalise(_encoded(network, video, vae.weights.where, ports).float().cpu()))
        ports.progress(start + len(video), len(clips), None)
        if time.monotonic() - said > LOG_SECONDS:
            said = time.monotonic()
            log.info("encoded %d of %d clips in %.0f s", start + len(video), len(clips), said - began)
    return torch.cat(latents)


def _encoded(network: WanVAE, video: Tensor, device: torch.device, ports: Ports) -> Tensor:
    """A batch of clips, run by run: cancel acts between two."""

    def runs() -> Iterator[Tensor]:
        for frame in video.split(1, dim=2):
            ports.check_cancel()
            yield frame.to(device)

    return torch.cat(list(network.encode_stream(runs())), dim=2)
