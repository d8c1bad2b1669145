"""Labelled images as they lie on a disk, read into bytes `[samples, channels, height, width]`.

Nothing is unpickled by this module: CIFAR's own batches are pickles and are left to torchvision, which
checks that they are the published files before it opens them.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from p2pqg.errors import ConfigError, StorageError
from p2pqg.storage import write_atomically
from p2pqg.tasks.common_data import CommonData, fixed_order
from p2pqg.tasks.extras import optional
from p2pqg.tasks.files import load_npz
from p2pqg.tasks.partition import Indices

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]

ARCHIVES = (".tar", ".tar.gz", ".tgz")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
TRAIN, TEST = "train", "test"
IMAGENET32_BATCHES = 10
PARTS = tuple(field.name for field in fields(CommonData))


def read_torchvision_cifar(path: Path, classes: int, *, download: bool) -> CommonData:
    """The batches torchvision keeps under `path` (or under its parent, if `path` is their own folder).

    torchvision unpickles them, but only after their MD5 sums were found to be the published ones. Raises
    `ConfigError` if they are not there (and not to be downloaded) or not the published ones.
    """
    datasets = optional("torchvision.datasets", "vision")
    dataset = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    root = path.parent if path.name == dataset.base_folder else path
    parts: list[Any] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*align.*")  # numpy, of what was pickled long ago
        for train in (True, False):
            try:
                part = dataset(str(root), train=train, download=download)
            except Exception as error:  # missing, altered, no network, no space: all said in the message
                raise _wrong(
                    root, f"expected the folder {dataset.base_folder} with the published batches: {error}"
                ) from error
            images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
            parts += [images, np.asarray(part.targets, dtype=np.int64)]
    return CommonData(*parts)


def read_npz(path: Path, shape: Shape) -> CommonData:
    """Arrays `train_images`, `train_labels`, `test_images`, `test_labels` of a numpy archive, as MedMNIST
    names them: bytes `[samples, height, width]` or `[samples, height, width, channels]`, and class numbers
    `[samples]` or `[samples, 1]`.

    Raises `ConfigError`, naming the file, if the archive lacks one, or if images are not bytes of `shape`
    (channels, height, width).
    """
    parts: list[Any] = []
    for split in (TRAIN, TEST):
        images, labels = load_npz(path, f"{split}_images", f"{split}_labels", torch.uint8)
        if images.dim() == 3:
            images = images[..., None]
        images = images.movedim(-1, 1).contiguous()
        _require_shape(path, images.numpy(), shape)
        parts += [images.numpy(), _class_numbers(path, labels.numpy())]
    return CommonData(*parts)


def read_imagenet32(folder: Path) -> CommonData:
    """Downsampled ImageNet as it is published: `train_data_batch_1.npz` to `..._10.npz` and `val_data.npz`,
    each with `data: [samples, 3072]` and `labels` from 1 to 1000. Raises `ConfigError` for anything else."""
    train_files = [folder / f"train_data_batch_{k + 1}.npz" for k in range(IMAGENET32_BATCHES)]
    parts: list[Any] = []
    for files in (train_files, [folder / "val_data.npz"]):
        batches = [load_npz(file, "data", "labels", torch.uint8) for file in files]
        for file, (images, labels) in zip(files, batches, strict=True):
            if images.dim() != 2 or images.shape[1] != 3 * 32 * 32:
                raise _wrong(file, f"expected data [samples, 3072], found {list(images.shape)}")
            if labels.dim() != 1 or not 1 <= int(labels.min()) <= int(labels.max()) <= 1000:
                raise _wrong(file, "expected labels from 1 to 1000, found others")
        pixels = np.concatenate([images.numpy() for images, _ in batches])
        parts += [
            pixels.reshape(-1, 3, 32, 32),
            np.concatenate([labels.numpy() for _, labels in batches]) - 1,
        ]
    return CommonData(*parts)


def read_class_folders(path: Path, shape: Shape, classes: int) -> CommonData:
    """Pictures in `train/CLASS/*` and `test/CLASS/*`, of a folder or of a .tar, .tar.gz or .tgz archive.

    Classes are numbered in the order of their names. Test pictures are put into one fixed random order,
    since they lie sorted by class and some models look at a whole mini-batch.

    Decoding takes a second for some 7,000 small pictures, so the result is kept in the user's cache folder
    (``~/.cache/p2pqg/images``, or where ``XDG_CACHE_HOME`` says; as large as the pixels are) and mapped from
    there until a picture changes. Where that folder cannot be written, they are decoded each time.

    Raises `ConfigError`, naming the picture, if it cannot be decoded or is not of `shape`, and if there are
    not `classes` classes, the same in train and test.
    """
    cache = cache_folder() / _fingerprint(path, shape, classes)
    with _alone(cache) as writable:
        kept = _mapped(cache)
        if kept is not None:
            return kept
        images = _decode(path, _archived(path) if path.is_file() else _in_folder(path), shape, classes)
        if writable:
            _keep(cache, images)
    return images


def is_class_folders(path: Path) -> bool:
    """Whether `path` looks like what `read_class_folders` reads."""
    if path.is_file():
        return path.name.endswith(ARCHIVES)
    return (path / TRAIN).is_dir() and (path / TEST).is_dir()


def cache_folder() -> Path:
    """Where decoded pictures are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2pqg/images"


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether `folder` can be written. If so, no other process gets here until the block ends, so that
    agents started together decode once."""
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _mapped(folder: Path) -> CommonData | None:
    """What `_keep` left, if it is all there."""
    try:
        return CommonData(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in PARTS))
    except (OSError, ValueError):  # absent, or cut off
        return None


def _keep(folder: Path, images: CommonData) -> None:
    for name in PARTS:
        content = io.BytesIO()
        np.save(content, getattr(images, name))
        try:
            write_atomically(folder / f"{name}.npy", content.getvalue())
        except StorageError:  # a full disk: then without
            return


def _decode(path: Path, pictures: Iterable[tuple[str, bytes]], shape: Shape, classes: int) -> CommonData:
    """Pictures ``(split/class/name, content)`` to arrays in the order of their names, the test part mixed."""
    decoded: dict[str, list[tuple[str, str, Pixels]]] = {TRAIN: [], TEST: []}
    for name, content in pictures:
        split, label, picture = PurePosixPath(name).parts[-3:]
        decoded[split].append((label, picture, _pixels(path, name, content, shape)))
    labels = {split: sorted({label for label, _, _ in rows}) for split, rows in decoded.items()}
    for split, found in labels.items():
        if found != labels[TRAIN] or len(found) != classes:
            raise _wrong(
                path,
                f"expected {classes} folders of pictures, one a class, the same in {TRAIN} and {TEST}, "
                f"found {len(found)} in {split} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})",
            )
    number = {label: k for k, label in enumerate(labels[TRAIN])}
    parts: list[Any] = []
    for split, rows in decoded.items():
        rows.sort(key=lambda row: row[:2])
        order = fixed_order(len(rows), "test order") if split == TEST else range(len(rows))
        parts += [np.stack([rows[k][2] for k in order]), np.array([number[rows[k][0]] for k in order])]
    return CommonData(*parts)


def _pixels(path: Path, name: str, content: bytes, shape: Shape) -> Pixels:
    from PIL import Image  # half a second of imports that other tasks need not pay

    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"))
    except Exception as error:  # Pillow raises many kinds for a broken picture
        raise _wrong(path, f"{name}: expected a picture: {error}") from error
    pixels = (pixels[..., None] if pixels.ndim == 2 else pixels).transpose(2, 0, 1)
    _require_shape(path, pixels[None], shape, name)
    return pixels


def _archived(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an archive's pictures under train/CLASS and test/CLASS; nothing is extracted."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and _is_picture(member.name):
                    file = archive.extractfile(member)
                    assert file is not None  # for a plain file there is always content
                    yield member.name, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _wrong(path, f"expected a tar archive: {error}") from error


def _in_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in _picture_files(path):
        yield file.relative_to(path).as_posix(), file.read_bytes()


def _picture_files(path: Path) -> list[Path]:
    files = [file for split in (TRAIN, TEST) for file in (path / split).glob("*/*") if file.is_file()]
    return sorted(file for file in files if _is_picture(file.relative_to(path).as_posix()))


def _is_picture(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) >= 3 and parts[-3] in (TRAIN, TEST) and parts[-1].lower().endswith(PICTURES)


def _fingerprint(path: Path, shape: Shape, classes: int) -> str:
    """Changes when the archive, any picture or what is expected does."""
    files = [path] if path.is_file() else _picture_files(path)
    digest = hashlib.blake2b(f"1|{path.resolve()}|{shape}|{classes}".encode(), digest_size=16)
    for file in files:
        status = file.stat()
        digest.update(f"{file.name}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _class_numbers(path: Path, labels: Indices) -> Indices:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise _wrong(path, f"expected one class number a sample, found {labels.dtype} {labels.shape}")
    return labels


def _require_shape(path: Path, images: Pixels, shape: Shape, name: str = "") -> None:
    if images.shape[1:] != shape:
        where = f"{name}: " if name else ""
        wanted, found = ("x".join(map(str, s)) for s in (shape, images.shape[1:]))
        raise _wrong(path, f"{where}expected images of {wanted} (channels, height, width), found {found}")


def _wrong(path: Path, message: str) -> ConfigError:
    return ConfigError(message, where=str(path), key="task.data")
