"""Numbers and tables as people read them."""

from numbers import Integral, Real

import pandas as pd

MISSING = "–"


def number(value: object, digits: int | None = None) -> str:
    """A value as it is displayed everywhere: 4,215,130, 98.77, 0.0001234; a dash for a missing value.

    Integers are written whole. Other numbers have `digits` decimals; with None, four significant digits, or no decimals
    from 10,000 on. Thousands are separated by commas. A value that is no number is returned as its text.
    """
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return MISSING
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return f"{value:,}"
    value = float(value)
    if digits is not None:
        return f"{value:z,.{digits}f}"  # z: what rounds to zero has no minus sign
    rounded = float(f"{value:.4g}")
    if 1e4 <= abs(rounded) < 1e12:  # the rounded value decides: "g" would write 9,999.7 as 1e+04
        return f"{value:,.0f}"
    return f"{value:z,.4g}"


def markdown(table: pd.DataFrame) -> str:
    """A data frame as a Markdown table without its index: the first column to the left, the others to the right."""
    alignment = [":--"] + ["--:"] * (len(table.columns) - 1)
    rows = [list(table.columns), alignment, *table.to_numpy().tolist()]
    return "\n".join(_markdown_row(row) for row in rows)


def _markdown_row(cells: list) -> str:
    texts = [str(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(texts)} |"
