"""Console output of commands: an argument parser, tables, sentences and large numbers.

A table never breaks a line inside a word and never cuts a number. A long name breaks after `/`, `_`
and the like, or loses its middle. Columns that still do not fit are printed below the others.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import NoReturn

from rich.cells import cell_len as cells_of
from rich.console import Console
from rich.segment import Segment, Segments
from rich.text import Text

from align.errors import ConfigError

# Escape sequences that move the cursor, set a title or change colours [ECMA-48, 5.4 and 5.6],
# including incomplete ones at the end.
_ESCAPES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*(?:[@-~]|\\Z)"  # CSI, with its parameters
    # OSC, DCS and similar
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c|\x1b?\\Z)"
    "|\x1b[ -/]*(?:[0-~]|\\Z)"
)

_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_GAP = 2  # spaces between columns
_NARROWEST = 12  # characters; a column of text is not made narrower than this
_INDENT = "  "  # before all lines of a sentence except the first
_WORDS = re.compile(r"(?:[^ \t]| (?=%))+[ \t]*")
_BREAKS = re.compile(
    r"(?:[^ \t/_=.]|\.(?![A-Za-z])| (?=%))*(?:[/_=]|\.(?=[A-Za-z]))*[ \t]*"
)  # pieces of names; a line may break after each
# A number. A column of numbers is never made narrower: `67.2 [64.4, 69.8]`, `+1.2e-05 *`, `409 k`,
# `2026-11-29 17:14`.
_NUMBER = re.compile(r"[-+]?\.?\d[-+.,:\d %†*\[\]eE]*( ?(k|M|B|T|kB|MB|GB|s))?|[-+]?(nan|inf)")


class Parser(argparse.ArgumentParser):
    """An argument parser that raises a one-line `ConfigError` on wrong arguments."""

    def error(self, message: str) -> NoReturn:
        command = " ".join(self.prog.split()[:2])
        raise ConfigError(f"{command}: {message}; see {command} --help")


def plain_console(stderr: bool = False, width: int | None = None) -> Console:
    """Return a console that prints text unchanged, without markup, emoji codes or highlighting."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def wide_console() -> Console:
    """Return a console of the width of the terminal or of COLUMNS, else of 400 columns.

    400 is wide enough that nothing is cut that a program may search for.
    """
    is_known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return plain_console(width=None if is_known else 400)


