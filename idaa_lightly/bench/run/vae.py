"""Training of IDAA's VAE without a run."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.progress import quantity
from idaa_lightly.bench.run.fitting import fit, fit_context
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.setup import make_parts, read_data, resolve
from idaa_lightly.bench.run.trainer import make_trainer, quiet_lightning

log = logging.getLogger(__name__)


def train_vae(config: RunConfig, out: Path) -> float:
    """Fit IDAA's VAE on the views of a method, or load it from the cache, and write it to a file.

    Args:
        config: Configuration. Its `epochs` are those of the VAE. Its `aug` must fit a VAE, such as "idaa".
        out: File to write.

    Returns:
        Mean squared error of the reconstruction on one batch of views.
    """
    config = replace(resolve(config), backbone="resnet9-w16")  # The views do not depend on the backbone.
    augmentation = make_augmentation(config)
    parts = make_parts(config, augmentation, read_data(config))
    with warnings.catch_warnings():
        quiet_lightning()
        device = make_trainer(config, logger=False).strategy.root_device
    context = fit_context(parts, device)
    epochs = config.set["aug"].get("vae_epochs") or parts.epochs
    log.info(f"VAE on {len(parts.views)} images of {parts.view_size} px, {quantity(epochs, 'epoch')}")
    fit(augmentation, context, config.precision)
    vae = augmentation.generator().space.vae  # type: ignore[attr-defined]
    vae.save(out)
    views = next(iter(context.views(128))).to(context.device)
    with torch.no_grad():
        return F.mse_loss(vae.to(context.device).decode(vae.encode(views)[0]), views).item()
