"""Views of whole batches on the training device, with the same distribution as a Lightly transform.

Lightly's transforms process one PIL image at a time. `DeviceViews` reads probabilities and ranges from a transform,
draws them for each image separately (including the order of the colour jitter), and applies them to the batch. Each
part gives the same image as with PIL, up to PIL's rounding to 8 bits. A test compares the images and the distributions.

Random numbers come from a CPU generator that nothing else uses. The host therefore knows how many images each part
applies to, and does not wait for the device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import torch
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.rotation import RandomRotate
from lightly.transforms.solarize import RandomSolarization
from torch import Generator, Tensor, nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from idaa_lightly.errors import DataError
from idaa_lightly.seeding import seed_of
from idaa_lightly.transforms.parts import Blur, Crop, Flip, Greyscale, Jitter, Normalize, Rotate, Solarize, unknown

IN_CACHE = 2**19  # pixel values; the CPU processes larger batches in chunks, which halves the time at 96 px
Part = Callable[[Tensor, Generator], Tensor]
"""Function of images (N, 3, H, W) in [0, 1], which it may change in place, and a CPU generator."""


class DeviceViews(nn.Module):
    """Lightly transform that makes the views of a whole batch at once.

    Args:
        transform: Lightly transform, or a MultiViewTransform composed of the same torchvision and Lightly parts.

    Shape:
        - Input: Images (N, H, W, 3) or (N, 3, H, W), in uint8 or as floats in [0, 1]; and, to make the views
          repeatable, integers or strings that seed the random numbers.
        - Output: List of normalised views (N, 3, S, S), one for each of `transform.transforms`.

    Raises:
        UsageError: The transform has an unsupported part. The message names the part.

    Example:
        >>> from lightly.transforms import SimCLRTransform
        >>> make_views = DeviceViews(SimCLRTransform(input_size=32, gaussian_blur=0.0))
        >>> x0, x1 = make_views(torch.randint(256, (4, 40, 40, 3), dtype=torch.uint8))
        >>> x0.shape
        torch.Size([4, 3, 32, 32])
    """

    def __init__(self, transform: MultiViewTransform) -> None:
        super().__init__()
        if not isinstance(transform, MultiViewTransform) or type(transform).__call__ is not MultiViewTransform.__call__:
            raise unknown(transform, "is not a Lightly MultiViewTransform")
        same = (list(group) for _, group in groupby(transform.transforms, key=id))
        self.views = [(_pipeline(views[0]), len(views)) for views in same]  # the pipeline and its number of views
        self._range_seen = False

    @torch.no_grad()
    def forward(self, images: Tensor | np.ndarray[Any, Any], *key: int | str) -> list[Tensor]:
        """Return new views, or the views of a key.

        Args:
            images: Images (N, H, W, 3) or (N, 3, H, W), in uint8 or as floats in [0, 1].
            key: Integers or strings that seed the random numbers, such as the seed of the run and the epoch. The same
                images and key give the same views. Without a key, the seed is drawn from torch's global generator.

        Raises:
            DataError: `images` has another shape, type or range. Away from the CPU, only the first batch of floats is
                checked for its range, because the check waits for the device.
        """
        images = self._checked(images if isinstance(images, Tensor) else torch.from_numpy(np.array(images)))
        seed = seed_of("device views", *(key or (int(torch.randint(2**63 - 1, ())),)))
        generator = Generator().manual_seed(seed)
        pieces = math.ceil(images.numel() / IN_CACHE) if images.device.type == "cpu" else 1
        with torch.autocast(images.device.type, enabled=False):  # half precision is too coarse for colours
            made = [self._views(piece, generator) for piece in images.chunk(pieces)]
        return [torch.cat(views) for views in zip(*made, strict=True)] if pieces > 1 else made[0]

    def _checked(self, images: Tensor) -> Tensor:
        """Return the images as (N, 3, H, W)."""
        expected = "but expected (N, H, W, 3) or (N, 3, H, W), in uint8 or as floats in [0, 1]"
        channels = [dim for dim in (3, 1) if images.ndim == 4 and images.shape[dim] == 3]
        if not (channels and len(images) and (images.dtype == torch.uint8 or images.is_floating_point())):
            raise DataError(f"the images have shape {tuple(images.shape)} and type {images.dtype}, {expected}")
        if images.is_floating_point() and not (self._range_seen and images.device.type != "cpu"):
            low, high = (value.item() for value in images.aminmax())
            if not (low >= 0 and high <= 1):  # NaN as well
                advice = "divide them by 255" if low >= 0 else "pass them without normalisation"
                raise DataError(f"the images have values from {low:.3g} to {high:.3g}, {expected}: {advice}")
            self._range_seen = True
        return images.movedim(channels[0], 1)

    def _views(self, images: Tensor, generator: Generator) -> list[Tensor]:
        pixels = images.contiguous().float()
        if images.dtype == torch.uint8:
            pixels.div_(255)
        made = (_apply(parts, pixels.repeat(count, 1, 1, 1), generator).chunk(count) for parts, count in self.views)
        return [view for views in made for view in views]

    def first(self) -> DeviceViews:
        """Return a module that makes only the first view."""
        single = DeviceViews(MultiViewTransform([]))
        single.views = [(self.views[0][0], 1)]
        return single


def _apply(parts: list[Part], images: Tensor, generator: Generator) -> Tensor:
    for part in parts:
        images = part(images, generator)
    return images


def _pipeline(transform: Any) -> list[Part]:
    """Convert the transform of one view to a list of parts, without no-ops."""
    parts: list[Part] = []
    converted = False
    for item in _flat(transform):
        if type(item) in _CONVERSIONS:
            converted = converted or _CONVERSIONS[type(item)](item)
            continue
        if type(item) not in _PARTS:
            raise unknown(item, "is not known")
        if converted and type(item) not in (v1.Normalize, v2.Normalize):
            raise unknown(item, "comes after the conversion to a tensor")
        part = _PARTS[type(item)](item)
        if isinstance(part, Flip) and parts and isinstance(parts[-1], Crop) and not parts[-1].flips[part.dim - 2]:
            parts[-1].flips[part.dim - 2] = part.p
        elif part is not None and getattr(part, "p", 1.0) > 0:
            parts.append(part)
    if not converted:
        raise unknown(transform, "does not convert to a tensor in [0, 1]")
    return parts


def _applied(item: Any) -> Part | None:
    """Convert a `RandomApply` of one `ColorJitter`. Return None if it is a no-op."""
    if item.p == 0:
        return None
    if len(item.transforms) != 1 or type(item.transforms[0]) not in (v1.ColorJitter, v2.ColorJitter):
        raise unknown(item, f"applies {', '.join(type(part).__name__ for part in item.transforms)}, not a ColorJitter")
    return _jitter(item.transforms[0], item.p)


def _jitter(item: Any, p: float = 1.0) -> Part | None:
    """Convert a `ColorJitter`. Return None if it is a no-op."""
    return Jitter(item, p) if any((item.brightness, item.contrast, item.saturation, item.hue)) else None


def _flat(transform: Any) -> Iterator[Any]:
    """Yield the parts of nested compositions, in order."""
    if type(transform) in (v1.Compose, v2.Compose):
        for part in transform.transforms:
            yield from _flat(part)
    elif _VIEW.fullmatch(f"{type(transform).__module__}.{type(transform).__qualname__}"):
        yield from _flat(transform.transform)
    else:
        yield transform


_VIEW = re.compile(r"lightly\.transforms\.\w+\.(\w+View\d?Transform|ToTensor|RandomRotateDegrees)")
"""Qualified names of Lightly classes that wrap a composition in their attribute `transform`."""
_CONVERSIONS: dict[type, Callable[[Any], bool]] = {
    v1.ToTensor: lambda _: True,
    v1.PILToTensor: lambda _: False,
    v2.PILToTensor: lambda _: False,
    v2.ToImage: lambda _: False,
    v2.ToPureTensor: lambda _: False,
    v2.ToDtype: lambda item: item.scale and item.dtype == torch.float32,
    v1.ConvertImageDtype: lambda item: item.dtype == torch.float32,
    v2.ConvertImageDtype: lambda item: item.dtype == torch.float32,
}
"""Conversions to a tensor. Each function tells whether the result is in [0, 1]."""
_PARTS: dict[type, Callable[[Any], Part | None]] = {
    v1.RandomResizedCrop: Crop,
    v2.RandomResizedCrop: Crop,
    v1.RandomVerticalFlip: lambda item: Flip(2, item.p),
    v2.RandomVerticalFlip: lambda item: Flip(2, item.p),
    v1.RandomHorizontalFlip: lambda item: Flip(3, item.p),
    v2.RandomHorizontalFlip: lambda item: Flip(3, item.p),
    v1.ColorJitter: _jitter,
    v2.ColorJitter: _jitter,
    v1.RandomApply: _applied,
    v2.RandomApply: _applied,
    v1.RandomGrayscale: lambda item: Greyscale(item.p),
    v2.RandomGrayscale: lambda item: Greyscale(item.p),
    v1.Normalize: Normalize,
    v2.Normalize: Normalize,
    GaussianBlur: Blur,
    RandomRotate: Rotate,
    RandomSolarization: Solarize,
}
