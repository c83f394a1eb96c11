"""Loggers of a run: metrics.csv, and Lightning's loggers for TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.schema import Record, read_json
from idaa_lightly.errors import FileFormatError, IDAAError, MachineError, UsageError, require_extra, suggestion
from idaa_lightly.files import atomic_write, require_file

PACKAGES = {"csv": "", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Package of each logger, which is also the name of its extra."""
PROJECT = "idaa-lightly"
IDENTITIES = "loggers.json"
"""File in the run directory with the identities of the run on servers, so that a resumed run continues its logs."""


class MetricsCSV(CSVLogger):
    """Lightning's CSVLogger for a run directory: one row per logged step, written atomically, continued on resuming.

    Lightning's own would delete the rows of an interrupted process.

    Args:
        path: CSV file to write.
        resume_at: Optimiser steps in the checkpoint that is resumed. Later rows of the file are dropped. 0 starts a
            new file.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        super().__init__(path.parent, name="", version="")
        self.path = path
        self.rows: list[dict[str, Any]] = []
        require_file(path, "the metrics of a run")
        if resume_at and path.exists():
            try:
                with path.open(newline="") as file:
                    self.rows = [row for row in csv.DictReader(file) if int(row["step"]) < resume_at]
                for value in (value for row in self.rows for value in row.values() if value):
                    float(value)
            except (ValueError, KeyError, TypeError, csv.Error) as error:
                raise FileFormatError(f"{path} is damaged ({error}): delete it to resume without its rows") from error

    def set_evaluations(self, history: list[dict[str, float]], steps: int) -> None:
        """Replace the evaluations in the rows by those in a checkpoint. Logging them again would give the same rows.

        Args:
            history: Figures by epoch, as in `Evaluation.history`. The first entry has all figures.
            steps: Optimiser steps per epoch.
        """
        names = {"epochs_done", *history[0]} - {"epoch"}
        rows = {int(row["step"]): row for row in self.rows}
        for row in self.rows:
            row.update(dict.fromkeys(names & row.keys(), ""))
        for entry in history:
            if (step := max(0, int(entry["epoch"]) * steps - 1)) in rows:
                figures = {"epochs_done": entry["epoch"]} | {name: entry[name] for name in entry if name != "epoch"}
                rows[step].update({name: float(value) for name, value in figures.items()})

    @property
    def experiment(self) -> Any:
        """Rows of the file, a dictionary each."""
        return self.rows

    def log_hyperparams(self, params: Any = None) -> None:
        """Do nothing: hyperparameters are in config.toml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add metrics to the row of a step. The file is written by `save`. Names have no "evaluation/" there."""
        if not self.rows or int(self.rows[-1]["step"]) != step:
            self.rows.append({"step": step})
        self.rows[-1] |= {name.removeprefix("evaluation/"): float(value) for name, value in metrics.items()}

    @rank_zero_only
    def save(self) -> None:
        """Write the CSV file."""
        names = ["step", "epoch", *sorted({name for row in self.rows for name in row} - {"step", "epoch"})]
        with atomic_write(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)

    def finalize(self, status: str) -> None:
        """Write the CSV file at the end of the training."""
        self.save()


def logger_names(text: str) -> list[str]:
    """Return the names of a comma-separated list of loggers. The first is always "csv", which a run needs.

    Args:
        text: Names such as "csv,tensorboard".

    Raises:
        UsageError: A name is unknown.
        MissingExtraError: The package of a logger is not installed.
    """
    names = dict.fromkeys(["csv", *(name.strip() for name in text.split(",") if name.strip())])
    for name in names:
        if name not in PACKAGES:
            raise UsageError(
                f"logger is {name!r}, but expected some of {', '.join(PACKAGES)}.{suggestion(name, PACKAGES)}"
            )
        if package := PACKAGES[name]:
            require_extra(package, package, f"--logger {name}")
    return list(names)


def make_loggers(config: RunConfig, out: Path, resume_at: int) -> list[Logger]:
    """Return the loggers of a run, with `MetricsCSV` first. Nothing is written yet.

    Args:
        config: Resolved configuration.
        out: The run directory.
        resume_at: Optimiser steps in the checkpoint that is resumed, or 0.
    """
    path = out / IDENTITIES
    resumes = resume_at and path.exists()
    known = read_json(path, dict[str, str], "the identities of a run's logs") if resumes else {}
    title = f"{config.method}-{config.aug}-{config.key()}-seed{config.seed}"

    def tensorboard() -> Logger:
        # Steps after the checkpoint are hidden, because they are repeated.
        later: Any = {"purge_step": resume_at} if resume_at else {}
        return TensorBoardLogger(out, "tensorboard", "", default_hp_metric=False, **later)

    def wandb() -> Logger:
        identity = known.get("wandb") or secrets.token_hex(8)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        return WandbLogger(title, out, identity, project=project, settings={"silent": True})

    def mlflow() -> Logger:
        uri = require_extra("mlflow", "mlflow", "--logger mlflow").get_tracking_uri()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        return MLFlowLogger(experiment, title, uri, run_id=known.get("mlflow"))

    makers: dict[str, Callable[[], Logger]] = {
        "csv": lambda: MetricsCSV(out / "metrics.csv", resume_at),
        "tensorboard": tensorboard,
        "wandb": wandb,
        "mlflow": mlflow,
    }
    loggers = []
    for name in logger_names(config.logger):
        with _refusals(name):
            loggers.append(makers[name]())
    return loggers


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Turn any exception of a logger's package into one sentence. Packages define their own exceptions."""
    try:
        yield
    except (IDAAError, OSError):
        raise
    except Exception as error:
        raise UsageError(
            f"--logger {name} does not work here ({' '.join(str(error).split())[:300]}): check its settings, or leave "
            "it out, and add --resume if the run directory exists already"
        ) from error


