"""Backbone plugins: found by name, fitted once, loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.setup import read_data, resolve, untrained_backbone
from idaa_lightly.cli import main
from idaa_lightly.errors import UsageError


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
    maps = network.whitening(images).detach()
    assert maps.shape[1] == 24
    torch.testing.assert_close(maps[:, 12:], -maps[:, :12])
    found = maps[:, :12].permute(1, 0, 2, 3).flatten(1).double()
    torch.testing.assert_close(found @ found.T / found.shape[1], torch.eye(12).double(), rtol=0, atol=0.01)
    weights = network.whitening.weight[:12].flatten(1)
    assert weights.norm(dim=1).diff().min() > -1e-4, "the largest variance first"
    assert not network.whitening.weight.requires_grad


def test_features_and_their_number() -> None:
    network, num_features = create_backbone("whitened", 32, {"width": 6})
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, num_features) == (2, 12)


def test_a_run_is_fitted_and_every_command_finds_its_weights(folder: Path) -> None:
    options = ["--data", f"folder:{folder}", "--epochs", 1, "--batch-size", 12, "--accelerator", "cpu"]
    options += ["--backbone", "whitened", "--set", "backbone.width=4", "--aug", "clae", "--out", "run"]
    assert "whitened; 1 epochs" in bench("run", *options).output
    record = json.loads(Path("run/record.json").read_text())
    assert record["config"]["set"]["backbone"] == {"width": 4}
    config = resolve(RunConfig(data=f"folder:{folder}", backbone="whitened", set={"backbone": {"width": 4}}))
    fitted, _ = untrained_backbone(config, read_data(config))
    trained = torch.load("run/backbone.pt", weights_only=True)
    assert torch.equal(trained["whitening.weight"], fitted.state_dict()["whitening.weight"])
    assert not torch.equal(trained["blocks.0.0.weight"], fitted.state_dict()["blocks.0.0.weight"])
    assert f"{100 * record['last']['knn']:.2f} %" in bench("knn", "run", "--k", 36).output
    bench("finetune", "run", "--labels", "50%", "--epochs", 1)
    lines = bench("export", "run", "--out", "x.pth").output
    assert "model, num_features = create_backbone('whitened', 16, {'width': 4})" in lines
    names: dict[str, Any] = {}
    exec(lines.split("To load it:\n\n")[1], names)
    assert names["num_features"] == 8
    assert "seed 0 there, 1 here" in bench("run", *options, "--seed", 1, "--resume", code=1).output


@pytest.mark.parametrize(
    ("backbone", "option", "text"),
    [
        ("whitened", "width=0", "width is 0, but expected int, 1 or more"),
        ("whitened", "depth=3", "'whitened' has no option 'depth'; it has: width."),
        ("resnet9-w4", "width=3", "backbone 'resnet9-w4' has no options: leave --set backbone.width out"),
    ],
)
def test_options_that_are_refused(backbone: str, option: str, text: str) -> None:
    arguments = ("run", "--backbone", backbone, "--set", f"backbone.{option}", "--dry-run")
    assert text in bench(*arguments, code=2).stderr


def test_a_name_that_is_close() -> None:
    with pytest.raises(UsageError, match=r"no backbone 'whitend'.*Did you mean 'whitened'"):
        create_backbone("whitend", 32)
