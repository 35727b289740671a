"""Where values come from, as a sentence names it."""

from __future__ import annotations

from dataclasses import dataclass

from deepinterest.data.text_file import TextFile


@dataclass(frozen=True)
class Where:
    """A table of the user's: a file, or rows of one."""

    name: str
    text: TextFile | None = None  # whose lines are told beside its rows
    first: int = 0  # rows of the file before these
    blank_rows: bool = True  # whether a blank line was read as a row

    def __str__(self) -> str:
        return self.name

    def row(self, index: int) -> str:
        """`row 3`, of a text file `row 3 (line 4)`; index: of these rows, from 0."""
        row = self.first + index
        line = self.text.line(row, self.blank_rows) if self.text else None
        return f"row {row + 1}" if line is None else f"row {row + 1} (line {line})"
