"""Reads files record by record and knows where each record stands.

Every complaint about raw data must name the file, the row and the column. So the readers here
stream one record at a time beside its row: the line of the file for text (the header is row 1),
the record's number for Parquet. Nothing is parsed twice and no file is held whole.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pruning.errors import SourceError

_GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)
_SHOWN = 60


@dataclass(frozen=True)
class Table:
    """A file with named columns.

    Attributes:
        path: where it was read from.
        header: the column names, unique.
        rows: the row number and the fields of each record; as many fields as the header has.
    """

    path: Path
    header: tuple[str, ...]
    rows: Iterator[tuple[int, Sequence[Any]]]

    def position(self, column: str) -> int:
        """Where `column` stands among the fields.

        Raises:
            SourceError: the file has no such column.
        """
        _check_presence(self.path, self.header, column)
        return self.header.index(column)


def fault(path: Path, row: int | None, column: str | None, problem: str, remedy: str) -> SourceError:
    """The one-line complaint that every reader raises."""
    place = [str(path)]
    if row is not None:
        place.append(f"row {row}")
    if column is not None:
        place.append(f"column {column}")
    return SourceError(f"{', '.join(place)}: {problem}; {remedy}")


def shown(value: object) -> str:
    """A value as a message may quote it: on one line, and not endless."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text file, plain or gzip by its name, each with its line end.

    Raises:
        SourceError: the file cannot be read, its gzip is damaged or cut off, or a byte is not of
            `encoding`.
    """
    row = offset = 0
    try:
        with _open(path) as file:
            for raw in file:
                row += 1
                line = raw.decode(encoding)
                yield line.removeprefix("\ufeff") if row == 1 else line
                offset += len(raw)
    except _GZIP_ERRORS as error:
        raise fault(
            path,
            row + 1,
            None,
            f"the gzip is damaged or cut off ({error})",
            "fetch or compress the file again",
        ) from error
    except UnicodeDecodeError as error:
        raise fault(
            path,
            row,
            None,
            f"byte {offset + error.start} (0x{error.object[error.start]:02x}) is not UTF-8",
            "save the file as UTF-8",
        ) from error
    except OSError as error:
        raise fault(path, None, None, f"cannot be read ({error.strerror})", "check the file") from error


def read_csv(path: Path) -> Table:
    """A comma-separated file with quotes (RFC 4180) and a header."""
    return _table(path, _quoted(path))


def read_separated(
    path: Path, separator: str, header: Sequence[str] | None = None, encoding: str = "utf-8"
) -> Table:
    """A file whose fields stand between separators and know no quotes; without `header`, row 1 is it."""
    return _table(path, _unquoted(path, separator, encoding), header)


def read_parquet(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """The named columns of a Parquet file; numbers stay numbers, dates become Unix seconds."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise fault(
            path, None, None, f"no whole Parquet file ({_first_line(error)})", "write it again"
        ) from error
    present = tuple(file.schema_arrow.names)
    _check_header(path, present)
    for name in columns:
        _check_presence(path, present, name)
    header = (*columns, *(name for name in optional if name in present))
    return Table(path, header, _parquet_rows(path, file, header))


def open_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """A CSV (plain or gzip) or Parquet file, by its name."""
    if path.suffix == ".parquet":
        return read_parquet(path, columns, optional)
    return read_csv(path)


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _quoted(path: Path) -> Iterator[tuple[int, Sequence[str]]]:
    reader = csv.reader(text_lines(path), strict=True)
    row = 1
    try:
        for fields in reader:
            if fields:
                yield row, fields
            row = reader.line_num + 1  # a quoted field may hold line ends
    except csv.Error as error:
        raise fault(
            path, row, None, f"no valid CSV ({error})", "close every quote, and double quotes inside"
        ) from error


def _unquoted(path: Path, separator: str, encoding: str) -> Iterator[tuple[int, Sequence[str]]]:
    for row, line in enumerate(text_lines(path, encoding), start=1):
        text = line.rstrip("\r\n")
        if text:
            yield row, text.split(separator)


def _table(
    path: Path,
    records: Iterator[tuple[int, Sequence[str]]],
    header: Sequence[str] | None = None,
) -> Table:
    if header is None:
        first = next(records, None)
        if first is None:
            raise fault(path, None, None, "the file is empty", "give one with a header and rows")
        header = first[1]
    _check_header(path, header)
    return Table(path, tuple(header), _of_width(path, records, len(header)))


def _check_presence(path: Path, header: Sequence[str], column: str) -> None:
    if column not in header:
        raise fault(
            path,
            None,
            column,
            f"missing; the file has {', '.join(header)}",
            "add the column or rename the one that holds it",
        )


def _check_header(path: Path, header: Sequence[str]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise fault(path, None, name, "the column stands twice", "keep one of them")


def _of_width(
    path: Path, records: Iterator[tuple[int, Sequence[str]]], width: int
) -> Iterator[tuple[int, Sequence[str]]]:
    for row, fields in records:
        if len(fields) != width:
            raise fault(
                path,
                row,
                None,
                f"{len(fields)} fields where {width} are expected",
                "complete the row, and quote fields that hold a separator",
            )
        yield row, fields


def _parquet_rows(
    path: Path, file: pq.ParquetFile, header: tuple[str, ...]
) -> Iterator[tuple[int, Sequence[Any]]]:
    row = 1
    try:
        for batch in file.iter_batches(columns=list(header)):
            columns = [_column_values(path, row, name, batch.column(name)) for name in header]
            yield from enumerate(zip(*columns, strict=True), start=row)
            row += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise fault(
            path, row, None, f"no whole Parquet file ({_first_line(error)})", "write it again"
        ) from error
    finally:
        file.close()


def _column_values(path: Path, first_row: int, name: str, column: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        for row, value in enumerate(column, start=first_row):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise fault(path, row, name, "the text is not UTF-8", "write it as UTF-8") from error
        raise
    return values


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
