"""A check for NaN and infinity that says where, before they become a black video."""

from torch import Tensor

from ..errors import NonFiniteError


def check_finite(x: Tensor, where: str, model: str, advice: str) -> None:
    """Raise :class:`NonFiniteError` if ``x`` holds NaN or infinity.

    One sum and one number from the device while all is well; the counting is done only after.

    Args:
        where: the stage or step, e.g. ``step 7 of 20 at sigma 0.83, low-noise expert``.
        model: the name of the model or file.
        advice: what the user can do.
    """
    if x.sum().isfinite():
        return
    bad = ~x.isfinite()
    if not bad.any():  # finite numbers whose sum is not
        return
    first = tuple(bad.nonzero()[0].tolist())
    raise NonFiniteError(
        f"{model} gave values that are not numbers at {where}: {int(x.isnan().sum())} NaN and {int(x.isinf().sum())} "
        f"infinite of {x.numel()}, the first at {first} of {tuple(x.shape)}. It was stopped there instead of making a "
        f"black video. {advice}"
    )
