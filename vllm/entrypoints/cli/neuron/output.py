"""Tables for people and for pipes: rich on a terminal, aligned plain text elsewhere, never cut or coloured there."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from vllm.settings.faults import Fault
from vllm.sizes import GIB, KIB, MIB

_NUMBER = re.compile(r"[\d,.]+%?( (GiB|MiB|KiB|bytes|s|days))?")


class Table(NamedTuple):
    """Rows of texts under `columns`. Columns after the first that hold only numbers are aligned to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def is_terminal() -> bool:
    return sys.stdout.isatty()


def print_table(table: Table) -> None:
    rows = [[str(cell) for cell in row] for row in table.rows]
    if is_terminal():
        _print_rich(table, rows)
    else:
        print("\n".join(plain_lines(table.title, table.columns, rows)))


def plain_lines(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [title] if title else []
    numeric = [_is_numeric(rows, column) for column in range(len(columns))]
    if any(columns):
        rows = [list(columns), *rows]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(columns))]
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return [*lines, ""]


def _is_numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    cells = [row[column] for row in rows if row[column]]
    return column > 0 and bool(cells) and all(_NUMBER.fullmatch(cell) for cell in cells)


def _print_rich(table: Table, rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    drawn = RichTable(title=table.title, title_justify="left", title_style="bold", show_header=any(table.columns))
    for i, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if _is_numeric(rows, i) else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    Console(highlight=False, markup=False).print(drawn)


def print_faults(faults: Sequence[Fault], what: str = "the configuration") -> None:
    """Every fault, on stdout with the rest of the report."""
    head = f"{'1 fault' if len(faults) == 1 else f'{len(faults)} faults'} in {what}:"
    if is_terminal():
        _print_rich_faults(head, faults)
    else:
        print("\n".join([head, *(f"  - {fault}" for fault in faults)]))
    print()


def _print_rich_faults(head: str, faults: Sequence[Fault]) -> None:
    """Each set off by a dash, its further lines below its first."""
    from rich.console import Console
    from rich.table import Table as RichTable

    items = RichTable.grid(padding=(0, 1))
    for fault in faults:
        items.add_row("  -", str(fault))
    console = Console(highlight=False, markup=False)
    console.print(head, style="bold red")
    console.print(items, style="red")


def size(count: int | None) -> str:
    """Bytes for people: GiB from one up, else MiB, else KiB or bytes."""
    if count is None:
        return ""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(count) >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} bytes"
