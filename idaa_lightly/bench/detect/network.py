"""Mask R-CNN of torchvision on a backbone: with a feature pyramid, or with the last stage of a ResNet as its head."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import feature_extraction
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from idaa_lightly.errors import UsageError, require_extra
from idaa_lightly.options import Count, NonNegative, Positive

SIDE = 64  # Any size that all strides divide.
DEPTH = 4  # Of a network's modules.
STRIDES = [4, 8, 16, 32]
RESNET = ["layer1", "layer2", "layer3", "layer4"]
"""Stages of a ResNet, in torchvision and timm."""


class Detector(MaskRCNN):  # type: ignore[misc]
    """Mask R-CNN on a backbone.

    Args:
        network: Network without a classifier. It becomes a part of the detector.
        channels: Channels of its four stages, by the name of the stage.
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
        channels: dict[str, int],
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
        network: nn.Module, channels: dict[str, int], classes: int, norm: Callable[..., nn.Module] | None, width: int
    ) -> dict[str, Any]:
        """Return the arguments of torchvision's `MaskRCNN` that are modules."""
        raise NotImplementedError


class FPN(Detector):
    """Mask R-CNN with a feature pyramid over the four stages of a network.

    With the default options, it is torchvision's `maskrcnn_resnet50_fpn` for other networks, too.

    Source: He et al., "Mask R-CNN", ICCV 2017; Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    """

    @staticmethod
    def parts(
        network: nn.Module, channels: dict[str, int], classes: int, norm: Callable[..., nn.Module] | None, width: int
    ) -> dict[str, Any]:
        """Return the pyramid and the heads."""
        names = {stage: str(index) for index, stage in enumerate(channels)}
        pyramid = FeaturePyramidNetwork([*channels.values()], width, LastLevelMaxPool(), norm)
        backbone: Any = nn.Sequential(OrderedDict(body=_extractor(network, names), fpn=pyramid))
        backbone.out_channels = width
        return {
            "backbone": backbone,
            "box_head": TwoMLPHead(width * 7 * 7, 4 * width),
            "box_predictor": FastRCNNPredictor(4 * width, classes),
            "mask_head": MaskRCNNHeads(width, (width,) * 4, 1),
            "mask_predictor": MaskRCNNPredictor(width, width, classes),
        }


class C4(Detector):
    """Mask R-CNN on the third stage of a ResNet. The last stage is the head of boxes and masks.

    Source: He et al., "Mask R-CNN", ICCV 2017, Sec. 3 and Fig. 4 (left). Table 5 of Yang et al., ICML 2022, uses it.

    Differs from the paper: the heads are trained on 512 proposals per image by default, as in Detectron2, not on 64.
    Differs from MoCo's C4: no BatchNorm is added after the last stage.
    """

    @staticmethod
    def parts(
        network: nn.Module, channels: dict[str, int], classes: int, norm: Callable[..., nn.Module] | None, width: int
    ) -> dict[str, Any]:
        """Return the first stages and the heads. They have no norms of their own.

        Raises:
            UsageError: The network is no ResNet.
        """
        if list(channels) != RESNET:
            raise UsageError(
                f"method is maskrcnn-c4, but the stages of the backbone are {', '.join(channels)}: take a run of a "
                "ResNet, or --method maskrcnn-fpn"
            )
        last = network.get_submodule("layer4")
        body: Any = IntermediateLayerGetter(network, {"layer3": "0"})
        body.out_channels = channels["layer3"]
        return {
            "backbone": body,
            "rpn_anchor_generator": AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
            "box_roi_pool": MultiScaleRoIAlign(["0"], 14, 2),
            "box_head": nn.Sequential(last, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "box_predictor": FastRCNNPredictor(channels["layer4"], classes),
            "mask_roi_pool": MultiScaleRoIAlign(["0"], 14, 2),
            "mask_head": last,
            "mask_predictor": MaskRCNNPredictor(channels["layer4"], width, classes),
        }


METHODS: dict[str, type[Detector]] = {"maskrcnn-fpn": FPN, "maskrcnn-c4": C4}


def stages(network: nn.Module, name: str) -> dict[str, int]:
    """Find the four stages of a network: the last modules whose maps are reduced by 4, 8, 16 and 32.

    Only the outer modules count: those of the least depth at which all four are found.

    Args:
        network: Backbone. It stays unchanged.
        name: Its name, for the error message.

    Returns:
        Channels of the four maps, by the name of the module.

    Raises:
        UsageError: There are no such maps, or the network works with images of one size only.
    """
    twin = copy.deepcopy(network).to("meta")
    maps: dict[str, torch.Size] = {}

    def keep(place: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if place and isinstance(output, Tensor) and output.dim() == 4:
            maps[place] = output.shape

    for place, module in twin.named_modules():
        module.register_forward_hook(partial(keep, place))
    try:
        twin(torch.empty(2, 3, SIDE, SIDE, device="meta"))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"backbone {name!r} does not take images of {SIDE} px ({error}), but a detector needs a network for images "
            "of any size: take a run of a convolutional one"
        ) from error
    for depth in range(DEPTH):
        outer = {SIDE // shape[-1]: place for place, shape in maps.items() if place.count(".") <= depth}
        if outer.keys() >= {*STRIDES}:
            return {outer[stride]: maps[outer[stride]][1] for stride in STRIDES}
    missing = " and ".join(str(stride) for stride in STRIDES if stride not in outer)
    raise UsageError(
        f"backbone {name!r} has no maps that are reduced by {missing}, but a detector needs them reduced by 4, 8, 16 "
        "and 32: take a convolutional network such as resnet50, and train its run with --image-size 96 or more, "
        "because the stem for images of up to 64 px does not reduce them"
    )


def _extractor(network: nn.Module, names: dict[str, str]) -> nn.Module:
    """Return a network of the outputs of some modules, with new names. What they do not need is left out."""
    of_timm = type(network).__module__.startswith("timm.")  # Some of timm's modules must not be traced.
    extractor: nn.Module = (_timm().models if of_timm else feature_extraction).create_feature_extractor(network, names)
    return extractor


def _timm() -> Any:
    return require_extra("timm", "vision", "a network of timm")


def activates(part: nn.Module) -> bool:
    """Tell whether a module is a BatchNorm of timm that contains its activation."""
    return isinstance(part, nn.BatchNorm2d) and type(part) is not nn.BatchNorm2d


def freeze(network: nn.Module) -> None:
    """Replace the BatchNorms of a network by frozen ones with the same weights and statistics."""
    for name, part in network.named_children():
        if activates(part):
            setattr(network, name, _timm().layers.freeze_batch_norm_2d(part))
        elif isinstance(part, nn.BatchNorm2d):
            norm = FrozenBatchNorm2d(part.num_features, part.eps)
            norm.load_state_dict(part.state_dict())
            setattr(network, name, norm)
        else:
            freeze(part)
