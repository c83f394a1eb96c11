"""Backbones: plugins, which are fitted once, and networks of torchvision and timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from test_matrix import METHODS, make_augmentation, small, steps

from idaa_lightly.backbones import build_backbone, create_backbone
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.plugins import untrained_backbone
from idaa_lightly.bench.run.setup import make_parts, read_data, resolve
from idaa_lightly.cli import main
from idaa_lightly.errors import UsageError
from idaa_lightly.registry import load
from idaa_lightly.training import SelfSupervised


def bench(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_whitened_patches_have_unit_variance_and_no_correlation() -> None:
    network: Any = create_backbone("whitened", 16, {"width": 4})[0]
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.randn(64, 3, 4, 4, generator=generator), size=16, mode="bilinear")
    images = smooth + 0.5 * torch.randn(smooth.shape, generator=generator)
    network.fit(images)
    weight = network.whitening.weight
    torch.testing.assert_close(weight[32:], -weight[:32])
    found = torch.nn.functional.conv2d(images, weight[:32], stride=4).permute(1, 0, 2, 3).flatten(1).double()
    torch.testing.assert_close(found @ found.T / found.shape[1], torch.eye(32).double(), rtol=0, atol=0.03)
    weights = weight[:32].flatten(1)
    assert weights.norm(dim=1).diff().min() > -1e-4, "the largest variance first"
    assert not network.whitening.weight.requires_grad


def test_features_and_their_number() -> None:
    network, num_features = create_backbone("whitened", 32, {"width": 8, "depth": 2})
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, num_features) == (2, 8)


def test_a_run_is_fitted_and_every_command_finds_its_weights(folder: Path) -> None:
    options = ["--data", f"folder:{folder}", "--epochs", 1, "--batch-size", 12, "--accelerator", "cpu"]
    options += ["--backbone", "whitened", "--set", "backbone.width=4", "--aug", "clae", "--out", "run"]
    assert "whitened; 1 epoch of" in bench("run", *options).output
    record = json.loads(Path("run/record.json").read_text())
    assert record["config"]["set"]["backbone"] == {"width": 4, "depth": 1}
    config = resolve(RunConfig(data=f"folder:{folder}", backbone="whitened", set={"backbone": {"width": 4}}))
    fitted = untrained_backbone(config, read_data(config)).network
    trained = torch.load("run/backbone.pt", weights_only=True)
    assert torch.equal(trained["whitening.weight"], fitted.state_dict()["whitening.weight"])
    assert not torch.equal(trained["blocks.0.0.weight"], fitted.state_dict()["blocks.0.0.weight"])
    assert f"{100 * record['last']['knn']:.2f} %" in bench("knn", "run", "--k", 36).output
    bench("finetune", "run", "--labels", "50%", "--epochs", 1)
    lines = bench("export", "run", "--out", "x.pth").output
    assert "model, num_features = create_backbone('whitened', 16, {'width': 4, 'depth': 1})" in lines
    names: dict[str, Any] = {}
    exec(lines.split("To load it:\n\n")[1], names)
    assert names["num_features"] == 4
    assert "seed 0 there, 1 here" in bench("run", *options, "--seed", 1, "--resume", code=1).output


@pytest.mark.parametrize(
    ("backbone", "option", "text"),
    [
        ("whitened", "width=0", "width is 0, but expected int, 1 or more"),
        ("whitened", "height=3", "'whitened' has no option 'height'; it has: width, depth."),
        ("resnet9-w4", "width=3", "backbone 'resnet9-w4' has no options: leave --set backbone.width out"),
    ],
)
def test_options_that_are_refused(backbone: str, option: str, text: str) -> None:
    arguments = ("run", "--backbone", backbone, "--set", f"backbone.{option}", "--dry-run")
    assert text in bench(*arguments, code=2).stderr


def test_a_name_that_is_close() -> None:
    with pytest.raises(UsageError, match=r"no backbone 'whitend'.*Did you mean 'whitened'"):
        create_backbone("whitend", 32)


@pytest.mark.parametrize(
    ("name", "image_size", "num_features", "trait", "call"),
    [
        ("vit_b_16", 32, 768, "patches of 4 px", "models.VisionTransformer(32, 4, 12, 12, 768, 3072)"),
        ("vit_b_16", 224, 768, "", "models.VisionTransformer(224, 16, 12, 12, 768, 3072)"),
        ("convnext_tiny", 32, 768, "patches of 2 px", "model.features[0][0] = torch.nn.Conv2d(3, 96, 2, 2)"),
        ("swin_t", 64, 768, "", "model.head = torch.nn.Identity()"),
        ("efficientnet_b0", 32, 1280, "", "model.classifier[1] = torch.nn.Identity()"),
        ("regnet_y_400mf", 32, 440, "", "model.fc = torch.nn.Identity()"),
        ("vgg11", 32, 4096, "", "model.classifier[6] = torch.nn.Identity()"),
        ("vit_tiny_patch16_224", 64, 192, "patches of 8 px", "img_size=64, patch_size=8"),
        ("swin_tiny_patch4_window7_224", 32, 768, "patches of 2 px", "img_size=32, patch_size=2"),
        ("mixer_s32_224", 32, 512, "", "img_size=32)"),
        ("regnetx_002", 32, 368, "", "create_model('regnetx_002', num_classes=0)"),
        ("resnet10t", 64, 512, "the CIFAR stem", "model.maxpool = torch.nn.Identity()"),
        ("resnet10t", 65, 512, "", "create_model('resnet10t', num_classes=0)"),
    ],
)
def test_families_of_networks(name: str, image_size: int, num_features: int, trait: str, call: str) -> None:
    with torch.device("meta"):
        built = build_backbone(name, image_size)
    assert (built.num_features, built.trait) == (num_features, trait)
    assert built.plan is not None
    assert call in "\n".join(built.plan.code())


@pytest.mark.parametrize(
    ("name", "image_size", "text"),
    [
        ("googlenet", 64, "gives a GoogLeNetOutputs for 2 images, but expected features (2, D)"),
        ("squeezenet1_0", 64, "has no linear classifier to remove: choose another network"),
        ("vit_b_32", 100, "does not work with images of 100 px (Input shape indivisible by patch size!)"),
        ("maxvit_t", 32, "does not work with images of 32 px (shape '[2, 64, 1, 7, 1, 7]' is invalid"),
        (
            "resnet18.nonsense",
            32,
            "does not work with images of 32 px (Invalid pretrained tag",
        ),
    ],
)
def test_networks_that_are_refused(name: str, image_size: int, text: str) -> None:
    with pytest.raises(UsageError) as refusal, torch.device("meta"):
        create_backbone(name, image_size)
    assert f"backbone {name!r} {text}" in str(refusal.value)


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_a_network_without_batchnorm(name: str, backbone: str) -> None:
    torch.manual_seed(0)
    network, num_features = create_backbone(backbone, 16)
    if backbone == "test_vit":
        network.blocks = network.blocks[:2]  # type: ignore[index]
    method = load("method", name)(network, num_features, **small(load("method", name)))
    module = SelfSupervised(method, make_augmentation("clae"), epochs=1, steps_per_epoch=2, seed=0).train()
    assert not any("adversarial" in key for key, _ in module.method.backbone.named_modules())
    before = {key: part.detach().clone() for key, part in module.named_parameters()}
    configured = module.configure_optimizers()
    (loss,) = steps(module, configured["optimizer"], configured["lr_scheduler"]["scheduler"], 0, 1)
    assert torch.tensor(loss).isfinite()
    same = [key for key, part in module.named_parameters() if ".backbone." in key and torch.equal(part, before[key])]
    assert len(same) < 0.1 * len(before)


def test_a_method_with_smaller_views_needs_a_network_that_takes_them(folder: Path) -> None:
    config = RunConfig("dino", "none", f"folder:{folder}", backbone="cait_xxs24_224", batch_size=12)
    resolved = resolve(config)
    with pytest.raises(UsageError) as refusal:
        make_parts(resolved, make_augmentation("none"), read_data(resolved))
    assert "'dino' makes views of 8 px, but backbone 'cait_xxs24_224' does not work" in str(refusal.value)
    assert str(refusal.value).endswith("or take --set method.local_views=0 if the method has it")
