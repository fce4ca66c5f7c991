"""Tables of text cells, on the terminal and as GitHub Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jscpt_peft.choices import markdown, printable

Rows = Sequence[Sequence[str]]


def print_table(title: str, header: Sequence[str], rows: Rows, summary: Rows, console: Console | None = None) -> None:
    """Prints rows and, below a line, those of `summary`; cells that begin with a sign are green or red."""
    table = Table(title=Text(printable(title)), title_justify="left")
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if number else "left")
    for number, row in enumerate([*rows, *summary]):
        if number == len(rows):
            table.add_section()
        # Text, not str: a name may hold what rich would read as markup.
        table.add_row(*(Text(printable(cell), _style(cell) if place else "") for place, cell in enumerate(row)))
    (console or Console()).print(table)


def markdown_table(header: Sequence[str], rows: Rows, summary: Rows = ()) -> str:
    """The same in Markdown; cells of `summary` are bold."""
    plain = [[markdown(cell) for cell in row] for row in rows]
    bold = [[f"**{markdown(cell)}**" if cell else "" for cell in row] for row in summary]
    return joined_cells(header, [*plain, *bold])


def joined_cells(header: Sequence[str], rows: Rows) -> str:
    """A table in Markdown of cells that are Markdown themselves."""
    lines = [header, [":---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(fraction: float) -> str:
    """A fraction in per cent with one decimal."""
    return "n/a" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    # Adding zero after rounding makes -0.0 a 0.0.
    return "n/a" if math.isnan(difference) else f"{round(100 * difference, 1) + 0.0:+.1f}"


def _style(cell: str) -> str:
    return "" if cell == "+0.0" else {"+": "green", "-": "red"}.get(cell[:1], "")
