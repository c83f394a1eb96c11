"""Fine-tuning of a run's backbone on a few labels.

`idaa_lightly.bench.evaluate.store` describes the layout of RUN/finetune.json. Results are named by the share of labels:
"1%", "10%", "10% from scratch". Each result adds:

    protocol      the protocol in words
    accuracy      top-1 after the last epoch; nothing is selected on the test images
    images        number of images of the share, spread evenly over the classes
    options       {epochs, batch_size, lr, seed, streams}: `lr` is for a batch of 256, `batch_size` is the one asked
                  for, and `streams` is the version of the random streams
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightly.utils.benchmarking import FinetuneClassifier
from pytorch_lightning.callbacks import LambdaCallback
from torch import Tensor
from torchvision import transforms as T

from idaa_lightly.bench.config import RunConfig, read_toml
from idaa_lightly.bench.evaluate.store import Family, Result, evaluated, find_runs, runs_only, source_of
from idaa_lightly.bench.evaluate.targets import load_backbone
from idaa_lightly.bench.features import EVALUATION_BATCH
from idaa_lightly.bench.progress import progress
from idaa_lightly.bench.run.plugins import trained_network, untrained_backbone
from idaa_lightly.bench.run.trainer import make_trainer
from idaa_lightly.data import DataSet, Images
from idaa_lightly.errors import NonFiniteError, UsageError
from idaa_lightly.evaluation.embed import embed
from idaa_lightly.loading import ViewDataset, evaluation_batches, view_loader
from idaa_lightly.seeding import STREAMS, seeded
from idaa_lightly.splits import balanced

MANY_FROM, FEW, MANY = 0.1, 60, 30
"""Training takes `MANY` epochs if the share of labels is `MANY_FROM` or more, else `FEW`."""
PROTOCOL = (
    "backbone and a linear layer by SGD, learning rate lr × batch / 256, momentum 0.9, cosine; random resized crops "
    "and flips; tested without augmentation after the last epoch"
)


def finetune(
    targets: Iterable[Path],
    shares: list[float],
    *,
    epochs: int | None = None,
    batch_size: int = 64,
    lr: float = 0.05,
    seed: int | None = None,
    from_scratch: bool = False,
) -> list[Family]:
    """Fine-tune the backbones of runs on a share of the labels, each with a new linear layer.

    Results are kept in the run's finetune.json. A result with the same options is not computed again.

    The protocol is that of `lightly.utils.benchmarking.FinetuneClassifier`, which follows Chen et al., "A Simple
    Framework for Contrastive Learning of Visual Representations", ICML 2020, App. B.5: 60 epochs on 1 % of the labels,
    30 on 10 %, learning rate 0.05 · batch / 256, momentum 0.9, no weight decay, class-balanced labels.

    Differs from both: Their batches of 4096 and 256 are for ImageNet, 1 % of which is 12 811 images. Here a batch has
    64 images, or all images if there are fewer, so that a small data set gets more than one step per epoch.

    Args:
        targets: Run directories, and directories that hold runs at any depth.
        shares: Shares of the run's training labels, in (0, 1].
        epochs: Epochs to train. Default: 60 below 10 % of the labels, 30 from there on.
        batch_size: Images per step, 2 or more. Limited to the number of images of the share.
        lr: Learning rate for a batch of 256.
        seed: Seed of the labels, the linear layer and the crops. Default: the run's own.
        from_scratch: Train untrained backbones instead of the runs'.

    Returns:
        Families of runs that differ only in their seed, with results by name as in finetune.json.

    Raises:
        FileFormatError: A target holds no finished run.
        UsageError: A share is out of range or gives fewer images than classes, or a run appears twice.
        NonFiniteError: The training diverged.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise UsageError(f"a share of labels is {100 * share:g}%, but must be above 0% and up to 100%")
    families = find_runs(targets)
    for folder, results in runs_only(families):
        config = RunConfig(**read_toml(folder / "config.toml"))
        pretrained, data = load_backbone(folder)
        own = config.seed if seed is None else seed
        # All shares are drawn first, so that a share that is too small is refused before any training.
        subsets = [(share, labelled(data, share, own)) for share in shares]
        source = source_of(folder, data)
        for share, images in subsets:
            name = f"{100 * share:g}%" + " from scratch" * from_scratch
            length = epochs or (FEW if share < MANY_FROM else MANY)
            options = {"epochs": length, "batch_size": batch_size, "lr": lr, "seed": own, "streams": STREAMS}
            state = None if from_scratch else pretrained.state_dict()
            compute = partial(_finetuned, config, state, data, images, options, name)
            results[name] = evaluated(folder, "finetune.json", name, options, source, compute)
    return families


def labelled(data: DataSet, share: float, seed: int) -> Images:
    """Draw a class-balanced share of the training images.

    With the same seed, a smaller share is contained in a larger one.

    Args:
        data: Data set to draw from.
        share: Share of the training images, in (0, 1].
        seed: Seed of the draw.

    Raises:
        UsageError: The share has fewer images than there are classes.
    """
    labels, classes = data.train.labels, len(data.classes)
    count = round(share * len(labels))
    if count < classes:
        raise UsageError(
            f"{100 * share:g}% of {len(labels)} training images are {count}, but {classes} classes need {classes} or "
            "more, one each: take a larger share"
        )
    return data.train.take(balanced(labels, count, seed))


def _finetuned(
    config: RunConfig,
    state: dict[str, Tensor] | None,
    data: DataSet,
    images: Images,
    options: dict[str, Any],
    title: str,
) -> tuple[Result, torch.device]:
    """Train on these images, from scratch if `state` is None. Return the result and the device."""
    batch = min(options["batch_size"], len(images))
    with seeded("finetune", options["seed"]):
        network, num_features = trained_network(config, *untrained_backbone(config, data)[:2])
        classifier = FinetuneClassifier(network, batch, options["lr"], num_features, len(data.classes), topk=(1,))
    if state is not None:
        network.load_state_dict(state)
    transform = T.Compose(
        [T.RandomResizedCrop(data.image_size), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(**data.normalize)]
    )
    step = progress(title, options["epochs"])
    with warnings.catch_warnings():
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        for text in ("does not have many workers", "You defined a `validation_step`", "LeafSpec"):
            warnings.filterwarnings("ignore", message=f".*{text}")
        trainer = make_trainer(
            RunConfig(),
            max_epochs=options["epochs"],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[LambdaCallback(on_train_epoch_end=lambda *_: step(""))],
        )
        try:
            trainer.fit(classifier, view_loader(ViewDataset(images, transform, options["seed"]), batch))
        except SystemExit as stop:  # Lightning turns Ctrl-C into SystemExit.
            raise KeyboardInterrupt from stop
    device = trainer.strategy.root_device
    logits, labels = embed(classifier.to(device), evaluation_batches(data, data.test, EVALUATION_BATCH))
    if not logits.isfinite().all():
        raise NonFiniteError("the network became NaN or infinite: lower --lr")
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return {"protocol": PROTOCOL, "images": len(images), "accuracy": accuracy}, device
