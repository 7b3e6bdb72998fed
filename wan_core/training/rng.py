"""Random numbers of a step, the same whenever it is run."""

import numpy as np
import torch


def generator_of(*numbers: int) -> torch.Generator:
    """A generator that depends on these numbers and on nothing else."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed & (2**63 - 1))
