"""The paper's networks: sizes, formulas, initialisation, and what their normalisation looks at."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from p2pqg.errors import ConfigError
from p2pqg.tasks.models import NORMS, EvoNormS0, image_model, resnet18, resnet20, vgg11


def parameters(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", NORMS)
def test_parameter_counts_are_the_papers_with_every_norm(norm: str) -> None:
    assert parameters(lambda: resnet20(10, norm=norm)) == 272_474
    assert parameters(lambda: resnet20(1000, width=2, norm=norm)) == 1_212_296
    assert parameters(lambda: resnet18(1000, norm=norm)) == 11_689_512


def test_half_vgg_has_the_papers_size() -> None:
    assert parameters(lambda: vgg11(10, width=0.5)) == 2_308_810


def test_resnet_18_with_batchnorm_is_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision")
    ours, theirs = resnet18(7, norm="bn"), torchvision.models.resnet18(num_classes=7)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = noise(2, 3, 64, 64)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(images), theirs.train(mode)(images))


def test_vgg_is_torchvisions_without_its_hidden_layers() -> None:
    torchvision = pytest.importorskip("torchvision")
    ours, theirs = vgg11(10), torchvision.models.vgg11().features
    state = list(ours.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state[:-2], strict=True)))
    images = noise(2, 3, 32, 32)
    expected = nn.functional.linear(theirs(images).flatten(1), *state[-2:])
    torch.testing.assert_close(ours(images), expected)


@pytest.mark.parametrize("channels", [3, 32, 64])
def test_evonorm_is_its_formula(channels: int) -> None:
    """Sample by sample and channel by channel, in float64 and plain loops."""
    layer = EvoNormS0(channels).double()
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(2))
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    x = noise(2, channels, 4, 5).double()
    members = channels // min(32, channels)
    expected = torch.empty_like(x)
    for sample in range(2):
        for c in range(channels):
            first = c // members * members
            pixels = x[sample, first : first + members].flatten().tolist()
            mean = sum(pixels) / len(pixels)
            variance = sum((p - mean) ** 2 for p in pixels) / (len(pixels) - 1)
            for i in range(4):
                for j in range(5):
                    value = float(x[sample, c, i, j])
                    y = value / (1 + math.exp(-value)) / math.sqrt(variance + 1e-5)
                    expected[sample, c, i, j] = y * weight[c] + bias[c]
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)


def test_evonorm_starts_without_scale_and_shift() -> None:
    layer = EvoNormS0(8)
    assert layer.weight.tolist() == [1.0] * 8
    assert layer.bias.tolist() == [0.0] * 8


@pytest.mark.parametrize(
    ("norm", "depends"), [("evonorm", True), ("evonorm-s0", False), ("gn", False), ("bn", False)]
)
def test_only_the_hybrid_scores_an_image_by_its_companions(norm: str, depends: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = resnet20(10, width=0.5, norm=norm).double().eval()
    image, companions = noise(1, 3, 32, 32).double(), noise(2, 3, 32, 32, seed=1).double()
    alone, accompanied = module(image), module(torch.cat([image, companions]))[:1]
    assert torch.allclose(alone, accompanied, rtol=0, atol=1e-12) != depends


def test_the_hybrid_has_evonorm_before_activations_and_batchnorm_elsewhere() -> None:
    layers = list(resnet20(10, norm="evonorm").modules())
    assert sum(isinstance(layer, EvoNormS0) for layer in layers) == 10
    normalised = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    assert len(normalised) == 11
    assert not any(layer.track_running_stats for layer in normalised)


def test_only_batchnorm_keeps_buffers() -> None:
    kinds = {name.rpartition(".")[2] for name, _ in resnet20(10, norm="bn").named_buffers()}
    assert kinds == {"running_mean", "running_var", "num_batches_tracked"}
    for module in (vgg11(10, width=0.125), *(resnet20(10, norm=norm) for norm in NORMS if norm != "bn")):
        assert not list(module.named_buffers())


@pytest.mark.parametrize("build", [lambda: resnet20(10, norm="gn"), lambda: vgg11(10, width=0.25)])
def test_convolutions_start_with_variance_by_outputs_and_the_rest_as_torch_does(
    build: Callable[[], nn.Module],
) -> None:
    for layer in build().requires_grad_(False).modules():
        if isinstance(layer, nn.Conv2d):
            outputs, _, k, _ = layer.weight.shape
            wanted = math.sqrt(2 / (k * k * outputs))
            tolerance = 5 / math.sqrt(2 * layer.weight.numel())  # five standard errors
            assert float(layer.weight.square().mean().sqrt()) == pytest.approx(wanted, rel=tolerance)
            fan_in = layer.weight[0].numel()
            assert layer.bias is None or float(layer.bias.abs().max()) <= 1 / math.sqrt(fan_in)
        elif isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            assert bound / 2 < float(layer.weight.abs().max()) <= bound
        elif isinstance(layer, nn.GroupNorm):
            assert layer.num_groups == 2
            assert layer.weight.tolist() == [1.0] * layer.num_channels


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("resnet", "auto", 1.0),
            "task.options.model: expected one of resnet20, resnet18, vgg11, cnn, found",
        ),
        (("resnet20", "ln", 1.0), "task.options.norm: expected one of bn, gn, evonorm, evonorm-s0, found"),
        (("vgg11", "bn", 0.5), "task.options.norm: vgg11 expects none, found 'bn'"),
        (("vgg11", "auto", 0.01), "task.options.width: expected a factor .* found 0.01"),
        (("resnet20", "auto", 0.3), "task.options.width: expected a factor .* found 0.3"),
        (("resnet20", "auto", float("nan")), "task.options.width: expected a factor .* found nan"),
        (("resnet20", "auto", 2.5), "task.options.width: EvoNorm expects .* found 40"),
    ],
)
def test_models_that_cannot_be_built_are_refused(settings: tuple[str, str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        image_model(*settings, classes=10, shape=(3, 32, 32))()


def test_vgg_is_refused_for_images_it_would_pool_away() -> None:
    with pytest.raises(ConfigError, match="images of 32x32 pixels or more, found 28x28"):
        image_model("vgg11", "auto", 0.5, classes=2, shape=(1, 28, 28))
