"""Numbers as the page writes them; a missing or non-finite number is a dash, never a crash."""

import math

MISSING = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: object) -> float | None:
    """The value as a finite float; None for anything else (absent, text, NaN, infinity)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def percent(rate: object) -> str:
    """A rate 0..1 as `52.8 %`: one decimal, two below 1 %, two digits below 0.1 %."""
    return MISSING if number(rate) is None else f"{points(rate)} %"


def points(rate: object) -> str:
    """As `percent`, without the sign, for tables of nothing else."""
    value = number(rate)
    if value is None:
        return MISSING
    value *= 100
    if value == 0 or abs(value) >= 1:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def count(value: object) -> str:
    """A whole number with thousands separators."""
    parsed = number(value)
    return MISSING if parsed is None else f"{round(parsed):,}"


def decimal(value: object, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent where that stays short."""
    parsed = number(value)
    if parsed is None:
        return MISSING
    if parsed == 0:
        return "0"
    if not 1e-4 <= abs(parsed) < 1e6:
        return _power(f"{parsed:.{digits - 1}e}")
    decimals = digits - 1 - math.floor(math.log10(abs(parsed)))
    return f"{parsed:,.{max(decimals, 0)}f}"


def duration(seconds: object) -> str:
    """A time span in the two units that matter: 41.3 s, 4 min 34 s, 2 h 05 min."""
    value = number(seconds)
    if value is None:
        return MISSING
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def short_span(seconds: object) -> str:
    """A part of a step or of an axis: 0 s, 85.3 ms, 1.25 s."""
    value = number(seconds)
    if value is None:
        return MISSING
    return f"{1000 * value:.3g} ms" if 0 < value < 0.9995 else f"{value:.3g} s"


def short(value: float) -> str:
    """A number for an axis: 0, 0.5, 200, 50k, 1.5M, 2·10⁻⁵."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    return _power(f"{value:.2e}") if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def short_bytes(size: float) -> str:
    """A size as 68.6 MB."""
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def _power(text: str) -> str:
    """`1.50e-05` as people write it: 1.5·10⁻⁵."""
    digits, power = text.split("e")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return f"{digits}·10{str(int(power)).translate(_RAISED)}"


def readable(name: object) -> str:
    """A field's or a set's name for people: underscores become spaces."""
    return str(name).replace("_", " ")


def plural(amount: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{amount:,} {noun}" + ("" if amount == 1 else "s")
