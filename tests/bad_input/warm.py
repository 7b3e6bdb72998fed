"""One good use of everything, and one refusal."""

import torch

from . import contents, makers


def good_pth(path, canary) -> None:
    torch.save({"a": torch.ones(2)}, path)


ROWS = [
    makers.accepted("pth", makers.pth(good_pth)),
    makers.accepted("text encoder", makers.file("text encoder", contents.umt5(contents.tokenizer()))),
    makers.accepted("tokenizer.json", makers.beside("tokenizer.json", b"{}")),
    makers.accepted("model", makers.file("model", contents.wan())),
    makers.accepted("LoRA", makers.file("LoRA", contents.lora("blocks.0.self_attn.q", fill=1.0))),
    makers.accepted("prompt", makers.prompt("a red fox")),
    makers.accepted("picture", makers.start_image(makers.filled(1, 80, 64, 3))),
    makers.accepted("picture for CLIP", makers.clip_image(makers.filled(1, 30, 30, 3))),
    makers.accepted("sampler", makers.sampler()),
    makers.accepted("pair", makers.sampler("t2v-a14b")),
    makers.accepted("decode", makers.vae_decode(makers.filled(1, 16, 1, 2, 2))),
]
