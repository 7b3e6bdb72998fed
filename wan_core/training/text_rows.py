"""Wan attends to 512 rows of context, zeros after the text. In training those equal rows are folded into one.

n equal keys and values weigh in a softmax as much as one of them with ``log n`` added to its score.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.umt5 import Umt5Encoder

ROWS = 512
"""Rows of context that Wan's transformers attend to."""
EVEN = 8
"""Texts are padded to a multiple of this, so that compiled kernels meet few lengths."""
HIDDEN = -1e9
"""Added to the score of a row that is not there."""


def encode_batch(encoder: Umt5Encoder, ids: list[list[int]]) -> list[Tensor]:
    """Token ids of some texts -> the rows of each, ``[tokens, dim]`` float32."""
    longest = max(map(len, ids))
    padded = torch.tensor([one + [0] * (longest - len(one)) for one in ids])
    real = torch.arange(longest) < torch.tensor([len(one) for one in ids])[:, None]
    hidden = encoder(padded, real)
    return [rows[: len(one)] for rows, one in zip(hidden, ids)]


def fold(texts: list[Tensor], rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Rows of each text -> one context for the batch, as if every text had been padded to ``rows`` rows of zeros.

    Args:
        texts: ``[tokens, dim]`` a sample, none longer than ``rows``.
        rows: what the model was made for.

    Returns:
        text ``[B, S + 1, dim]``, S the longest rounded up; the last row is zero and stands for all that are missing.
        And what is to be added to the scores of each row, ``[B, S + 1]``.
    """
    longest = -(-max(map(len, texts)) // EVEN) * EVEN
    text = torch.stack([F.pad(one, (0, 0, 0, longest + 1 - len(one))) for one in texts])
    bias = torch.full(text.shape[:2], HIDDEN)
    for sample, one in enumerate(texts):
        bias[sample, : len(one)] = 0
        bias[sample, -1] = math.log(rows - len(one)) if len(one) < rows else HIDDEN
    return text, bias
