"""Evaluation of inner layers: `--layer` of `idaa-bench knn`, `linear` and `embed`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.evaluate.layers import LayerOutputs
from idaa_lightly.cli import main
from idaa_lightly.errors import UsageError
from idaa_lightly.registry import load


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="idaa-bench", env={"COLUMNS": "150"})


@pytest.fixture
def run(trained: Path) -> Path:
    return Path(shutil.copytree(trained / "seed-0", "run"))


def outputs(pattern: str, images: Tensor, network: nn.Module) -> Tensor:
    return LayerOutputs(network, pattern)(images)


def test_vectors_tokens_and_feature_maps() -> None:
    """A layer of 9216 / 4 channels keeps 2 × 2 numbers of a channel. Tokens are averaged."""
    first = nn.Unflatten(1, (2304, 4, 4))
    network = nn.Sequential(first, nn.Flatten(2), nn.Flatten(1))
    images = torch.rand(2, 2304 * 16)
    maps = images.view(2, 2304, 2, 2, 2, 2).mean((3, 5)).flatten(1)
    torch.testing.assert_close(outputs("0", images, network), maps)
    torch.testing.assert_close(outputs("1", images, network), images.view(2, 2304, 16).mean(1))
    torch.testing.assert_close(outputs("2", images, network), images)
    torch.testing.assert_close(outputs("[02]", images, network), torch.cat([maps, images], 1))


@pytest.mark.parametrize("name", ["timm/swin_tiny_patch4_window7_224", "swin_t"])
def test_channels_of_swin_come_last(name: str) -> None:
    """96 channels of 16 × 16 pixels are averaged to 9 × 9 each, as those of any other network."""
    network, _ = create_backbone(name, 32)
    layer = "layers.0" if name.startswith("timm") else "features.1"
    maps: list[Tensor] = []
    dict(network.named_modules())[layer].register_forward_hook(lambda *passed: maps.append(passed[-1]))
    found = outputs(layer, torch.rand(2, 3, 32, 32), network.eval())
    assert maps[0].shape == (2, 16, 16, 96)
    expected = F.adaptive_avg_pool2d(maps[0].permute(0, 3, 1, 2), 9).flatten(1)
    torch.testing.assert_close(found, expected)


def test_a_small_map_is_kept_as_it_is() -> None:
    images = torch.rand(2, 3, 5, 4)
    assert torch.equal(outputs("0", images, nn.Sequential(nn.Identity())), images.flatten(1))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 4)])
def test_a_layer_that_the_next_one_changes_in_place(shape: tuple[int, ...]) -> None:
    """Torchvision's networks apply ReLU in place. The output is that from before it, negative numbers included."""
    images = torch.rand(shape)
    expected = outputs("0", images, nn.Sequential(nn.Identity()))
    assert torch.equal(outputs("0", -images, nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))), -expected)


def test_both_encoders_of_cmc() -> None:
    torch.manual_seed(0)
    network = load("method", "cmc")(*create_backbone("resnet9-w2", 16)).backbone.eval()
    images = torch.rand(2, 3, 16, 16)
    expected = [outputs(f"encoders.{index}.layer3", images, network) for index in (0, 1)]
    assert expected[0].shape == (2, 8 * 4 * 4)
    assert torch.equal(outputs("encoders.*.layer3", images, network), torch.cat(expected, 1))
    assert not torch.equal(*expected)


def test_a_layer_of_a_run(run: Path) -> None:
    """The last stage, averaged over the image, is the backbone's output. Nothing is kept beside the run's features."""
    before = sorted(run.iterdir())
    for name, options in (("features", ()), ("layer", ("--layer", "layer4"))):
        result = bench("embed", "run", *options, "--out", f"{name}.npz")
        assert result.exit_code == 0, result.output
    features, layer = (np.load(f"{name}.npz")["test_features"] for name in ("features", "layer"))
    np.testing.assert_allclose(layer.reshape(*features.shape, -1).mean(2), features, rtol=1e-5)
    result = bench("linear", "run", "--layer", "layer1")
    assert result.exit_code == 0, result.output
    assert "outputs of layer1, on the test images" in " ".join(result.stdout.split())
    assert sorted(run.iterdir()) == before


def test_refusals(run: Path) -> None:
    result = bench("knn", "run", "--layer", "layr3")
    assert result.exit_code == 2
    text = " ".join(result.stderr.split())
    assert "--layer is 'layr3', but the network has no such layer. Did you mean 'layer3'?" in text
    assert "Its outer layers are conv1, bn1, layer1, layer1.0, layer2" in text
    bench("embed", "run", "--out", "features.npz")
    result = bench("knn", "features.npz", "--layer", "layer3")
    assert result.exit_code == 2
    assert "features.npz holds features already: leave out --layer" in " ".join(result.stderr.split())
    with pytest.raises(UsageError, match=r"the output of layer 0 is \(3,\), but expected feature maps"):
        outputs("0", torch.rand(3), nn.Sequential(nn.Identity()))
    unused = create_backbone("resnet9-w2", 16)[0]
    unused.extra = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="but the network does not use it: choose another layer"):
        outputs("extra", torch.rand(1, 3, 16, 16), unused)
