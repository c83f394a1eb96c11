"""A VAE on its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch.nn import functional as F

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.setup import (
    fit,
    fit_context,
    make_augmentation,
    make_parts,
    make_trainer,
    read_data,
    resolve,
)


def train_vae(config: RunConfig, out: Path, console: Console) -> float:
    """Fits IDAA's VAE on the views of a method, or takes it from the cache, and writes it to `out`.

    Args:
        config: its `epochs` are the VAE's; its `aug` must be one that fits a VAE, such as "idaa".
        out: file to write.
        console: for what is said on the way.

    Returns:
        Mean squared error of the reconstruction on a batch of views.
    """
    config = replace(resolve(config), backbone="resnet9-w16")  # the views do not depend on it
    augmentation = make_augmentation(config)
    parts = make_parts(config, augmentation, read_data(config, console))
    context = fit_context(parts, make_trainer(config, logger=False).strategy.root_device)
    console.print(f"VAE on {len(parts.views)} images of {parts.data.image_size} px, {parts.epochs} epochs")
    fit(augmentation, parts, context.device)
    vae = augmentation.generator().space.vae  # type: ignore[attr-defined]
    vae.save(out)
    views = next(iter(context.views(128))).to(context.device)
    with torch.no_grad():
        return F.mse_loss(vae.to(context.device).decode(vae.encode(views)[0]), views).item()
