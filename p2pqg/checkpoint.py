"""Tensors and a few facts about them in one file: safetensors, never pickle.

The header's metadata have one entry, `p2pqg`: JSON of `meta` and of a checksum (xxh3-128) over the meta and
over every tensor's name, dtype, shape and bytes. Any safetensors reader can open the file; this one also
notices a flipped bit. Equal content gives equal files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from p2pqg.errors import StorageError
from p2pqg.storage import replacing

HEADER = "p2pqg"


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write `tensors` and the JSON-clean `meta` to `path`, as one step (see `replacing`).

    Nothing is copied in memory but tensors on another device, or that share theirs. Raises `StorageError` if
    the file cannot be written; `path` then is as it was.
    """
    own, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory, as views of one flat vector do.
        shared = tensor.untyped_storage().data_ptr() in storages
        own[name] = tensor.clone() if shared else tensor
        storages.add(own[name].untyped_storage().data_ptr())
    text = json.dumps(meta, allow_nan=False, sort_keys=True)
    # One entry, because safetensors writes several in an order that changes from run to run.
    header = {HEADER: json.dumps({"checksum": _checksum(own, text), "meta": text})}
    with replacing(path) as temporary:
        try:
            save_file(own, temporary, metadata=header)
        except SafetensorError as error:  # it hides what the system said in its text
            code = re.search(r"\(os error (\d+)\)", str(error))
            raise OSError(int(code[1]) if code else 0, str(error)) from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save` wrote, bit for bit, on the CPU.

    Raises `StorageError` naming the file if it cannot be read, is cut short, was altered, or is not ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise StorageError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error.strerror or error}") from error
    except (SafetensorError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: corrupted, or not a checkpoint: {error}") from error
    if header is None:
        raise StorageError(f"{path}: expected a checkpoint of this program, found other tensors")
    try:
        checksum, text = itemgetter("checksum", "meta")(json.loads(header))
    except (ValueError, LookupError, TypeError):
        raise StorageError(f"{path}: corrupted: its header cannot be read") from None
    if checksum != _checksum(tensors, str(text)):
        raise StorageError(f"{path}: corrupted: its checksum does not match its content")
    meta: dict[str, Any] = json.loads(text)
    return tensors, meta


def _checksum(tensors: Mapping[str, Tensor], meta: str) -> str:
    digest = xxhash.xxh3_128(meta.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
