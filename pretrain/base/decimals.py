"""Options that are decimals, as they were written."""

from fractions import Fraction


def exact(number: float) -> Fraction:
    """The decimal that a person wrote, not the binary number beside it: 1.1 x 100 is 110, where
    floats make 110.00000000000001 of it, which a ceiling takes for 111."""
    return Fraction(repr(number))
