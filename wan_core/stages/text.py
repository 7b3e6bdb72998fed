"""Prompt -> text context."""

import torch
from torch import Tensor

from ..errors import InputError
from ..runtime.finite import check_finite
from ..runtime.memory import umt5_work
from ..runtime.ports import Ports
from ..runtime.prompt_cache import key_of
from ..runtime.stay import Stay, Stop
from ..text.clean import clean_prompt, misread
from ..text.tokenizer import Tokens
from .load import TextEncoderHandle

TEXT_ROWS = 512
"""Rows of context that the transformer is trained on, zero beyond the prompt's tokens."""

MAX_CHARACTERS = 200_000


def tokenize(encoder: TextEncoderHandle, prompt: str, ports: Ports, clean: bool = True) -> Tokens:
    """Clean a prompt and cut it into at most 512 tokens; a cut is told with both counts, a wrong encoding too."""
    if len(prompt) > MAX_CHARACTERS:
        raise InputError(f"The prompt has {len(prompt)} characters; at most {MAX_CHARACTERS} are read. Shorten it.")
    if clean and (meant := misread(prompt)):
        ports.notify(
            "The prompt looks like text decoded with the wrong encoding and is read as it is typed. If it should say "
            f'"{meant[:60]}", type it so.'
        )
    tokens = encoder.tokenizer().encode(clean_prompt(prompt) if clean else prompt, TEXT_ROWS)
    if tokens.total > len(tokens.ids):
        ports.notify(
            f"The prompt is {tokens.total} tokens long; Wan reads {TEXT_ROWS}. The last "
            f"{tokens.total - len(tokens.ids)} were cut off."
        )
    return tokens


@torch.no_grad()
def encode_tokens(encoder: TextEncoderHandle, tokens: Tokens, ports: Ports) -> Tensor:
    """Tokens -> ``[1, 512, dim]`` float32 on the CPU, zero beyond the tokens.

    Only the real tokens are run: masked positions do not change the others (the encoder attends under the mask).
    """
    limit = encoder.config.vocab
    if max(tokens.ids) >= limit:
        raise InputError(
            f"The tokenizer gives token {max(tokens.ids)}, the encoder {encoder.weights.name} knows {limit}: they do "
            "not belong together. Use the tokenizer of google/umt5-xxl."
        )
    length = len(tokens.ids)
    context = torch.zeros(1, TEXT_ROWS, encoder.config.dim)
    key, kept = _kept(encoder, tokens, ports)
    if kept is not None:
        ports.notify("The text encoding is reused: this prompt was encoded before.")
        context[:, :length] = kept
        return context
    ids = torch.tensor([tokens.ids], device=encoder.weights.device)
    with Stay([Stop(weights=encoder.weights)], umt5_work(encoder.config, length), ports) as stay:
        hidden = stay.walk_once(ids, torch.ones_like(ids))
    check_finite(hidden, "the text encoding", encoder.weights.name, "Load the text encoder with precision fp32.")
    context[:, :length] = hidden.float().cpu()
    if key is not None:
        ports.prompts.put(key, context[0, :length])
    return context


def _kept(encoder: TextEncoderHandle, tokens: Tokens, ports: Ports) -> tuple[str | None, Tensor | None]:
    """The key of a prompt, and what was made of it before; None where nothing is kept."""
    if ports.prompts is None or not encoder.identity:
        return None, None
    key = key_of(encoder.identity, encoder.weights.compute_dtype, encoder.weights.device, tokens.ids)
    return key, ports.prompts.get(key, len(tokens.ids), encoder.config.dim)


def encode_text(encoder: TextEncoderHandle, prompt: str, ports: Ports) -> Tensor:
    """A prompt as the official code reads it: cleaned, cut at 512 tokens, ``[1, 512, dim]``."""
    return encode_tokens(encoder, tokenize(encoder, prompt, ports), ports)
