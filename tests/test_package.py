"""The contents of the wheel, and the code in the README and in the plugin guide."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import idaa_lightly
from idaa_lightly import CLAE, VAE, AdversarialLoss, dual_batchnorm
from idaa_lightly.backbones import create_backbone
from idaa_lightly.options import options_of
from idaa_lightly.registry import load

ROOT = Path(__file__).parents[1]


def test_public_names() -> None:
    assert idaa_lightly.__all__ == sorted(idaa_lightly.__all__)
    for name in idaa_lightly.__all__:
        assert inspect.getdoc(getattr(idaa_lightly, name)), name
    assert idaa_lightly.__version__ == version("idaa-lightly")


def test_messages_of_the_library_name_no_options_of_the_command_line() -> None:
    """Only docstrings do. The modules are those of the public names and what they import."""
    code = f"import sys, idaa_lightly; [getattr(idaa_lightly, name) for name in {idaa_lightly.__all__}]"
    code += "; print(*[getattr(m, '__file__', '') for n, m in sys.modules.items() if n.startswith('idaa_lightly.')])"
    paths = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert len(paths) > 20
    for path in paths:
        tree = ast.parse(Path(path).read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                assert not re.search(r"(^|\s)--[a-z]", node.value), f"{path}:{node.lineno}: {node.value}"


@pytest.mark.slow
def test_the_wheel_holds_exactly_two_packages_and_works_alone(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {f"idaa_lightly/bench/report/templates/report.{end}" for end in ("css", "js", "html.jinja")} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "idaa_lightly",
        "idaa_lightly_plugins",
    }
    for package in ("idaa_lightly", "idaa_lightly_plugins"):
        assert f"{package}/py.typed" in names
    code = "import idaa_lightly, idaa_lightly_plugins; print(idaa_lightly.__file__, idaa_lightly_plugins.__file__)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    where = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.split()
    assert all(path.startswith(str(tmp_path / "site")) for path in where)
    listed = subprocess.run(
        [sys.executable, "-m", "idaa_lightly.cli", "plugins", "show", "clae"],
        env=environment, cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "aug.eps" in listed


def readme_diff() -> tuple[str, str]:
    """Return the code before and after the change that the README shows."""
    diff, *_ = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = diff.splitlines()
    assert sum(line.startswith("+") for line in lines) <= 5
    return tuple("\n".join(line[1:] for line in lines if line[:1] in ("", " ", sign)) for sign in "-+")  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*many workers", "ignore:.*number of training batches")
@pytest.mark.parametrize("changed", [False, True])
def test_the_readmes_lightning_module(changed: bool) -> None:
    VAE(32, bottleneck_dim=8, width=8).save("vae.pt")
    scope: dict[str, Any] = {}
    exec(readme_diff()[changed], scope)
    torch.manual_seed(0)
    model = scope["SimCLR"]()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    views = torch.randn(2, 16, 3, 32, 32)
    loader = DataLoader(
        TensorDataset(*views), batch_size=8, collate_fn=lambda rows: (list(map(torch.stack, zip(*rows, strict=True))),)
    )
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, loader)
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(moved)
    assert any("adversarial" in name for name in model.state_dict()) == changed
    assert not any("vae" in name for name in model.state_dict())


def page_code(index: int, page: str = "README.md") -> str:
    """Return a Python example of a page by its position."""
    found: list[str] = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return found[index]


def test_the_readmes_first_lines_run() -> None:
    scope: dict[str, Any] = {}
    exec(page_code(0), scope)
    assert all(part.grad is not None for part in scope["model"].parameters())


def test_the_readmes_vae() -> None:
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.zeros(8)), 8)
    exec(page_code(1).replace("epochs=300", "epochs=1"), {"dataloader": loader})
    assert VAE.load("vae.pt").fitted["epochs"] == 1


def test_the_device_views_of_the_page() -> None:
    scope: dict[str, Any] = {}
    exec(page_code(3, "docs/loops.md"), scope)
    assert scope["x0"].shape == scope["x1"].shape == (256, 3, 32, 32)


class Small(pl.LightningModule):
    """Module with a backbone, for the evaluation examples."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss: torch.Tensor = self.backbone(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*many workers", "ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:k is 200, but the bank", "ignore:GPU available", "ignore:.*isinstance.treespec")
