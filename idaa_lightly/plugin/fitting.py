"""Resources for the fitting of an augmentation before the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class FitContext:
    """Resources that an augmentation may use before training starts.

    Attributes:
        views: Function that takes a batch size and returns an iterable. Each iteration over it yields batches
            (N, C, H, W) of the method's augmented, normalised training views.
        key: JSON values that identify everything `views` depends on.
        images: Number of training images.
        image_size: Height and width of the views, in pixels.
        channels: Number of channels of the views.
        normalize: Keys `mean` and `std`, one value per channel of the views, as passed to `Method.transform`.
        epochs: Number of epochs of the following training.
        seed: Seed of the run.
        device: Device of the training.
        cache_dir: Directory for results that other runs can reuse.
        progress: Function that takes a title and a number of steps. It returns a function that is called with a text
            after each step.

    Example:
        >>> from idaa_lightly.plugin import FitContext, GeneratorAugmentation
        >>> class Colour(GeneratorAugmentation):
        ...     def fit(self, context: FitContext):
        ...         self.space = ColorSpace(context.normalize)
        ...
        ...     def generator(self):
        ...         return ViewGenerator(self.space, FGSM(eps=0.2))
    """

    views: Callable[[int], Iterable[Tensor]]
    key: dict[str, object]
    images: int
    image_size: int
    channels: int
    normalize: dict[str, list[float]]
    epochs: int
    seed: int
    device: torch.device
    cache_dir: Path
    progress: Callable[[str, int], Callable[[str], None]]
