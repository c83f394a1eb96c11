"""Construction of the plugins of a configuration: augmentation, backbone and method."""

from __future__ import annotations

import torch
from torch import nn

from idaa_lightly.backbones import Built, build_backbone, create_backbone
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.data import IMAGENET, DataSet
from idaa_lightly.errors import UsageError
from idaa_lightly.loading import evaluation_batches
from idaa_lightly.options import parse_options
from idaa_lightly.plugin import Augmentation, Backbone, Method
from idaa_lightly.registry import entries, load

FITTED_ON = 4096  # training images that a backbone plugin is fitted to, at most


def make_augmentation(config: RunConfig) -> Augmentation:
    """Return the augmentation of a resolved configuration, not fitted yet."""
    augmentation: Augmentation = load("augmentation", config.aug)(**config.set["aug"])
    return augmentation


def make_method(config: RunConfig, network: nn.Module, num_features: int) -> Method:
    """Return the method of a configuration on a backbone.

    Args:
        config: Configuration. Options of the method that it lacks get their defaults.
        network: The backbone.
        num_features: Dimension of its features.

    Raises:
        UsageError: The method has no such option, or it, or the loss of a library that it uses, refuses a value.
    """
    plugin = load("method", config.method)
    options = parse_options(plugin, config.method, dict(config.set.get("method", {})))
    try:
        method: Method = plugin(network, num_features, **options)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{config.method!r} does not take these options: {error}") from error
    return method


def rehearse(config: RunConfig) -> None:
    """Construct the plugins of a resolved configuration, to find values that ranges cannot refuse.

    Args:
        config: Resolved configuration. Its backbone is built without memory, and the method on a tiny stand-in.

    Raises:
        UsageError: A value cannot be used.
    """
    make_augmentation(config)
    size = config.view_size or config.image_size or 32
    with torch.device("meta"):
        create_backbone(config.backbone or "", size, config.set.get("backbone"))
    with torch.random.fork_rng([]):
        method = make_method(config, nn.Linear(1, 8), 8)
        method.transform(size, IMAGENET)
        method.optimizer([{"params": list(method.parameters())}], config.epochs or 1, 1)


def untrained_backbone(config: RunConfig, data: DataSet) -> Built:
    """Create the backbone of a configuration, fitted to the training images if it depends on them."""
    built = build_backbone(config.backbone or "", data.image_size, config.set.get("backbone"))
    if isinstance(built.network, Backbone):
        some = data.train.take(torch.arange(len(data.train))[:: max(1, len(data.train) // FITTED_ON)][:FITTED_ON])
        with torch.no_grad():
            built.network.fit(torch.cat([images for images, _ in evaluation_batches(data, some)]))
    return built


def trained_network(config: RunConfig, network: nn.Module, num_features: int) -> tuple[nn.Module, int]:
    """Return the network that a method makes of a backbone, and the dimension of its features.

    This is the backbone itself for most methods, and for methods that are not installed. `cmc` makes two encoders.

    Args:
        config: Configuration of the run.
        network: Backbone. It may become a part of the network.
        num_features: Dimension of the backbone's features.
    """
    if not entries("method", config.method):
        return network, num_features
    with torch.random.fork_rng([]):
        method = make_method(config, network, num_features)
    return method.backbone, method.num_features
