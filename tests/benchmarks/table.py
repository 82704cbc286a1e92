"""Figures as people read them."""

from __future__ import annotations

from dataclasses import dataclass, field

from .meter import Sample


@dataclass
class Table:
    """Rows below a title."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """One more row."""
        self.rows.append(cells)

    def text(self) -> str:
        """The table in columns."""
        widths = [max(len(row[column]) for row in (self.head, *self.rows)) for column in range(len(self.head))]
        lines = [
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (self.head, tuple("-" * width for width in widths), *self.rows)
        ]
        return "\n".join([self.title, *lines])


def milliseconds(sample: Sample) -> str:
    """Wall and CPU in ms."""
    return f"{sample.wall * 1000:.0f} / {sample.cpu * 1000:.0f}"


def ratio(sample: Sample, reference: Sample | None) -> str:
    """Wall and CPU as multiples of a reference's; a dash where there is none."""
    if reference is None:
        return "-"
    return f"{sample.wall / reference.wall:.2f} / {sample.cpu / reference.cpu:.2f}"
