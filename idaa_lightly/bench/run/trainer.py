"""Lightning's Trainer for a configuration, and what it runs on in words."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.errors import UsageError

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Types of autocast by precision."""


def make_trainer(config: RunConfig, **options: Any) -> pl.Trainer:
    """Return Lightning's Trainer on the devices of a configuration.

    Args:
        config: Configuration with accelerator, devices, nodes, strategy and precision.
        options: Further arguments of the Trainer.

    Raises:
        UsageError: The devices do not exist, or do not go with the strategy or the precision.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    precision = resolved_precision(config)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fp16 is not supported on CPU")  # It is refused below.
            trainer = pl.Trainer(
                accelerator=config.accelerator,
                devices=int(config.devices) if config.devices.isdigit() else config.devices,
                num_nodes=config.num_nodes,
                strategy=config.strategy,
                precision=precision,
                enable_model_summary=False,
                **options,
            )
    except (ValueError, TypeError, ImportError, RuntimeError, MisconfigurationException) as error:
        raise UsageError(
            f"accelerator {config.accelerator}, devices {config.devices}, strategy {config.strategy} and precision "
            f"{config.precision} do not work here: {error}"
        ) from error
    if trainer.precision != precision:  # Lightning replaces 16-mixed on the CPU.
        raise UsageError(
            f"precision is {precision}, but this device trains in {trainer.precision} instead: use --precision "
            f"{trainer.precision}"
        )
    return trainer


def ranks_to_start(config: RunConfig) -> int:
    """Return the number of processes that a run needs. 1 if this process suffices or another program starts them.

    Args:
        config: Resolved configuration.

    Raises:
        UsageError: The devices do not exist, or do not go with the strategy or the precision.
    """
    if config.devices == "1" or config.num_nodes > 1 or "LOCAL_RANK" in os.environ:
        return 1
    if os.name == "nt":  # It cannot pass connections to processes. Lightning starts the ranks.
        return 1
    launcher = make_trainer(config, logger=False, enable_checkpointing=False).strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher) or launcher.cluster_environment.creates_processes_externally:
        return 1
    return launcher.num_processes


def on_cpu(config: RunConfig) -> bool:
    """Return True if a run trains on the CPU, or on a device whose data the CPU prepares, such as Apple's."""
    return config.accelerator == "cpu" or not torch.cuda.is_available()


def resolved_precision(config: RunConfig) -> Any:
    """Return the precision, with "auto" replaced: bfloat16 on GPUs that compute in it, else float32."""
    if config.precision != "auto":
        return config.precision
    half = not on_cpu(config) and torch.cuda.get_device_capability() >= (8, 0)
    return "bf16-mixed" if half else "32-true"


def workers_of(config: RunConfig) -> int:
    """Return the number of worker processes of the data loader. Default: 0 on the CPU, else one per core, up to 12."""
    if config.workers is not None:
        return config.workers
    return 0 if on_cpu(config) else min(12, os.cpu_count() or 1)


def compiler_missing() -> bool:
    """Return True if torch.compile would find no C++ compiler on this machine."""
    return not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")))


def choices(config: RunConfig, trainer: pl.Trainer) -> str:
    """Return a sentence about what a training runs on.

    Args:
        config: Resolved configuration.
        trainer: Trainer of the configuration.
    """
    device, count = trainer.strategy.root_device, trainer.world_size
    name = f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    chosen = ", chosen by --accelerator auto" * (config.accelerator == "auto")
    several = f" on {config.num_nodes} nodes" * (config.num_nodes > 1)
    compiled = "compiled" if config.compile else "not compiled"
    return f"Trains on {count} × {name}{several}{chosen}, in precision {trainer.precision}, {compiled}."


class KeepHandler(pl.Callback):
    """Callback that restores the process's own SIGTERM handler, such as the command line's, if Lightning replaces it.

    Lightning's handler waits for a broadcast, which never comes while another process waits in a gradient reduction.
    With its own handler, the process ends as after Ctrl-C.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Restore the handler, which Lightning has replaced by now."""
        if callable(self.handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)


def quiet_lightning() -> None:
    """Silence Lightning's hints that do not concern our users, such as those on workers and checkpoint directories."""
    for text in ("does not have many workers", "Checkpoint directory .* exists", "The dirpath has changed", "LeafSpec"):
        warnings.filterwarnings("ignore", message=f".*{text}")
