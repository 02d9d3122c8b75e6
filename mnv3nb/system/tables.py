"""Numbers and tables as people read them."""

import math

import pandas as pd


def number(value: float) -> str:
    """An integer or a large number with thousands separators, else four significant digits; a dash for a missing one."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() or 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def markdown(table: pd.DataFrame) -> str:
    """A frame as a markdown table, its index left out."""
    rows = [list(table.columns), [":--", *["--:"] * (len(table.columns) - 1)], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