def print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that fits the console, with a bold head."""
    for lines, style in table_lines(columns, rows, console.width):
        text = "\n".join([*lines, ""])
        # Print segments without a new layout: the lines fit, and a layout of thousands is slow.
        console.print(
            Segments([Segment(text, console.get_style(style or "none"))]), crop=False, end=""
        )


def print_sentence(console: Console, text: str, style: str = "") -> None:
    """Print a sentence. All lines except the first are indented."""
    lines = sentence_lines(text, console.width)
    console.print(Text("\n".join(lines), style=style, no_wrap=True, overflow="ignore"), crop=False)


def sentence_lines(text: str, width: int) -> list[str]:
    """Break a sentence between words, and indent all lines except the first.

    A word that is longer than a line is not broken.
    """
    lines: list[str] = []
    for word in map(str.rstrip, _WORDS.findall(text.strip())):
        if lines and cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(_INDENT + word if lines else word)
    return lines


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> list[tuple[list[str], str]]:
    """Lay out a table with at most `width` characters per line.

    Args:
        columns: the titles. If all are empty, the table has no head.
        rows: a cell for each column. A column that has only numbers is aligned to the right and
            never made narrower.
        width: the characters per line.

    Returns:
        Blocks of lines, each with its style ("bold" for a head). Columns that do not fit follow in
        blocks below, with the first column repeated before them.
    """
    cells = [[_printable(cell) for cell in row] for row in rows]
    own = list(range(len(columns)))
    blocks: list[tuple[list[str], str]] = []
    while own:
        fitting = len(own)
        while fitting > min(2, len(own)) and _narrowest(columns, cells, own[:fitting]) > width:
            fitting -= 1
        if blocks:
            blocks.append(([""], ""))
        blocks += _block(columns, cells, own[:fitting], width)
        rest = own[fitting:]
        own = [0, *rest] if rest else []
    return blocks


def _block(
    columns: Sequence[str], cells: Sequence[Sequence[str]], own: Sequence[int], width: int
) -> list[tuple[list[str], str]]:
    """Lay out the columns `own` side by side."""
    widths = _widths(columns, cells, own, width)
    right = [_is_number(cells, i) for i in own]

    def lines(row: Sequence[str]) -> list[str]:
        parts = [_broken(row[i], size) for i, size in zip(own, widths, strict=True)]
        made = []
        for number in range(max(len(part) for part in parts)):
            line = ""
            for part, size, is_right in zip(parts, widths, right, strict=True):
                text = part[number] if number < len(part) else ""
                space = " " * (size - cell_len(text))
                line += (space + text if is_right else text + space) + " " * _GAP
            made.append(line.rstrip())
        return made

    head = [(lines(columns), "bold")] if any(columns[i] for i in own) else []
    body = [line for row in cells for line in lines(row)]
    return [*head, (body, "")] if body else head


def _widths(
    columns: Sequence[str], cells: Sequence[Sequence[str]], own: Sequence[int], width: int
) -> list[int]:
    """Return the widths of the columns `own`.

    They are as wide as their cells. If the table does not fit, the widest columns of text are made
    narrower first.
    """
    natural = [_natural(columns, cells, i) for i in own]
    least = [_least(columns, cells, i) for i in own]
    room = width - _GAP * (len(own) - 1)
    while sum(natural) > room:
        spare = [size - low for size, low in zip(natural, least, strict=True)]
        able = [place for place, left in enumerate(spare) if left > 0]
        if not able:
            break
        natural[max(able, key=lambda place: natural[place])] -= 1
    return natural


def _narrowest(columns: Sequence[str], cells: Sequence[Sequence[str]], own: Sequence[int]) -> int:
    return sum(_least(columns, cells, i) for i in own) + _GAP * (len(own) - 1)


def _natural(columns: Sequence[str], cells: Sequence[Sequence[str]], column: int) -> int:
    """Return the width at which nothing in a column breaks."""
    return max([cell_len(columns[column]), *(cell_len(row[column]) for row in cells)])


def _least(columns: Sequence[str], cells: Sequence[Sequence[str]], column: int) -> int:
    """Return the least width of a column. Numbers are never broken, but their title may be."""
    if not _is_number(cells, column):
        return min(_natural(columns, cells, column), _NARROWEST)
    title = max((cell_len(piece.rstrip()) for piece in _pieces(columns[column])), default=0)
    return max([min(title, _NARROWEST), *(cell_len(row[column]) for row in cells)])


def cell_len(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return len(text) if text.isascii() and text.isprintable() else cells_of(text)


def _is_number(cells: Sequence[Sequence[str]], column: int) -> bool:
    filled = [row[column] for row in cells if row[column]]
    return bool(filled) and all(_NUMBER.fullmatch(cell) for cell in filled)


def _pieces(text: str) -> list[str]:
    """Split a text into pieces that are not broken: words, and the parts of names."""
    return [piece for piece in _BREAKS.findall(text) if piece]


def _broken(text: str, width: int) -> list[str]:
    """Break a cell into lines of `width` characters.

    Lines break between words. They break inside a name only if it does not fit into one line.
    """
    if cell_len(text) <= width:
        return [text]
    lines = [""]
    for word in _WORDS.findall(text):
        pieces = [word] if cell_len(word.rstrip()) <= width else _pieces(word)
        for piece in pieces:
            if cell_len((lines[-1] + piece).rstrip()) <= width:
                lines[-1] += piece
            elif cell_len(piece.rstrip()) <= width:
                lines.append(piece)
            else:
                lines.append(_without_middle(piece.rstrip(), width))
    return [line.rstrip() for line in lines if line.strip()] or [""]


def _without_middle(name: str, width: int) -> str:
    """Return `name` with "..." in place of its middle, so that it fits into `width`."""
    half = (width - 3) // 2
    head, tail = name[: width - 3 - half], name[len(name) - half :]
    while cell_len(head) + cell_len(tail) + 3 > width:  # some characters are two columns wide
        head, tail = (head[:-1], tail) if cell_len(head) >= cell_len(tail) else (head, tail[1:])
    return f"{head}...{tail}"


def _printable(text: str) -> str:
    """Replace characters that a terminal could take as a command by spaces."""
    if text.isprintable():
        return text.strip()
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def harmless(text: str) -> str:
    """Remove escape sequences and control characters, except line breaks and tabs, from a text."""
    plain = _ESCAPES.sub("", text)
    return "".join(
        character for character in plain if character in "\n\t" or not _is_control(character)
    )


def _is_control(character: str) -> bool:
    """Return whether a character is a control character or changes the direction of text."""
    return unicodedata.category(character) == "Cc" or character in _DIRECTIONS


def short(number: float | None) -> str:
    """Format a number in three digits: 409440 as 409 k, 6738415616 as 6.74 B; None as ""."""
    if number is None:
        return ""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip(".") + f" {letter}"
    return f"{number:.0f}"