@pytest.mark.parametrize(
    ("page", "index", "logged"),
    [("docs/loops.md", 2, "val_knn_top1"), ("docs/loops.md", 1, "val_knn_top1/dataloader_idx_1")],
)
def test_the_evaluations_of_the_pages(page: str, index: int, logged: str) -> None:
    """The code runs on the CPU, with fewer epochs and with the names that a reader would define."""
    samples = TensorDataset(torch.randn(60, 3, 2, 2), torch.arange(60) % 3)
    loader = DataLoader(samples, 20)
    model = Small()
    scope: dict[str, Any] = {f"{name}loader": loader for name in ("", "train_", "validation_", "test_")}
    scope["model"] = model
    scope["backbone"] = model.backbone
    quiet = "accelerator='cpu', logger=False, enable_progress_bar=False"
    code = page_code(index, page).replace("max_epochs=100", f"max_epochs=10, {quiet}")
    code = code.replace("Trainer(max_epochs=1)", f"Trainer(max_epochs=1, {quiet})")
    exec(code, scope)
    trainer = scope.get("classifier", model).trainer
    assert 0 < trainer.callback_metrics[logged] <= 1
    if "best" in scope:
        assert scope["best"].best_model_score == trainer.callback_metrics[logged]
        assert Path(scope["best"].best_model_path).exists()


def guide(*indices: int) -> dict[str, Any]:
    """Run code blocks of plugins/README.md and return the names that they define."""
    scope: dict[str, Any] = {}
    for index in indices:
        exec(re.findall(r"```python\n(.*?)```", (ROOT / "plugins/README.md").read_text(), re.DOTALL)[index], scope)
    return scope


def test_the_plugin_guides_controls() -> None:
    plugin, method = guide(0, 1)["ComparedBrightness"](eps=0.5), load("method", "simclr")
    *inherited, weak = plugin.controls(method)
    assert [control.name for control in inherited] == [
        control.name for control in load("augmentation", "clae")().controls(method)
    ]
    assert (weak.options, weak.judged) == ({"aug": {"eps": 0.25}}, False)


def test_the_plugin_guides_method() -> None:
    backbone, num_features = create_backbone("resnet9-w2", 16)
    method = guide(2)["Barlow"](backbone, num_features, dim=4)
    before = [parameter.detach().clone() for parameter in method.parameters()]
    optimizer, scheduler = method.optimizer(method.parameters(), 2, 3)
    AdversarialLoss(method.loss, CLAE())(dual_batchnorm(method), *torch.randn(2, 8, 3, 16, 16)).total.backward()
    optimizer.step()
    scheduler.step()
    clean = [part for name, part in method.named_parameters() if "adversarial" not in name]
    assert all(not torch.equal(a, b) for a, b in zip(before, clean, strict=True))
    views = method.transform(16, {"mean": [0.5] * 3, "std": [0.5] * 3})(Image.new("RGB", (20, 20)))
    assert [view.shape for view in views] == [(3, 16, 16)] * 2


def test_the_plugin_guides_augmentation() -> None:
    scope = guide(0)
    plugin = scope["AdversarialBrightness"]
    defaults = {name: option.default for name, option in options_of(plugin).items()}
    assert defaults == {"eps": 0.2, "weight": 1.0, "random": False, "mode": "exact", "place": "add"}
    x = torch.zeros(2, 3, 4, 4)
    slope = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    views = plugin(eps=0.5).generator()(x, lambda images: (images * slope).sum())
    assert views[:, 0, 0, 0].tolist() == [0.5, -0.5]


def test_the_plugin_guides_backbone() -> None:
    network = guide(3)["Tiny"](16, width=4)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, network.num_features) == (2, 4)
    assert options_of(type(network))["width"].type_name == "int, 1 or more"
