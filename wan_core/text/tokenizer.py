"""Prompt -> token ids of umT5, from whichever form of its sentencepiece vocabulary is at hand."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelFileError

EOS = 1
"""Id of the token that ends every text (google/umt5-xxl)."""

MAX_FILE_BYTES = 256 * 1024**2
HELP = "Use spiece.model or tokenizer.json of google/umt5-xxl, or a text encoder file that carries its tokenizer."


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A text as ids. ``total`` is its length, end token included, before it was cut to ``ids``."""

    ids: list[int]
    total: int


class Tokenizer:
    """Text -> ids. ``pieces`` gives the ids of a text without any special token; ``vocab`` is their number."""

    def __init__(self, pieces: Callable[[str], list[int]], vocab: int):
        self._pieces = pieces
        self.vocab = vocab

    def encode(self, text: str, max_tokens: int = 512) -> Tokens:
        """Ids with the end token last, at most ``max_tokens`` of them.

        Any string is taken: surrogate pairs are joined and a lone surrogate becomes U+FFFD.
        """
        valid = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        ids = self._pieces(valid)
        return Tokens(ids=[*ids[: max_tokens - 1], EOS], total=len(ids) + 1)


def load_tokenizer(source: bytes | Path) -> Tokenizer:
    """A tokenizer from its data. The forms agree, but for a special token spelled out in a prompt (``</s>``): it is
    text to sentencepiece, as in native ComfyUI, and the token itself to ``tokenizer.json``, as in the official code.

    Args:
        source: a serialized sentencepiece model (the ``spiece_model`` tensor of a text encoder file), or the path of
            a ``spiece.model`` or a ``tokenizer.json``.

    Raises:
        ModelFileError: the data are damaged, or belong to a model whose end token is not umT5's.
    """
    if isinstance(source, bytes):
        return _from_sentencepiece(source, "The embedded spiece_model")
    data = _read(source)
    return _from_json(data, source.name) if source.suffix == ".json" else _from_sentencepiece(data, source.name)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"The tokenizer {path} cannot be read: {error.strerror}. {HELP}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ModelFileError(f"{path.name} is larger than {MAX_FILE_BYTES // 1024**2} MiB: not a tokenizer. {HELP}")
    return data


def _from_sentencepiece(data: bytes, name: str) -> Tokenizer:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = bool(data) and processor.LoadFromSerializedProto(data)
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelFileError(f"{name} is not a sentencepiece model ({error}). {HELP}") from error
    if not loaded or processor.get_piece_size() == 0:
        raise ModelFileError(f"{name} is not a sentencepiece model ({len(data)} bytes). {HELP}")
    _check_end(processor.eos_id(), name)
    return Tokenizer(processor.encode_as_ids, processor.get_piece_size())


def _from_json(data: bytes, name: str) -> Tokenizer:
    import tokenizers

    try:
        # The library raises bare Exception for whatever it does not understand, so the JSON is read here first.
        model_type = json.loads(data)["model"]["type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{name} is not a tokenizer.json ({type(error).__name__}: {error}). {HELP}") from error
    if model_type != "Unigram":
        raise ModelFileError(f"{name} is a {model_type} tokenizer; umT5's is a Unigram. {HELP}")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:
        raise ModelFileError(f"{name} is a tokenizer.json that cannot be used: {error}. {HELP}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _check_end(tokenizer.token_to_id("</s>"), name)
    return Tokenizer(lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.get_vocab_size())


def _check_end(end: int | None, name: str) -> None:
    if end != EOS:
        raise ModelFileError(f"{name} has its end token at {end}, umT5 at {EOS}: another model's tokenizer. {HELP}")
