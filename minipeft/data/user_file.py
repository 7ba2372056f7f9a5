"""Reading a classification file of the user's own: .csv (with a header line) or .jsonl (an object a line), in UTF-8.

Fields: `text`, `label` (a string, an integer or a truth value) and, in every row or in none, `text_pair`; others are
ignored.
The classes are the distinct labels, sorted: as numbers if all of them are integers, else as text.
A bad row is an error that names its line. Nothing is skipped but blank lines.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from minipeft.data.splits import Example
from minipeft.errors import UserError

_Row = tuple[int, dict[str, object]]  # the line it starts on, and its fields


def read_examples(path: str | Path) -> tuple[list[Example], tuple[str, ...]]:
    """Read the file at `path`: its examples in the order of the file, and the class names that `label` points into.

    Raises:
        UserError: the file is missing, empty or not UTF-8; `text` or `label` is missing; a row is bad; one class only.
    """
    path = Path(path)
    text = _read_text(path)
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _jsonl_rows(path, text)
    found: list[tuple[str, str, str | None]] = []
    paired: bool | None = None
    for line, fields in rows:
        if paired is None:
            paired = "text_pair" in fields
        if paired != ("text_pair" in fields):
            raise _bad(
                path,
                line,
                f"{'no' if paired else 'a'} text_pair, unlike the rows before; give it in every row or in none",
            )
        pair = _text(path, line, fields, "text_pair") if paired else None
        found.append((_text(path, line, fields, "text"), _label(path, line, fields), pair))
    if not found:
        raise UserError(f"{path} is empty: it has no rows. It needs rows with text and label, of at least two classes.")
    labels = _sorted_labels({label for _, label, _ in found})
    if len(labels) < 2:
        raise UserError(
            f"{path} has one class only, {labels[0]!r}. Classification needs at least two different labels."
        )
    index = {label: number for number, label in enumerate(labels)}
    return [Example(text, index[label], pair) for text, label, pair in found], labels


def read_objects(path: str | Path, needed: tuple[str, ...]) -> Iterator[_Row]:
    """The objects of a .jsonl file, each with the line that it is on.

    Raises:
        UserError: the file is missing or not UTF-8; a line is no JSON object, or lacks a field of `needed`.
    """
    path = Path(path)
    return _jsonl_rows(path, _read_text(path), needed)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}. Check the path (it is taken from {Path.cwd()}).") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        return data.decode("utf-8-sig")  # spreadsheets put a byte order mark in front
    except UnicodeDecodeError as error:
        # error.object, not data: the codec has cut off the byte order mark before it counts
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise _bad(path, line, f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from error


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    # strict: a stray quote is an error rather than a guess. newline="": line breaks inside quotes stay as they are.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [name.strip() for name in cells]
                _check_header(path, header)
            elif len(cells) != len(header):
                problem = f"{len(cells)} fields, but the header has {len(header)}; quote a text that has commas"
                raise _bad(path, start, problem)
            else:
                yield start, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        problem = f"not valid CSV ({error}); put a text with commas, quotes or line breaks in quotes, doubled inside"
        raise _bad(path, line, problem) from error


def _check_header(path: Path, header: list[str]) -> None:
    for name in ("text", "label"):
        if header.count(name) != 1:
            problem = "no column" if name not in header else "more than one column"
            hint = " Columns are separated by commas." if len(header) == 1 else ""
            raise UserError(
                f"{path} has {problem} {name!r} in its first line. Columns found: {', '.join(map(repr, header))}. "
                f"Needed: text, label, and for pairs text_pair.{hint}"
            )


def _jsonl_rows(path: Path, text: str, needed: tuple[str, ...] = ("text", "label")) -> Iterator[_Row]:
    # Not splitlines(): that also breaks at U+2028 and other characters that may stand inside a JSON string.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _bad(
                path, line, f"not valid JSON ({error or type(error).__name__}); one object a line is expected"
            ) from error
        if not isinstance(fields, dict):
            raise _bad(
                path, line, f"not a JSON object; expected {{{', '.join(f'{json.dumps(n)}: ...' for n in needed)}}}"
            )
        for name in needed:
            if name not in fields:
                raise _bad(path, line, f"no {name!r}; fields found: {', '.join(map(repr, fields)) or 'none'}")
        yield line, fields


def _text(path: Path, line: int, fields: dict[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise _bad(path, line, f"{name} must be a string, not {json.dumps(value)[:40]}")
    if not value.strip():
        raise _bad(path, line, f"empty {name}")
    return encodable(path, line, name, value)


def _label(path: Path, line: int, fields: dict[str, object]) -> str:
    value = fields["label"]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise _bad(path, line, "missing label")
    if isinstance(value, str):
        return encodable(path, line, "label", value.strip())
    if isinstance(value, int):  # also True and False, as "true" and "false"
        return json.dumps(value)
    raise _bad(path, line, f"label must be a string or an integer, not {json.dumps(value)[:40]}")


def encodable(path: Path, line: int, name: str, value: str) -> str:
    """The value of a field. Raises UserError when it is no text that UTF-8 can write."""
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character: "\ud83d" without its other half
        raise _bad(path, line, f"{name} holds half of a surrogate pair, which is not a character") from error
    return value


def _sorted_labels(labels: set[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _bad(path: Path, line: int, problem: str) -> UserError:
    return UserError(f"{path}, line {line}: {problem}.")
