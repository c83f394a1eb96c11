"""Case study of a run: the views of several augmentations, embedded by the run's encoder."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from idaa_lightly.batchnorm import dual_batchnorm
from idaa_lightly.bench.evaluate.targets import load_run
from idaa_lightly.bench.features import pick_device
from idaa_lightly.bench.progress import progress
from idaa_lightly.bench.record import environment, write_json
from idaa_lightly.bench.run.figures import save_figure, save_views
from idaa_lightly.bench.run.fitting import fit, fit_context
from idaa_lightly.bench.run.setup import Parts
from idaa_lightly.errors import UsageError
from idaa_lightly.evaluation.identity import Identity, identity, perturbation
from idaa_lightly.options import options_of, parse_options
from idaa_lightly.outputs import embedding_of
from idaa_lightly.plugin import GeneratorAugmentation, Method
from idaa_lightly.registry import load
from idaa_lightly.splits import sample
from idaa_lightly.training import SelfSupervised
from idaa_lightly.views import Objective, ViewGenerator

SECOND_VIEW = "second view"
FAR = 2
"""Largest ratio on the axis of the density. Larger ratios are clamped to it."""


def study(folder: Path, augmentations: list[str], out: Path, *, samples: int = 1024) -> dict[str, dict[str, Any]]:
    """Measure how hard views are for a run's encoder, and how often they lose their sample's identity.

    Args:
        folder: The run directory.
        augmentations: Names of augmentations that search, such as "idaa". The run's own augmentation gets the run's
            options.
        out: Directory for identity.json, identity.png, density.png and panels.png.
        samples: Number of training images to use, 2 or more. They are a random sample, the same for every run.

    Returns:
        Figures by augmentation, and for the second view that the method's transform makes.

    Raises:
        FileFormatError: The directory is not a run, or has no checkpoint.
        UsageError: An augmentation does not search or does not go with the method, or there are too few images.
    """
    parts, module = load_run(folder)
    device = pick_device()
    module.to(device)
    losses = {name: _loss(name, parts, module, device) for name in augmentations}
    count = min(samples, len(parts.views))
    if count < 2:
        raise UsageError(f"samples is {samples}, but must be 2 or more")
    views: dict[str, list[Tensor]] = {name: [] for name in ("x", SECOND_VIEW, *losses)}
    chunks = sample(len(parts.views), count).tensor_split(
        min(-(-count // parts.batch_size), count // 2)  # BatchNorm needs two images.
    )
    step = progress("views", len(chunks))
    for chunk in chunks:
        batch = [parts.views[parts.epochs, index][0] for index in chunk.tolist()]
        images = [torch.stack(part).to(device) for part in zip(*batch, strict=True)]
        views["x"].append(images[0])
        views[SECOND_VIEW].append(images[1])
        for name, (network, loss, _) in losses.items():
            views[name].append(loss(network, *images).views)
        step("")
    whole = {name: torch.cat(made) for name, made in views.items()}
    anchors = _embed(module.method, whole["x"], parts.batch_size)
    found = {
        name: identity(anchors, _embed(module.method, made, parts.batch_size))
        for name, made in whole.items()
        if name != "x"
    }
    std = parts.data.normalize["std"]
    figures = {
        name: {"lost": part.lost, "hardness": part.hardness}
        | (_sizes(losses[name][2], whole["x"], whole[name], std) if name in losses else {})
        for name, part in found.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    _scatter(found, out / "identity.png")
    _density(found, out / "density.png")
    rows = {"x": whole["x"]} | {name: whole[name] for name in found}
    rows |= {f"{name} − x": whole[name] - whole["x"] for name in losses}
    save_views(out / "panels.png", rows, parts.data.normalize)
    record = {"config": parts.config.to_dict(), "samples": count, "augmentations": figures, **environment(device, 1)}
    write_json(out / "identity.json", record)
    return figures


class Measured(nn.Module):
    """View generator that records the L2 and L∞ lengths of its perturbations, in units of the searched space.

    Args:
        generator: Generator to wrap.
    """

    def __init__(self, generator: ViewGenerator) -> None:
        super().__init__()
        self.generator, self.starts_at_input = generator, generator.starts_at_input
        self.lengths: list[Tensor] = []

    def forward(self, x: Tensor, objective: Objective) -> Tensor:
        """Return the generator's views, and record the lengths of their perturbations.

        Args:
            x: Images (N, C, H, W).
            objective: Function to raise, from images to a scalar.
        """
        delta, views = self.generator.search(x, objective)
        flat = delta.flatten(1).float().cpu()
        self.lengths.append(torch.stack([flat.norm(dim=1), flat.abs().amax(1)], 1))
        return views


def _sizes(generator: Measured, x: Tensor, views: Tensor, std: list[float]) -> dict[str, float]:
    """Return mean lengths of the perturbations, in pixels and in units of the searched space."""
    l2, linf = torch.cat(generator.lengths).mean(0).tolist()
    return asdict(perturbation(x, views, std)) | {"own_l2": l2, "own_linf": linf}


def _loss(
    name: str, parts: Parts, module: SelfSupervised, device: torch.device
) -> tuple[nn.Module, nn.Module, Measured]:
    """Return a copy of the network to attack, the loss that makes the augmentation's views, and its generator."""
    plugin = load("augmentation", name)
    if not issubclass(plugin, GeneratorAugmentation):
        raise UsageError(f"{name!r} does not search for views of images: choose others, such as clae, idaa or random")
    if reason := plugin.refuses(type(module.method)):
        raise UsageError(f"{name!r} does not go with {parts.config.method!r}: {reason}")
    own = name == parts.config.aug
    options = parts.config.set["aug"] if own else parse_options(plugin, name, _shared(plugin, parts))
    every = {"mode": "exact", "place": "add"}  # A cheaper mode may skip samples, and replaced views have other anchors.
    augmentation = plugin(**{**options, **{key: value for key, value in every.items() if key in options}})
    fit(augmentation, fit_context(parts, device), parts.config.precision)
    network = dual_batchnorm(copy.deepcopy(module.method)).train()
    loss: Any = augmentation.loss(network).to(device)
    if own and list(loss.parameters()):  # A generator that was trained with the network
        loss.load_state_dict(module.objective.state_dict())
    loss.generator = Measured(loss.generator)
    return network, loss, loss.generator


