"""What a device does in a second, measured once where it is quick and asked for."""

import time
from functools import lru_cache

import torch

from .memory import Rates

SIDE = {"cpu": 768, "cuda": 4096}
COPY_BYTES = 128 * 2**20
REPEATS = 4
UNKNOWN = Rates(matmul=2e13, attention=1.5e13, link=1.2e10)
"""A device that cannot be timed here: a middling card behind PCIe 3."""


@lru_cache(maxsize=8)
def rates_of(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measured on the device with random numbers; some 50 ms the first time, then remembered."""
    if device.type not in SIDE:
        return UNKNOWN
    try:
        return _measured(device, dtype)
    except torch.cuda.OutOfMemoryError:  # a card that is full is planned for all the same
        return UNKNOWN


def _measured(device: torch.device, dtype: torch.dtype) -> Rates:
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    matmul = 2 * side**3 / _seconds(lambda: a @ b, device)
    q = torch.randn(1, 8, side // 2, 128, device=device, dtype=dtype)
    scores = 4 * 8 * (side // 2) ** 2 * 128
    attention = scores / _seconds(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q), device)
    if device.type == "cpu":
        return Rates(matmul=matmul, attention=attention, link=float("inf"))
    pinned = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    link = COPY_BYTES / _seconds(lambda: there.copy_(pinned, non_blocking=True), device)
    return Rates(matmul=matmul, attention=attention, link=link)


def _seconds(call, device: torch.device) -> float:
    """Best of a few."""
    best = float("inf")
    for _ in range(REPEATS):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
