"""A data set as a training has it: the clips, what encodes them, and where the encoded ones are kept."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ..runtime.ports import Ports
from ..stages.load import TextEncoderHandle, VaeHandle
from .clips import Clips, ClipSize, contents
from .latents import EncodedClips, encode_clips

EDGE_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """``name``: what the user calls it. ``folder``: where its files are, None for clips that are rendered. ``path``:
    the file for what is encoded."""

    name: str
    folder: Path | None
    clips: Clips
    size: ClipSize
    vae: VaeHandle
    encoder: TextEncoderHandle
    path: Path

    def source(self) -> dict:
        """Everything that its latents depend on, as it can be written into a file."""
        table = None if self.folder is None else _digest([json.dumps(contents(self.folder)).encode()])
        vae = fingerprint(self.vae.weights.name, self.vae.weights.module)
        return {"data": self.name, "size": asdict(self.size), "table": table, "vae": vae}

    def text_key(self) -> str:
        """What the context rows of its captions depend on besides."""
        return fingerprint(self.encoder.weights.name, self.encoder.weights.module)

    def encoded(self, ports: Ports, *, images: bool, rows: bool = True) -> EncodedClips:
        """Encode it, once; see :func:`encode_clips`."""
        return encode_clips(
            self.clips, self.vae, self.encoder, images=images, rows=rows, key=json.dumps(self.source()),
            text_key=self.text_key(), path=self.path, ports=ports,
        )  # fmt: skip


def fingerprint(name: str, network: nn.Module) -> str:
    """What tells one network from another: its name, and a digest of names, shapes and both ends of its tensors."""
    return f"{name} {_digest(_edges(network))}"


def _edges(network: nn.Module) -> Iterable[bytes]:
    for path, tensor in (*network.named_parameters(), *network.named_buffers()):
        yield f"{path} {tensor.dtype} {list(tensor.shape)}".encode()
        raw = tensor.detach().reshape(-1).view(torch.uint8)
        yield from (end.cpu().numpy().tobytes() for end in (raw[:EDGE_BYTES], raw[-EDGE_BYTES:]))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