@contextmanager
def failures() -> Iterator[None]:
    """Turn an exception that the package of a logger raises during a training into one sentence.

    Raises:
        MachineError: The package raised an exception, because its server is gone, for example.
    """
    try:
        yield
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if package not in PACKAGES:
            raise
        raise MachineError(
            f"--logger {package} failed ({' '.join(str(error).split())[:300]}): repeat the command with --resume, and "
            "leave the logger out if it does not work any more"
        ) from error


@rank_zero_only
def begin(loggers: list[Logger], config: RunConfig, out: Path) -> None:
    """Log the hyperparameters, and keep the identities of the run on servers.

    Args:
        loggers: Loggers from `make_loggers`.
        config: Resolved configuration.
        out: The run directory.
    """
    identities = {}
    for name, logger in zip(logger_names(config.logger), loggers, strict=True):
        with _refusals(name):
            logger.log_hyperparams(config.flat())
            if isinstance(logger, WandbLogger | MLFlowLogger):
                identities[name] = logger.version
    if identities:
        with atomic_write(out / IDENTITIES) as temporary:
            temporary.write_text(json.dumps(identities) + "\n", encoding="utf-8")


@rank_zero_only
def finish(
    loggers: list[Logger],
    config: RunConfig,
    out: Path,
    record: Record,
    step: int,
    pictures: Sequence[str] = ("views", "curves"),
) -> None:
    """Log the final figures and the pictures of a run, and close its loggers.

    Args:
        loggers: Loggers from `make_loggers`.
        config: Resolved configuration.
        out: The run directory, with the pictures.
        record: Record of the run.
        step: Optimiser steps of the training.
        pictures: Names of PNG files, without their suffix.
    """
    last: dict[str, Any] = {**record["last"], "images_per_s": record["time"]["images_per_s"]}
    final = {f"final/{name}": float(value) for name, value in last.items() if name != "epoch"}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(config.flat(), final)
        elif not isinstance(logger, MetricsCSV):
            logger.log_metrics(final, step)
        for picture in pictures:
            path = out / f"{picture}.png"
            if isinstance(logger, TensorBoardLogger):
                pixels = np.asarray(Image.open(path).convert("RGB"))
                logger.experiment.add_image(picture, pixels, step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image(picture, [str(path)])
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_artifact(logger.run_id, str(path))
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
        elif not isinstance(logger, MetricsCSV):
            logger.finalize("success")
