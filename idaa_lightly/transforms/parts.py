"""Parts of Lightly transforms for whole batches, which `idaa_lightly.transforms.device` assembles.

Each part takes images (N, 3, H, W) in [0, 1] and a CPU generator of random numbers. It may change the images in place.
Random parameters have the distribution of torchvision's or Lightly's part, independently for each image. The result
equals PIL's up to rounding to 8 bits. Bicubic crops can differ more at edges, where PIL clips between its passes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.rotation import RandomRotate
from lightly.transforms.solarize import RandomSolarization
from torch import Generator, Tensor

from idaa_lightly.errors import DataError, UsageError

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue: ITU-R 601-2, as in PIL
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class Crop:
    """Torchvision's RandomResizedCrop for PIL images, merged with the flips that follow it.

    PIL resizes by a weighted mean along one axis, then along the other. When an image shrinks, this mean is
    antialiased. Here each axis has its own weights per image, so that a flip costs no extra step.

    Args:
        crop: `RandomResizedCrop` to convert.
    """

    def __init__(self, crop: Any) -> None:
        self.size, self.scale, self.ratio = tuple(crop.size), crop.scale, crop.ratio
        self.flips = [0.0, 0.0]  # probabilities of a vertical and a horizontal flip
        interpolation = getattr(crop.interpolation, "value", crop.interpolation)  # an enum, a name or PIL's number
        if interpolation not in _KERNELS:
            raise unknown(crop, f"has interpolation {interpolation}, not bilinear or bicubic")
        self.kernel, self.reach = _KERNELS[interpolation]

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return crops (N, 3, S, S), resized and flipped."""
        count, _, *shape = images.shape
        boxes = self.boxes(count, shape[0], shape[1], generator)
        flips = torch.stack([torch.rand(count, generator=generator) < p for p in self.flips])
        reach = [
            self.reach * max(1.0, side.max().item() / size) for side, size in zip(boxes[2:], self.size, strict=True)
        ]
        top, left, height, width, down, across = torch.cat([boxes, flips]).to(images.device, non_blocking=True)
        images = self._resized(images, 3, left, width, across, math.ceil(2 * reach[1]))
        return self._resized(images, 2, top, height, down, math.ceil(2 * reach[0]))

    def boxes(self, count: int, height: int, width: int, generator: Generator) -> Tensor:
        """Draw top, left, height and width of the crops, (4, N).

        As in RandomResizedCrop, ten tries are made for each image. If all fail, the crop is centred.

        Args:
            count: Number of images, N.
            height: Height of the images, in pixels.
            width: Width of the images, in pixels.
            generator: CPU generator of the random numbers.
        """
        area = torch.empty(count, 10).uniform_(*self.scale, generator=generator) * height * width
        low, high = (math.log(value) for value in self.ratio)
        ratio = torch.empty(count, 10).uniform_(low, high, generator=generator).exp()
        w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        good = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        middle = width / height
        whole_w = float(round(height * max(self.ratio)) if middle > max(self.ratio) else width)
        whole_h = float(round(width / min(self.ratio)) if middle < min(self.ratio) else height)
        taken = good.float().argmax(1, keepdim=True)
        found, h, w = good.any(1), h.gather(1, taken)[:, 0], w.gather(1, taken)[:, 0]
        h, w = h.where(found, torch.tensor(whole_h)), w.where(found, torch.tensor(whole_w))
        top, left = (torch.rand(2, count, generator=generator) * torch.stack([height - h + 1, width - w + 1])).floor()
        top = top.where(found, torch.tensor((height - whole_h) // 2))
        left = left.where(found, torch.tensor((width - whole_w) // 2))
        return torch.stack([top, left, h, w])

    def _resized(self, images: Tensor, dim: int, start: Tensor, length: Tensor, flip: Tensor, taps: int) -> Tensor:
        """Resize dimension 2 or 3 of the images. Each new pixel is a weighted mean of `taps` old pixels."""
        count, _, height, width = images.shape
        new_size, start, length = self.size[dim - 2], start[:, None], length[:, None]
        new = torch.arange(new_size, device=images.device) + 0.5
        scale = length / new_size
        middle = start + scale * torch.where(flip[:, None] > 0, new_size - new, new)
        shrink = scale.clamp_min(1)
        first = (middle - self.reach * shrink + 0.5).floor().maximum(start)
        old = first[:, None] + torch.arange(taps, device=images.device)[:, None]  # (N, taps, S)
        weights = self.kernel((old + 0.5 - middle[:, None]) / shrink[:, None]) * (old < (start + length)[:, None])
        weights = weights / weights.sum(1, keepdim=True)
        old = old.clamp_max(images.shape[dim] - 1).long()
        if dim == 2:
            planes = torch.arange(count * 3, device=images.device).view(count, 1, 3, 1)
            rows = planes * height + old[:, :, None]
            flat, weights = images.reshape(-1, width), weights[:, :, None, :, None]
            parts = (flat.index_select(0, rows[:, tap].flatten()).view(count, 3, -1, width) for tap in range(taps))
        else:
            shape = (count, 3, height, new_size)
            weights = weights[:, :, None, None]
            parts = (images.gather(3, old[:, tap, None, None].expand(shape)) for tap in range(taps))
        result = next(parts).mul_(weights[:, 0])
        for tap, part in enumerate(parts, start=1):
            result.add_(part.mul_(weights[:, tap]))
        return result.clamp_(0, 1)


class Flip:
    """Random flip that does not follow a crop.

    Args:
        dim: Dimension to flip: 2 is vertical, 3 is horizontal.
        p: Probability for each image.
    """

    def __init__(self, dim: int, p: float) -> None:
        self.dim, self.p = dim, p

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Flip a random selection of the images."""
        rows = _chosen(images, self.p, generator)
        return images.index_copy_(0, rows, images.index_select(0, rows).flip(self.dim))


class Rotate:
    """Lightly's RandomRotate by a multiple of 90°.

    Args:
        rotate: `RandomRotate` to convert.
    """

    def __init__(self, rotate: RandomRotate) -> None:
        self.p, self.quarters = rotate.prob, rotate.angle // 90
        if rotate.angle % 90:
            raise unknown(rotate, f"has angle {rotate.angle}, which is not a multiple of 90")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Rotate a random selection of the images.

        Raises:
            DataError: The images are not square, and would change their shape.
        """
        if self.quarters % 2 and images.shape[2] != images.shape[3]:
            raise DataError(
                f"RandomRotate turns views of {images.shape[2]}×{images.shape[3]} pixels by 90°, but expected square "
                "ones: crop to a square first"
            )
        rows = _chosen(images, self.p, generator)
        return images.index_copy_(0, rows, images.index_select(0, rows).rot90(self.quarters, (2, 3)))


class Jitter:
    """ColorJitter with probability p. Each image has its own order of brightness, contrast, saturation and hue.

    Brightness mixes an image with black, contrast with its mean grey level, and saturation with its grey version. One
    formula covers all three, so a step is a single operation on the batch. Images are sorted by the position of hue in
    their order, so that hue is applied to a slice. (Kornia's jitter uses one order for a whole batch.)

    Args:
        jitter: `ColorJitter` to convert.
        p: Probability for each image.
    """

    def __init__(self, jitter: Any, p: float) -> None:
        self.p = p
        self.ranges = [getattr(jitter, name) or (1.0, 1.0) for name in ("brightness", "contrast", "saturation")]
        self.hue = jitter.hue or (0.0, 0.0)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Jitter the colours of a random selection of the images."""
        chosen = (torch.rand(len(images), generator=generator) < self.p).nonzero()[:, 0]
        order = torch.rand(len(chosen), 4, generator=generator).argsort(1)
        place, by_place = (order == HUE).int().argmax(1).sort()
        kinds = order[by_place][order[by_place] != HUE].view(-1, 3)
        drawn = [torch.empty(len(chosen)).uniform_(*ends, generator=generator) for ends in (*self.ranges, self.hue)]
        turns = (255 * drawn.pop()).trunc()
        factors = torch.stack(drawn, 1).gather(1, kinds)
        greys, means = ((1 - factors) * (kinds == kind) for kind in (SATURATION, CONTRAST))
        steps = torch.stack([factors, greys, means]).to(images.device, non_blocking=True)[..., None, None, None]
        turns, rows = (values.to(images.device, non_blocking=True) for values in (turns, chosen[by_place]))
        some, ends = images.index_select(0, rows), torch.bincount(place, minlength=4).cumsum(0).tolist()
        for step, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if self.hue != (0.0, 0.0):
                some[start:end] = turn_hue(some[start:end], turns[start:end])
            if step < 3:
                factor, grey, mean = steps[:, :, step]
                own = grey_of(some)
                level = own.mean((2, 3), keepdim=True) * mean
                some.mul_(factor).add_(own.mul_(grey).add_(level)).clamp_(0, 1)
        return images.index_copy_(0, rows, some)


class Greyscale:
    """Torchvision's RandomGrayscale.

    Args:
        p: Probability for each image.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Convert a random selection of the images to grey."""
        rows = _chosen(images, self.p, generator)
        return images.index_copy_(0, rows, grey_of(images.index_select(0, rows)).expand(-1, 3, -1, -1))


class Blur:
    """Lightly's GaussianBlur, which is PIL's: three box filters along each axis, combined into one matrix.

    The radius of the box filters follows Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended
    box filtering", SSVM 2011, as in Pillow.

    Args:
        blur: `GaussianBlur` to convert.
    """

    def __init__(self, blur: GaussianBlur) -> None:
        self.p, self.sigmas = blur.prob, blur.sigmas

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Blur a random selection of the images."""
        rows = _chosen(images, self.p, generator)
        sigma = torch.empty(len(rows)).uniform_(*self.sigmas, generator=generator).to(images.device, non_blocking=True)
        down, across = (self._matrix(sigma, size) for size in images.shape[2:])
        blurred = torch.matmul(down[:, None], torch.matmul(images.index_select(0, rows), across.mT[:, None]))
        return images.index_copy_(0, rows, blurred)

    def _matrix(self, sigma: Tensor, size: int) -> Tensor:
        """Return the filter matrix (N, size, size) of one axis. Border pixels are replicated outside the image."""
        variance = sigma.square() / 3
        whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
        part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
        radius = (whole + part)[:, None, None]
        reach = math.ceil(max(self.sigmas)) + 2
        place = torch.arange(size, device=sigma.device)
        far = torch.arange(-reach, size + reach, device=sigma.device)
        box = (radius + 1 - (far - place[:, None]).abs()).clamp(0, 1) / (2 * radius + 1)
        inner = box[:, :, reach:-reach].contiguous()
        inner[:, :, 0] += box[:, :, :reach].sum(2)
        inner[:, :, -1] += box[:, :, -reach:].sum(2)
        return inner @ inner @ inner


class Solarize:
    """Lightly's RandomSolarization, which inverts pixel values at or above a threshold.

    Args:
        solarize: `RandomSolarization` to convert.
    """

    def __init__(self, solarize: RandomSolarization) -> None:
        self.p, self.threshold = solarize.prob, (solarize.threshold - 0.5) / 255

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Solarise a random selection of the images."""
        rows = _chosen(images, self.p, generator)
        some = images.index_select(0, rows)
        return images.index_copy_(0, rows, torch.where(some < self.threshold, some, 1 - some))


class Normalize:
    """Torchvision's Normalize.

    Args:
        normalize: `Normalize` to convert.
    """

    def __init__(self, normalize: Any) -> None:
        self.mean, self.std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (normalize.mean, normalize.std))

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Subtract the mean and divide by the standard deviation, per channel."""
        mean, std = (values.to(images.device, non_blocking=True) for values in (self.mean, self.std))
        return images.sub_(mean).div_(std)


def grey_of(images: Tensor) -> Tensor:
    """Convert images (N, 3, H, W) to grey images (N, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    result: Tensor = (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
    return result


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of images, and keep value and chroma.

    As in PIL, hues are integers from 0 to 255. 255 is the same hue as 0, and 256 wraps to 0.

    Args:
        images: Images (N, 3, H, W) in [0, 1].
        turns: Shift of each image, (N,), in 255ths of the colour circle.
    """
    red, green, blue = images.unbind(1)
    high, low = green.maximum(blue), green.minimum(blue)
    over, under = (red - high).clamp_min_(0), (low - red).clamp_min_(0)
    chroma = (high + over).sub_(low - under).clamp_min_(1e-6)
    hue = 2 - (red - low).add_(over).div_(chroma)  # the distance from red on a circle of length 6
    hue = hue.copysign_(green - blue).mul_(255 / 6)
    hue = hue.floor().sub_((hue < 0).float()).add_(turns[:, None, None])
    hue = hue.sub_((hue / 256).floor_().mul_(256)).mul_(6 / 255)
    primaries = torch.arange(0, 6, 2, device=hue.device).view(3, 1, 1)
    near = (hue[:, None] - primaries).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
    result: Tensor = near.mul_(chroma[:, None]).add_((low - under)[:, None])
    return result


def _triangle(x: Tensor) -> Tensor:
    """Return bilinear weights."""
    return (1 - x.abs()).clamp_min(0)


def _cubic(x: Tensor) -> Tensor:
    """Return bicubic weights with a = -0.5, as in PIL."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


_KERNELS = {"bilinear": (_triangle, 1), 2: (_triangle, 1), "bicubic": (_cubic, 2), 3: (_cubic, 2)}
"""Weight as a function of the distance in pixels, and the radius of its support, by interpolation."""


def _chosen(images: Tensor, p: float, generator: Generator) -> Tensor:
    """Draw the indices of the images that a part with probability p changes, on the images' device."""
    rows = (torch.rand(len(images), generator=generator) < p).nonzero()[:, 0]
    return rows.to(images.device, non_blocking=True)


def unknown(part: Any, reason: str) -> UsageError:
    """Return the error for a part that cannot process a batch.

    Args:
        part: Unsupported part of a transform.
        reason: Reason without its subject, such as "is not known".
    """
    name = type(part).__name__
    return UsageError(f"the views of {name} cannot be made on the device: it {reason}. Make them in the data loader")
