"""CMC: contrast of lightness and colour."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightly.loss import NTXentLoss
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor, nn

from idaa_lightly.errors import UsageError, require_extra
from idaa_lightly.options import Count, Positive
from idaa_lightly_plugins.methods.recipe import LightlyRecipe

Pair = tuple[Tensor, Tensor]


class LabEncoders(nn.Module):
    """Two encoders of images in CIE Lab: one of the lightness L, and one of the colour channels a and b.

    Args:
        backbone: Network of RGB images. Two copies of it get a first convolution of one and of two channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(_of_channels(backbone, channels) for channels in (1, 2))
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))

    def set_normalization(self, normalize: dict[str, list[float]]) -> None:
        """Store the normalisation of the images, so that checkpoints hold it.

        Args:
            normalize: Keys `mean` and `std`, one value per channel.
        """
        self.mean.copy_(torch.tensor(normalize["mean"]).view(3, 1, 1))
        self.std.copy_(torch.tensor(normalize["std"]).view(3, 1, 1))

    def lab(self, images: Tensor) -> Pair:
        """Return L, (N, 1, H, W), and a and b, (N, 2, H, W), of normalised images (N, 3, H, W).

        L is shifted and scaled from 0 to 100 to the range -1 to 1. a and b are divided by 50.
        """
        from kornia.color import rgb_to_lab

        with torch.autocast(images.device.type, enabled=False):
            lab = rgb_to_lab((images.to(self.mean.dtype) * self.std + self.mean).clamp(0, 1))
        return (lab[:, :1] - 50) / 50, lab[:, 1:] / 50

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of L and of ab, one after the other, (N, 2 · num_features)."""
        parts = zip(self.encoders, self.lab(images), strict=True)
        return torch.cat([encoder(part).flatten(1) for encoder, part in parts], 1)


class CMC(LightlyRecipe):
    """Contrastive multiview coding (CMC) of lightness and colour: two encoders, one of L and one of ab.

    Views are RGB images, which are converted to CIE Lab. The lightness of each view is contrasted with the colour of
    the other one. Features are those of both encoders. `oucl` and `metaug` contrast the lightness of the first view
    with the colour of the second one, as MetAug's authors do.

    Source: Tian et al., "Contrastive Multiview Coding", ECCV 2020, Sec. 3. The recipe is Lightly's CIFAR-10 benchmark.

    Differs from the paper: L and ab are those of two views, not of one. NT-Xent with the negatives of the batch
    replaces the contrast with a memory bank, so that lightness is contrasted with other images' lightness, too. The
    encoders are two copies of any backbone, not halves of an AlexNet. Their first convolutions are new, and start from
    random weights even with `--weights`. MetAug's third encoder, of all of Lab, is left out. `idaa-bench linear RUN
    --layer` evaluates single layers, as the papers' tables do.

    Args:
        temperature: Temperature of the loss, which divides the cosines.
        projection_dim: Dimension of the projections, which are linear.
    """

    backbone: LabEncoders

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        temperature: Positive = 0.1,
        projection_dim: Count = 128,
        **options: Any,
    ) -> None:
        require_extra("kornia", "vision", "method 'cmc'")
        super().__init__(LabEncoders(backbone), 2 * num_features, **options)
        self.heads = nn.ModuleList(nn.Linear(num_features, projection_dim) for _ in range(2))
        self.criterion = NTXentLoss(temperature, gather_distributed=True)

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform with crop, flip, colour jitter and greyscale."""
        self.backbone.set_normalization(normalize)
        return super().transform(image_size, normalize)

    def embed(self, images: Tensor) -> Pair:
        """Return projections of L and of ab, (N, projection_dim) each."""
        lightness, colour = self.backbone(images).chunk(2, 1)
        return self.heads[0](lightness), self.heads[1](colour)

    @staticmethod
    def embeddings(anchor: Pair, positive: Pair) -> Pair:
        """Return the lightness of the first view and the colour of the second."""
        return anchor[0], positive[1]

    def loss(self, anchor: Pair, positive: Pair, *others: Pair) -> Tensor:
        """Contrast the lightness of each view with the colour of the other one."""
        loss: Tensor = 0.5 * (self.criterion(anchor[0], positive[1]) + self.criterion(positive[0], anchor[1]))
        return loss


def _of_channels(backbone: nn.Module, channels: int) -> nn.Module:
    """Return a copy of a network whose first convolution of RGB images takes images with `channels` channels.

    Raises:
        UsageError: That convolution is fixed.
    """
    network = copy.deepcopy(backbone)
    for parent in list(network.modules()):
        for name, part in parent.named_children():
            if isinstance(part, nn.Conv2d) and part.in_channels == 3:
                if not part.weight.requires_grad:
                    raise UsageError(
                        "cmc replaces the first convolution, but this backbone's is fixed: choose another --backbone"
                    )
                made = type(part)(
                    channels,
                    part.out_channels,
                    part.kernel_size,  # type: ignore[arg-type]
                    part.stride,  # type: ignore[arg-type]
                    part.padding,  # type: ignore[arg-type]
                    part.dilation,  # type: ignore[arg-type]
                    bias=part.bias is not None,
                )
                setattr(parent, name, made)
                return network
    return network
