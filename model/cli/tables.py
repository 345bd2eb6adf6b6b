"""Tables on the terminal: one look for all commands."""

from collections.abc import Iterable

from rich import box
from rich.table import Table


def plain_table(
    title: str | None = None,
    columns: Iterable[str] = (),
    rows: Iterable[Iterable[str]] = (),
    *,
    header: bool = True,
) -> Table:
    """Make a table with a rule under its header.

    Args:
        title: Its title, on the left.
        columns: Headings. ``>p50`` is a column of numbers, to the right; ``~note`` may fold; others
            are names, on the left. Neither names nor numbers are broken.
        rows: Cells, in rich's markup; more can be added to the result.
        header: Show the headings.
    """
    table = Table(
        title=title,
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_header=header,
    )
    for column in columns:
        folds = column.startswith("~")
        table.add_column(
            column.lstrip(">~"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=not folds,
            overflow="fold" if folds else "ellipsis",
        )
    for row in rows:
        table.add_row(*row)
    return table
