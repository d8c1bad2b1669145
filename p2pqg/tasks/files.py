"""Data that already lies on the device, for a task of your own: arrays in an .npz file, or a CSV table.

Nothing is unpickled. Whole-number targets become class numbers (int64); other targets keep `dtype`.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2pqg.errors import ConfigError
from p2pqg.tasks.supervised import Batch


def load_npz(
    path: str | Path, inputs: str = "inputs", targets: str = "targets", dtype: torch.dtype = torch.float32
) -> Batch:
    """The arrays of two names in a numpy archive: inputs `[samples, ...]` and targets `[samples, ...]`.

    Raises `ConfigError`, naming the file, if it cannot be read, lacks one of the names, or if an array is
    not numeric, not finite or of another length than the other, or if bytes are asked for and inputs are
    anything else.
    """
    try:
        with _existing(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in (inputs, targets):
                if name not in archive:
                    raise _wrong(path, f"expected an array {name!r}, found {', '.join(archive) or 'none'}")
            arrays = archive[inputs], archive[targets]
    except ConfigError:
        raise
    except Exception as error:  # numpy raises half a dozen kinds for a broken or pickled archive
        raise _wrong(path, f"expected a numpy archive (.npz) without pickled objects: {error}") from error
    return _batch(path, *arrays, dtype)


def load_csv(path: str | Path, target: str = "label", dtype: torch.dtype = torch.float32) -> Batch:
    """A table of numbers under a line of column names: the column `target`, all others as inputs
    `[samples, columns]`.

    Raises `ConfigError`, naming the file and the line, if it cannot be read, lacks the column, or holds
    something that is not a finite number.
    """
    try:
        text = _existing(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(path, f"expected UTF-8 text: {error}") from error
    lines = csv.reader(text.splitlines())
    header = [name.strip() for name in next(lines, [])]
    if header.count(target) != 1:
        raise _wrong(path, f"expected one column {target!r}, found {', '.join(header) or 'no line'}")
    rows = []
    for row in lines:
        if len(row) != len(header):
            raise _wrong(path, f"line {lines.line_num}: expected {len(header)} values, found {len(row)}")
        try:
            rows.append([float(value) for value in row])
        except ValueError as error:
            raise _wrong(path, f"line {lines.line_num}: expected numbers: {error}") from error
    table = np.array(rows, dtype=np.float64).reshape(-1, len(header))
    column = header.index(target)
    wanted = table[:, column]
    if np.array_equal(wanted, np.rint(wanted)):
        wanted = wanted.astype(np.int64)
    return _batch(path, np.delete(table, column, axis=1), wanted, dtype)


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise _wrong(path, "expected a file, found none")
    return Path(path)


def _batch(
    path: str | Path, inputs: NDArray[np.generic], targets: NDArray[np.generic], dtype: torch.dtype
) -> Batch:
    if not inputs.shape or not targets.shape or len(inputs) != len(targets):
        raise _wrong(
            path,
            f"expected one target for each input, found inputs {inputs.shape} and targets {targets.shape}",
        )
    whole = np.issubdtype(targets.dtype, np.integer)
    fraction = dtype if dtype.is_floating_point else torch.float32
    return (
        _tensor(path, "inputs", inputs, dtype),
        _tensor(path, "targets", targets, torch.int64 if whole else fraction),
    )


def _tensor(path: str | Path, name: str, array: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_) or np.iscomplexobj(array):
        raise _wrong(path, f"expected {name} of a numeric type, found {array.dtype}")
    if dtype == torch.uint8 and array.dtype != np.uint8:
        raise _wrong(path, f"expected {name} of type uint8, found {array.dtype}")
    if not np.isfinite(array).all():
        raise _wrong(path, f"expected finite {name}, found infinity or not-a-number")
    return torch.tensor(array.astype(np.float64) if array.dtype.kind == "f" else array).to(dtype)


def _wrong(path: str | Path, message: str) -> ConfigError:
    return ConfigError(message, where=str(path), key="task.data")
