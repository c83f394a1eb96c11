"""CMC: Lab by hand, two encoders, its loss, other losses on it, and the evaluation of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightly.loss import NTXentLoss
from test_bad_input import bench, done
from test_matrix import NORMALIZE, make_augmentation, make_method, views

from idaa_lightly.backbones import create_backbone
from idaa_lightly.errors import UsageError
from idaa_lightly.registry import load


def test_lab_by_hand() -> None:
    """White is L = 100, black 0. Red is (53.24, 80.09, 67.20), blue (32.30, 79.19, −107.86)."""
    method: Any = make_method("cmc").double()
    method.transform(16, NORMALIZE)
    rgb = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    images = ((rgb - 0.5) / 0.25)[:, :, None, None].expand(-1, -1, 2, 2)
    lightness, colour = method.backbone.lab(images)
    expected = torch.tensor([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]).double()
    assert (lightness.shape, colour.shape) == ((4, 1, 2, 2), (4, 2, 2, 2))
    torch.testing.assert_close(50 * lightness[:, 0, 0, 0] + 50, expected[:, 0], rtol=0, atol=0.02)
    torch.testing.assert_close(50 * colour[:, :, 0, 0], expected[:, 1:], rtol=0, atol=0.02)


def test_each_encoder_sees_its_channels() -> None:
    method: Any = make_method("cmc").eval()
    method.transform(16, NORMALIZE)
    images = views(0)[0]
    grey = images.mean(1, keepdim=True).expand_as(images)
    first, second = (
        part.backbone.conv1 if hasattr(part, "backbone") else part.conv1 for part in method.backbone.encoders
    )
    assert (first.weight.shape[1], second.weight.shape[1]) == (1, 2)
    lightness, colour = method(images)
    other_lightness, other_colour = method(grey)
    assert not torch.equal(lightness, other_lightness)
    torch.testing.assert_close(other_colour, other_colour[:1].expand_as(colour), rtol=1e-4, atol=1e-4)
    assert method.backbone(images).shape == (8, method.num_features)
    assert method.backbone.state_dict()["mean"].flatten().tolist() == NORMALIZE["mean"]


def test_the_loss_contrasts_lightness_with_colour() -> None:
    torch.manual_seed(0)
    method, parts = make_method("cmc"), torch.randn(4, 8, 16)
    criterion = NTXentLoss(0.1)
    expected = (criterion(parts[0], parts[3]) + criterion(parts[2], parts[1])) / 2
    torch.testing.assert_close(method.loss((parts[0], parts[1]), (parts[2], parts[3])), expected)


@pytest.mark.parametrize("aug", ["oucl", "metaug"])
def test_other_losses_contrast_lightness_with_colour(aug: str) -> None:
    method: Any = make_method("cmc")
    loss: Any = make_augmentation(aug).loss(method)
    output = loss(method, *views(0))
    output.total.backward()
    value = output.total if aug == "oucl" else output.contrast
    first, second = (method(view) for view in views(0))
    torch.testing.assert_close(value.detach(), loss.contrast(first[0], second[1]).detach())
    for encoder in method.backbone.encoders:
        assert all(parameter.grad.any() for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["resnet18-w4", "timm/vit_tiny_patch16_224", "timm/tf_efficientnet_lite0"])
def test_backbones(name: str) -> None:
    backbone, num_features = create_backbone(name, 32)
    method = load("method", "cmc")(backbone, num_features)
    assert [output.shape for output in method(torch.rand(2, 3, 32, 32))] == [(2, 128)] * 2
    kinds = [[type(part) for part in network.modules()] for network in (backbone, method.backbone.encoders[1])]
    assert kinds[0] == kinds[1]


def test_a_fixed_first_convolution_is_refused() -> None:
    with pytest.raises(UsageError, match="cmc replaces the first convolution, but this backbone's is fixed: choose"):
        load("method", "cmc")(*create_backbone("whitened", 32))


@pytest.mark.slow
def test_a_run_is_evaluated_and_not_exported() -> None:
    command = ["run", "--method", "cmc", "--limit-train", "64", "--backbone", "resnet9-w2", "--batch-size", "32"]
    done(bench(*command, "--epochs", "1", "--out", "run"))
    done(bench("knn", "run"))
    done(bench("finetune", "run", "--epochs", 1, "--labels", "50%"))
    refused = bench("export", "run", "--out", "backbone.pth")
    assert refused.exit_code == 2
    assert "the method 'cmc' trains another network than resnet9-w2" in refused.stderr
    assert not Path("backbone.pth").exists()
