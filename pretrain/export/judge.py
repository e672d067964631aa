"""Whether two models are alike: finite on both sides, then near."""

from torch import Tensor

Embeddings = dict[str, Tensor]
"""{"picture" or "text": (B, E)}"""


def embeddings(pictures: Tensor, texts: Tensor) -> Embeddings:
    """Both kinds by their names."""
    return {"picture": pictures, "text": texts}


def judge(
    found: Embeddings,
    expected: Embeddings,
    *,
    found_of: str,
    expected_of: str,
    tolerance: float,
    remedy: str,
) -> float:
    """The largest difference of any value between two models' embeddings of the same samples.

    found_of, expected_of: whose they are, for the message. ValueError, which ends in the remedy,
    where a value on either side is not finite, shapes differ, or the difference is `tolerance` or
    more.
    """
    for owner, side in ((expected_of, expected), (found_of, found)):
        for kind, values in side.items():
            if not values.isfinite().all():
                raise ValueError(f"{kind} embeddings of {owner} are not finite; {remedy}")
    worst = 0.0
    for kind, values in expected.items():
        if found[kind].shape != values.shape:
            raise ValueError(
                f"{kind} embeddings of {found_of} have the shape {tuple(found[kind].shape)}, those "
                f"of {expected_of} {tuple(values.shape)}; {remedy}"
            )
        worst = max(worst, float((found[kind] - values).abs().max()))
    if not worst < tolerance:
        raise ValueError(
            f"{found_of} gives other embeddings than {expected_of}: largest difference "
            f"{worst:.1e}, allowed {tolerance:.0e}; {remedy}"
        )
    return worst
