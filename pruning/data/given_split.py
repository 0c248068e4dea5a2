"""Reads a split that somebody else made, one row a prediction, and rebuilds the users' sequences.

    split,user_id,history_item_ids,target_item_id,timestamp
    train,0,2347 1692,311,1506816000

A user's first history and the targets after it are the sequence. So every later history is known
beforehand, and is checked: a file that cannot be rebuilt is refused rather than read differently.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pruning.data.interactions import (
    Items,
    Progress,
    RawData,
    identifier,
    seconds,
    untitled_item,
)
from pruning.data.records import Table, fault, shown
from recommender.dataset import SPLITS

COLUMNS = ("split", "user_id", "history_item_ids", "target_item_id", "timestamp")
_CODES = {name: code for code, name in enumerate(SPLITS)}


@dataclass
class _Sequence:
    items: array[int] = field(default_factory=lambda: array("i"))
    timestamps: array[int] = field(default_factory=lambda: array("q"))
    splits: array[int] = field(default_factory=lambda: array("b"))


def read_given_split(table: Table, items: Items, history: int, progress: Progress) -> RawData:
    """Rebuilds the sequences behind the rows of `table`; its splits are taken as they are.

    The items of a user's first history have no time of their own and take that of the first target.

    Args:
        table: has the columns `COLUMNS`; the rows of each user oldest first.
        items: the titles.
        history: every row's history must be the newest this many items before its target.
        progress: told what is being done.

    Raises:
        SourceError: an unknown split or item, a time that cannot be one, a user whose rows are not
            in the order of time and split, or a history that differs from the rows before it.
    """
    progress(f"reading {table.path.name}")
    places = [table.position(column) for column in COLUMNS]
    index = {item_id: position for position, item_id in enumerate(items.titles)}
    sequences: dict[str, _Sequence] = {}
    for row, record in table.rows:
        split, user, text, target, time = (record[place] for place in places)
        code = _CODES.get(split)
        if code is None:
            problem = f"{shown(split)} is no split"
            raise fault(table.path, row, "split", problem, f"give {', '.join(SPLITS)}")
        user_id = identifier(table.path, row, "user_id", user)
        at = seconds(table.path, row, "timestamp", time)
        past = _indices(table.path, row, "history_item_ids", str(text or "").split(), items, index)
        sequence = sequences.get(user_id)
        if sequence is None:
            sequence = sequences[user_id] = _begin(table.path, row, past, history, at)
        _check_history(table.path, row, sequence, past, history)
        _check_order(table.path, row, sequence, code, at)
        item_id = identifier(table.path, row, "target_item_id", target)
        sequence.items.extend(_indices(table.path, row, "target_item_id", [item_id], items, index))
        sequence.timestamps.append(at)
        sequence.splits.append(code)
    if not sequences:
        raise fault(table.path, None, None, "there are no rows", "give a file that has some")
    return _as_columns(sequences, items)


def _indices(
    path: Path, row: int, column: str, ids: list[str], items: Items, index: dict[str, int]
) -> list[int]:
    try:
        return [index[item_id] for item_id in ids]
    except KeyError as missing:
        raise untitled_item(items, missing.args[0], path, row, column) from None


def _begin(path: Path, row: int, past: list[int], history: int, at: int) -> _Sequence:
    if not past:
        problem = "the history is empty"
        raise fault(path, row, "history_item_ids", problem, "take the row out")
    if len(past) > history:
        problem = f"{len(past)} items, and a history holds {history}"
        raise fault(path, row, "history_item_ids", problem, "pass the file's --history")
    count = len(past)
    return _Sequence(array("i", past), array("q", [at] * count), array("b", [-1] * count))


def _check_history(path: Path, row: int, sequence: _Sequence, past: list[int], history: int) -> None:
    if array("i", past) != sequence.items[-history:]:
        raise fault(
            path,
            row,
            "history_item_ids",
            f"not the newest {history} items before this target, as the rows above have them",
            "pass the file's --history, or prepare from interactions instead",
        )


def _check_order(path: Path, row: int, sequence: _Sequence, code: int, at: int) -> None:
    remedy = "sort the rows by time"
    if at < sequence.timestamps[-1]:
        raise fault(path, row, "timestamp", f"{at} is before the user's last row", remedy)
    if code < sequence.splits[-1]:
        problem = f"{SPLITS[code]} after the user's {SPLITS[sequence.splits[-1]]}"
        raise fault(path, row, "split", problem, remedy)


def _as_columns(sequences: dict[str, _Sequence], items: Items) -> RawData:
    found = list(sequences.values())
    lengths = [len(sequence.items) for sequence in found]
    return RawData(
        list(sequences),
        list(items.titles),
        list(items.titles.values()),
        np.repeat(np.arange(len(found), dtype=np.int32), lengths),
        np.concatenate([np.asarray(sequence.items, dtype=np.int32) for sequence in found]),
        np.concatenate([np.asarray(sequence.timestamps, dtype=np.int64) for sequence in found]),
        splits_N=np.concatenate([np.asarray(sequence.splits, dtype=np.int8) for sequence in found]),
        notes=(
            "The splits were given. The items of a user's first history carry the time of the "
            "first target.",
        ),
    )