def _shared(plugin: type, parts: Parts) -> dict[str, Any]:
    """Return the run's options for another augmentation if both use a VAE: same VAE, same strength of the attack."""
    both = options_of(plugin).keys() & parts.config.set["aug"]
    return {name: parts.config.set["aug"][name] for name in both - {"random"} if "vae" in both}


@torch.no_grad()
def _embed(method: Method, images: Tensor, batch_size: int) -> Tensor:
    """Embed images in eval mode, in the space of the loss."""
    method.eval()
    return torch.cat([embedding_of(method(part)).float().cpu() for part in images.split(batch_size)])


def _scatter(found: dict[str, Identity], path: Path) -> None:
    """Draw Fig. 1 of the IDAA paper. Samples below the diagonal have lost their identity."""
    figure = Figure(figsize=(3.2 * len(found), 3.9), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False, sharex=True, sharey=True)[0]
    longest = torch.cat([torch.cat([part.positive, part.negative]) for part in found.values()]).max().item()
    limits = (0, 1.02 * longest)
    for axis, (name, part) in zip(axes, found.items(), strict=True):
        axis.scatter(part.positive, part.negative, s=4, alpha=0.4, linewidths=0)
        axis.axline((0, 0), slope=1, color="black", linewidth=0.8)
        axis.set(title=f"{name}: {100 * part.lost:.1f} % lost", xlabel="distance to the own view")
        axis.set(xlim=limits, ylim=limits, aspect="equal")
    axes[0].set_ylabel("distance to the nearest other")
    save_figure(figure, path)


def _density(found: dict[str, Identity], path: Path) -> None:
    """Draw the distribution of the ratio of both distances. Above 1 the identity is lost."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, part in found.items():
        axis.hist(part.ratio.clamp(max=FAR).numpy(), bins=50, range=(0, FAR), density=True, histtype="step", label=name)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(xlabel=f"distance to the own view / to the nearest other, up to {FAR}", ylabel="density")
    axis.legend()
    save_figure(figure, path)
