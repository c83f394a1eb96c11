"""Export of a run's backbone for other programs: a plain state dict, and the Python lines that load it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.evaluate.state_dicts import note_path
from idaa_lightly.bench.evaluate.targets import backbone_weights, load_weights
from idaa_lightly.bench.record import config_of, read_record, write_json
from idaa_lightly.bench.run.plugins import trained_network
from idaa_lightly.bench.schema import Record
from idaa_lightly.errors import MissingExtraError, UsageError, require_extra
from idaa_lightly.files import save_tensors
from idaa_lightly.libraries import Blueprint, blueprint


def run_backbone(target: Path) -> tuple[nn.Module, Record]:
    """Load the backbone of a finished run on the CPU. The run's images are not needed.

    Args:
        target: The run directory, or a file in its checkpoints.

    Returns:
        The backbone, and the run's record.

    Raises:
        FileFormatError: The directory is not a finished run, or its files do not go together.
    """
    record = read_record(target.parent.parent if target.suffix == ".ckpt" else target)
    config, image_size = config_of(record), record["data"]["image_size"]
    name = config.backbone or ""
    network, _ = trained_network(config, *create_backbone(name, image_size, config.set.get("backbone")))
    path = target / "backbone.pt" if target.is_dir() else target
    load_weights(network, backbone_weights(target), path, f"the backbone {name}")
    return network, record


def export(target: Path, out: Path, form: str | None = None) -> str:
    """Write a run's backbone as a state dict that torchvision's or timm's own network can load.

    A JSON file beside it, `out` with ".json" appended, holds the backbone, the image size and the normalisation.

    Args:
        target: Directory of a finished run, or a file in its checkpoints.
        out: File to write.
        form: Library to load the file with, "torchvision" or "timm". Default: the first of them that has the network.
            Narrow networks and plugins are in neither; `create_backbone` loads them.

    Returns:
        Lines of Python that build the network, load the file and state which images it expects.

    Raises:
        FileFormatError: The target is not of a finished run.
        UsageError: The library has no such network, the method trains another one, or `out` is a directory.
        MissingExtraError: The network or `form` needs timm, which is not installed.
    """
    if form == "timm":
        require_extra("timm", "vision", "--format timm")
    if out.is_dir():
        raise UsageError(f"--out is {out}, a directory, but expected a file such as {out / 'backbone.pth'}")
    network, record = run_backbone(target)
    backbone, image_size = record["config"]["backbone"], record["data"]["image_size"]
    name = backbone.removeprefix("timm/")
    state = network.state_dict()
    plain, _ = create_backbone(backbone, image_size, record["config"]["set"].get("backbone"))
    if state.keys() != plain.state_dict().keys():
        raise UsageError(
            f"the method {record['config']['method']!r} trains another network than {backbone}, so no library can load "
            "it: evaluate the run itself, by `idaa-bench knn`, `linear`, `finetune` or `transfer`"
        )
    plans = _plans(name, image_size, state)
    if form and form not in plans:
        others = [f"export it with --format {other}" for other in plans] or ["leave --format out for create_backbone's"]
        raise UsageError(f"{form} has no {name} with these weights: {others[0]}")
    options = record["config"]["set"].get("backbone", {})
    if plans:
        lines = plans[form or next(iter(plans))].code()
    else:
        made = f"create_backbone({backbone!r}, {image_size}{f', {options!r}' if options else ''})"
        lines = ["import torch", "from idaa_lightly.backbones import create_backbone", f"model, num_features = {made}"]
    normalize = record["data"]["normalize"]
    lines += [
        f"model.load_state_dict(torch.load({str(out)!r}, weights_only=True))",
        "model.eval()",
        f"# RGB in [0, 1], {image_size} px, less mean {normalize['mean']}, divided by std {normalize['std']}",
    ]
    save_tensors(state, out)
    write_json(note_path(out), {"backbone": backbone, "options": options, "image_size": image_size, **normalize})
    return "\n".join(lines)


def _plans(name: str, image_size: int, state: dict[str, torch.Tensor]) -> dict[str, Blueprint]:
    """Return the plan of the network in each of torchvision and timm that has the same tensors."""
    plans = {}
    for library in ("torchvision", "timm"):
        with suppress(UsageError, MissingExtraError), torch.device("meta"):
            plan = blueprint(name, image_size, library)
            found = plan.build().state_dict()
            if {key: part.shape for key, part in found.items()} == {key: part.shape for key, part in state.items()}:
                plans[library] = plan
    return plans
