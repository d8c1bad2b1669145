"""Random crops and flips, in batch, against torchvision image by image; and how a task draws them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from p2pqg.tasks import SupervisedTask
from p2pqg.tasks.augmentation import Augmentation, ImageTransform

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
IMAGES = torch.randint(
    0, 256, (162, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def transform(augmentation: Augmentation = "flip-crop", **settings: Any) -> ImageTransform:
    return ImageTransform(MEAN, STD, augmentation=augmentation, **settings)


def torchvisions(images: Tensor) -> Tensor:
    """ToTensor and Normalize of each image."""
    transforms = pytest.importorskip("torchvision.transforms")
    pipeline = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    return torch.stack([pipeline(image.permute(1, 2, 0).numpy()) for image in images])


def test_scoring_standardises_and_nothing_else() -> None:
    for augmentation in ("none", "flip-crop"):
        torch.testing.assert_close(transform(augmentation)(IMAGES, None), torchvisions(IMAGES))


@pytest.mark.parametrize("augmentation", ["flip-crop", "crop-flip"])
def test_every_variant_is_a_flip_and_a_crop_of_the_black_framed_image(augmentation: Augmentation) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    expected = set()
    frame = [4, 4, 4, 4]
    image = IMAGES[0]
    for mirror in (False, True):
        for top in range(9):
            for left in range(9):
                one = functional.hflip(image) if mirror and augmentation == "flip-crop" else image
                one = functional.crop(functional.pad(one, frame), top, left, 32, 32)
                one = functional.hflip(one) if mirror and augmentation == "crop-flip" else one
                expected.add(one.numpy().tobytes())
    plain = ImageTransform((0.0,) * 3, (1 / 255,) * 3, augmentation=augmentation)  # bytes as they are
    variants = plain(image.expand(162, -1, -1, -1), torch.arange(162))
    assert {variant.round().to(torch.uint8).numpy().tobytes() for variant in variants} == expected


def test_the_order_of_crop_and_flip_is_kept() -> None:
    """Mirrored variants differ: the same crop position shows the left or the right of an image."""
    mirrored = torch.full((len(IMAGES),), 1)  # top left corner
    before, after = (transform(kind)(IMAGES, mirrored) for kind in ("flip-crop", "crop-flip"))
    black = transform()(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), None)
    assert (before[..., :4] == black).all()
    assert (after[..., -4:] == black).all()


def test_all_variants_are_as_likely() -> None:
    choices = transform().draw(162 * 200, torch.Generator().manual_seed(1))
    counts = torch.bincount(choices, minlength=162).double()
    assert len(counts) == 162
    assert float(((counts - 200) ** 2 / 200).sum()) < 250  # chi-squared: 161 expected, 5 standard deviations


def test_samples_are_transformed_one_by_one() -> None:
    """So that the mini-batches of many agents can be joined."""
    choices = transform().draw(6, torch.Generator().manual_seed(1))
    whole = transform()(IMAGES[:6], choices)
    parts = [transform()(IMAGES[k : k + 2], choices[k : k + 2]) for k in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_same_images() -> None:
    choices = transform().draw(len(IMAGES), torch.Generator().manual_seed(1))
    there = transform()(IMAGES.cuda(), choices)
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), transform()(IMAGES, choices))


def task(agent: str = "agent-000", **settings: Any) -> SupervisedTask:
    return SupervisedTask(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)),
        train=(IMAGES[:40], torch.arange(40) % 4),
        test=(IMAGES[40:60], torch.arange(20) % 4),
        agent=agent,
        seed=settings.pop("seed", 4),
        batch_size=16,
        transform=transform(),
    )


def test_a_task_keeps_bytes_and_draws_by_seed_agent_and_step() -> None:
    one = task()
    assert one.train[0].dtype == torch.uint8
    inputs, targets = one.batch(7)
    assert inputs.dtype == torch.float32
    assert torch.equal(targets, one.train[1][one.batch_indices(7)])
    assert torch.equal(inputs, task().batch(7)[0])
    drawn = [one.choices(7), one.choices(10), task("agent-001").choices(7), task(seed=5).choices(7)]
    for k, choices in enumerate(drawn):
        assert all(not torch.equal(choices, other) for other in drawn[:k])


def test_gradients_are_of_augmented_and_scores_of_plain_images() -> None:
    one = task()
    x = one.init(0)
    W, b = one.spec.views(x).values()
    inputs, targets = one.batch(3)
    p = (inputs.flatten(1) @ W.T + b).softmax(1) - nn.functional.one_hot(targets, 4)
    torch.testing.assert_close(one.spec.views(one.gradient(x, {}, 3).g)["1.bias"], p.mean(0))
    scores = transform()(IMAGES[40:60], None).flatten(1) @ W.T + b
    loss = nn.functional.cross_entropy(scores, torch.arange(20) % 4)
    assert one.evaluate(x, {}).loss == pytest.approx(float(loss), rel=1e-5)
