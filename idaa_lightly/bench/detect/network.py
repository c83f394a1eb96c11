"""Mask R-CNN of torchvision on a ResNet: with a feature pyramid, or with the last stage as its head (C4)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from idaa_lightly.errors import UsageError
from idaa_lightly.options import Count, NonNegative, Positive

STAGES = {f"layer{number}": str(number - 1) for number in (1, 2, 3, 4)}
STRIDES = [4, 8, 16, 32]


class Detector(MaskRCNN):  # type: ignore[misc]
    """Mask R-CNN on a ResNet.

    Args:
        network: ResNet without a classifier. It becomes a part of the detector.
        channels: Channels of its four stages.
        classes: Number of classes, with the background.
        norm: Maker of the norms of new layers; None for no norms.
        common: Further arguments of torchvision's `MaskRCNN`.
        width: Channels of the pyramid and of the heads. The box head has four times as many. In C4, channels of the
            last layer of masks.
        rois: Proposals per image that the heads are trained on.
        lr: Learning rate for 16 images per batch, scaled in proportion to their number.
        weight_decay: L2 penalty of all weights.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: list[int],
        classes: int,
        norm: Callable[..., nn.Module] | None,
        common: dict[str, Any],
        *,
        width: Count = 256,
        rois: Count = 512,
        lr: Positive = 0.02,
        weight_decay: NonNegative = 1e-4,
    ) -> None:
        parts = self.parts(network, channels, classes, norm, width)
        super().__init__(**parts, **common, box_batch_size_per_image=rois)
        self.lr, self.weight_decay = lr, weight_decay

    @staticmethod
    def parts(
        network: nn.Module, channels: list[int], classes: int, norm: Callable[..., nn.Module] | None, width: int
    ) -> dict[str, Any]:
        """Return the arguments of torchvision's `MaskRCNN` that are modules."""
        raise NotImplementedError


class FPN(Detector):
    """Mask R-CNN with a feature pyramid over the four stages of a ResNet.

    With the default options, it is torchvision's `maskrcnn_resnet50_fpn` for any ResNet.

    Source: He et al., "Mask R-CNN", ICCV 2017; Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    """

    @staticmethod
    def parts(
        network: nn.Module, channels: list[int], classes: int, norm: Callable[..., nn.Module] | None, width: int
    ) -> dict[str, Any]:
        """Return the pyramid and the heads."""
        return {
            "backbone": BackboneWithFPN(network, STAGES, channels, width, norm_layer=norm),
            "box_head": TwoMLPHead(width * 7 * 7, 4 * width),
            "box_predictor": FastRCNNPredictor(4 * width, classes),
            "mask_head": MaskRCNNHeads(width, (width,) * 4, 1),
            "mask_predictor": MaskRCNNPredictor(width, width, classes),
        }


class C4(Detector):
    """Mask R-CNN on the third stage of a ResNet. The last stage is the head of boxes and masks.

    Source: He et al., "Mask R-CNN", ICCV 2017, Sec. 3 and Fig. 4 (left). Table 5 of Yang et al., ICML 2022, uses it.

    Differs from MoCo's C4: no BatchNorm is added after the last stage.
    """

    @staticmethod
    def parts(
        network: nn.Module, channels: list[int], classes: int, norm: Callable[..., nn.Module] | None, width: int
    ) -> dict[str, Any]:
        """Return the first stages and the heads. They have no norms of their own."""
        last = network.get_submodule("layer4")
        body: Any = IntermediateLayerGetter(network, {"layer3": "0"})
        body.out_channels = channels[2]
        return {
            "backbone": body,
            "rpn_anchor_generator": AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
            "box_roi_pool": MultiScaleRoIAlign(["0"], 14, 2),
            "box_head": nn.Sequential(last, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "box_predictor": FastRCNNPredictor(channels[3], classes),
            "mask_roi_pool": MultiScaleRoIAlign(["0"], 14, 2),
            "mask_head": last,
            "mask_predictor": MaskRCNNPredictor(channels[3], width, classes),
        }


METHODS: dict[str, type[Detector]] = {"maskrcnn-fpn": FPN, "maskrcnn-c4": C4}


def stages(network: nn.Module, name: str) -> list[int]:
    """Return the channels of the four stages of a ResNet.

    Args:
        network: Backbone. It stays unchanged.
        name: Its name, for the error message.

    Raises:
        UsageError: The backbone is no ResNet, or its maps are not reduced by 4, 8, 16 and 32.
    """
    if type(network).__name__ != "ResNet":  # The name of the class in torchvision and timm.
        raise UsageError(
            f"backbone {name!r} is a {type(network).__name__}, but a detector needs the feature maps of four stages: "
            "take a run of a ResNet of torchvision or timm, such as resnet18 or resnet50"
        )
    twin = IntermediateLayerGetter(copy.deepcopy(network).to("meta"), STAGES)
    maps = list(twin(torch.empty(2, 3, 64, 64, device="meta")).values())
    strides = [64 // part.shape[-1] for part in maps]
    if strides != STRIDES:
        raise UsageError(
            f"backbone {name!r} reduces images by {strides} in its stages, but a detector needs {STRIDES}: the stem "
            "for images of up to 64 px does not, so train the run with --image-size 96 or more"
        )
    return [part.shape[1] for part in maps]


def freeze(network: nn.Module) -> None:
    """Replace the BatchNorms of a network by frozen ones with the same weights and statistics."""
    for name, part in network.named_children():
        if isinstance(part, nn.BatchNorm2d):
            norm = FrozenBatchNorm2d(part.num_features, part.eps)
            norm.load_state_dict(part.state_dict())
            setattr(network, name, norm)
        else:
            freeze(part)
