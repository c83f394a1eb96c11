"""Views made in batches: each part equals PIL's, and the views are distributed like those of the Lightly transform."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from click.testing import CliRunner
from lightly.transforms.dino_transform import DINOTransform
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.rotation import RandomRotate
from lightly.transforms.simclr_transform import SimCLRTransform
from lightly.transforms.solarize import RandomSolarization
from lightly.transforms.torchvision_v2_compatibility import ToTensor
from lightly.transforms.vicreg_transform import VICRegTransform
from PIL import Image
from scipy.stats import ks_2samp
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as TF

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.fitting import fit_context
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.setup import Parts, choose_views, make_parts, read_data, resolve
from idaa_lightly.bench.run.trainer import make_trainer
from idaa_lightly.cli import main
from idaa_lightly.errors import DataError, UsageError
from idaa_lightly.registry import entries, load
from idaa_lightly.seeding import seeded
from idaa_lightly.training import SelfSupervised
from idaa_lightly.transforms.device import DeviceViews
from idaa_lightly.transforms.parts import Crop, grey_of

DRAWS = 1600
NORMALIZE = {"mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]}


def name_of(part: Any) -> str:
    """Return the text of a part without its object address, which differs between pytest's processes."""
    return re.sub(r" object at 0x\w+", "", str(part))


def pictures(size: int = 32) -> Tensor:
    """Return coloured blobs, noise, greys and pure colours as a uint8 tensor of shape (N, size, size, 3)."""
    rng = np.random.default_rng(0)
    blobs = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((size, size)) for _ in range(12)]
    noise = [rng.integers(0, 256, (size, size, 3), np.uint8) for _ in range(2)]
    plain = [np.full((size, size, 3), colour, np.uint8) for colour in (0, 255, 90, (255, 0, 0), (0, 255, 255))]
    return torch.stack([torch.from_numpy(np.array(image)) for image in [*blobs, *noise, *plain]])


PICTURES = pictures()


def transform_of(*parts: Any) -> MultiViewTransform:
    return MultiViewTransform([v2.Compose([*parts, ToTensor()])])


def on_pil(transform: MultiViewTransform, pixels: Tensor) -> Tensor:
    with seeded(1):
        return torch.stack([transform(Image.fromarray(image.numpy()))[0] for image in pixels])


def both(*parts: Any, pixels: Tensor = PICTURES) -> tuple[Tensor, Tensor]:
    transform = transform_of(*parts)
    return DeviceViews(transform)(pixels, 0)[0], on_pil(transform, pixels)


def fixed(**factors: float) -> v2.ColorJitter:
    return v2.ColorJitter(**{name: (value, value) for name, value in factors.items()})


@pytest.mark.parametrize(
    "part",
    [
        *(fixed(**{name: value}) for name in ("brightness", "contrast", "saturation") for value in (0.3, 1.7)),
        v2.RandomGrayscale(1.0),
        v2.RandomHorizontalFlip(1.0),
        v2.RandomVerticalFlip(1.0),
        RandomRotate(prob=1.0),
        RandomSolarization(prob=1.0),
        RandomSolarization(prob=1.0, threshold=60),
    ],
    ids=name_of,
)
def test_a_part_equals_pils(part: Any) -> None:
    ours, theirs = both(part)
    torch.testing.assert_close(ours, theirs, atol=1.5 / 255, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0, 6.0])
def test_blur_equals_pils_which_rounds_six_times(sigma: float) -> None:
    ours, theirs = both(GaussianBlur(prob=1.0, sigmas=(sigma, sigma)))
    torch.testing.assert_close(ours, theirs, atol=3.0 / 255, rtol=0)
    assert (ours - theirs).abs().mean() < 0.7 / 255


@pytest.mark.parametrize("turn", [0.2, -0.2, 0.5, -0.43])
def test_hue_equals_pils_but_where_it_rounds_to_the_next_step(turn: float) -> None:
    ours, theirs = both(fixed(hue=turn))
    difference = 255 * (ours - theirs).abs().flatten()
    assert difference.max() < 6.5  # One of PIL's 255 hue steps changes a channel by up to 6 grey levels.
    assert difference.quantile(0.998) < 1.5


@pytest.mark.parametrize("size", [32, 48, 16, 9])
@pytest.mark.parametrize("interpolation", [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC])
def test_crop_and_flips_equal_pils(size: int, interpolation: InterpolationMode) -> None:
    crop = Crop(v2.RandomResizedCrop(size, scale=(0.02, 1.0), interpolation=interpolation))
    crop.flips = [0.5, 0.5]
    pixels = PICTURES[:, :28]  # Height and width differ, so that mixing them up would show.
    ours = crop(pixels.permute(0, 3, 1, 2) / 255, Generator().manual_seed(3))
    same = Generator().manual_seed(3)
    boxes = crop.boxes(len(pixels), 28, 32, same).int().T.tolist()
    down, across = (torch.rand(len(pixels), generator=same) < 0.5 for _ in range(2))
    for index, box in enumerate(boxes):
        theirs = TF.resized_crop(Image.fromarray(pixels[index].numpy()), *box, [size, size], interpolation)
        theirs = TF.vflip(theirs) if down[index] else theirs
        theirs = TF.to_tensor(TF.hflip(theirs) if across[index] else theirs)
        torch.testing.assert_close(ours[index], theirs, atol=1.5 / 255, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32), (20, 64), (64, 20)])
def test_boxes_are_drawn_as_torchvisions(shape: tuple[int, int]) -> None:
    """All ten tries may fail if an image is much longer than the widest crop. Then the centre is taken."""
    crop = v2.RandomResizedCrop(32, scale=(0.3, 1.0))
    with seeded(2):
        drawn = [crop.make_params([torch.empty(3, *shape)]) for _ in range(DRAWS)]
    ours = Crop(crop).boxes(DRAWS, *shape, Generator().manual_seed(0))
    for values, name in zip(ours, ("top", "left", "height", "width"), strict=True):
        assert ks_2samp(values.numpy(), [params[name] for params in drawn], method="asymp").pvalue > 0.001, name


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda views: views.mean((1, 2, 3)),
    "contrast": lambda views: grey_of(views).flatten(1).std(1),
    "red": lambda views: views[:, 0].mean((1, 2)),
    "blue": lambda views: views[:, 2].mean((1, 2)),
    "colour": lambda views: (views.amax(1) - views.amin(1)).mean((1, 2)),
    "left": lambda views: views[..., :16].mean((1, 2, 3)),
    "top": lambda views: views[:, :, :16].mean((1, 2, 3)),
    "edges": lambda views: views.diff(dim=3).abs().mean((1, 2, 3)),
}


@pytest.mark.parametrize(
    "part",
    [
        v2.ColorJitter(brightness=0.8),
        v2.ColorJitter(contrast=0.8),
        v2.ColorJitter(saturation=0.8),
        v2.ColorJitter(hue=0.2),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.3),
        GaussianBlur(prob=0.5, sigmas=(0.1, 2.0)),
        RandomSolarization(prob=0.2),
        RandomRotate(prob=0.4),
        v2.RandomResizedCrop(32, scale=(0.08, 1.0)),
    ],
    ids=name_of,
)
def test_a_part_has_the_distribution_of_the_original(part: Any) -> None:
    """PIL rounds to grey levels, so distributions are compared after a shift by one level in either direction."""
    ours, theirs = both(part, pixels=PICTURES[3].expand(DRAWS, -1, -1, -1))
    for name, statistic in STATISTICS.items():
        a, b = (statistic(views).numpy() for views in (ours, theirs))
        assert ks_2samp(a + 1 / 255, b, alternative="greater", method="asymp").pvalue > 0.001, name
        assert ks_2samp(a - 1 / 255, b, alternative="less", method="asymp").pvalue > 0.001, name


def test_each_image_has_its_own_order_of_jitter() -> None:
    """White, at an image mean of 0.5, becomes 0.75 if brightness 0.5 precedes contrast 2, and 0.5 if it follows."""
    pixels = torch.zeros(DRAWS, 8, 8, 3, dtype=torch.uint8)
    pixels[:, :4] = 255
    views = DeviceViews(transform_of(fixed(brightness=0.5, contrast=2.0)))(pixels, 0)[0]
    white = views[:, 0, 0, 0]
    assert sorted({round(value, 2) for value in white.tolist()}) == [0.5, 0.75]
    assert abs((white > 0.6).double().mean() - 0.5) < 4 * (0.25 / DRAWS) ** 0.5


@pytest.mark.parametrize(
    "transform",
    [
        SimCLRTransform(32, normalize=NORMALIZE),
        VICRegTransform(32, solarize_prob=0.5, normalize=NORMALIZE),
        DINOTransform(global_crop_size=32, local_crop_size=16, solarization_prob=0.5, normalize=NORMALIZE),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_first_and_second_moments_of_the_whole(transform: MultiViewTransform) -> None:
    pixels = PICTURES[3].expand(DRAWS // 2, -1, -1, -1)
    last = MultiViewTransform([transform.transforms[i] for i in (1, -1)])
    ours = DeviceViews(last)(pixels, 0)
    with seeded(3):
        image = Image.fromarray(pixels[0].numpy())
        theirs = [torch.stack(views) for views in zip(*(last(image) for _ in pixels), strict=True)]
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        a, b = (torch.nn.functional.adaptive_avg_pool2d(views, 2).flatten(1).double() for views in (one, other))
        products = [torch.einsum("ni,nj->nij", views, views).flatten(1) for views in (a, b)]
        for x, y in ((a, b), products):
            error = ((x.var(0) + y.var(0)) / len(x)).sqrt()
            assert ((x.mean(0) - y.mean(0)).abs() < 4.5 * error).all()


def test_views_depend_on_the_key_alone_and_leave_no_trace() -> None:
    make, pixels = DeviceViews(VICRegTransform(32, normalize=NORMALIZE)), PICTURES.clone()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = make(pixels, 0, 1, 2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert torch.equal(pixels, PICTURES)
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = make(pixels, 0, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    for key in ((1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 1, 2, 0)):
        assert not torch.equal(first[0], make(pixels, *key)[0])
    assert [view.shape for view in make.first()(pixels, 0, 1, 2)] == [first[0].shape]


def test_images_come_in_many_forms() -> None:
    """Both layouts, uint8 and floats in [0, 1], tensors and arrays, which may be read-only or reversed."""
    make, floats = DeviceViews(SimCLRTransform(32, normalize=NORMALIZE)), PICTURES / 255
    expected = make(PICTURES, 0)
    frozen = PICTURES.numpy().copy()
    frozen.flags.writeable = False
    forms = {
        "channels first": PICTURES.permute(0, 3, 1, 2),
        "floats": floats,
        "floats, channels first": floats.permute(0, 3, 1, 2).contiguous(),
        "doubles": PICTURES.double() / 255,
        "array": frozen,
        "reversed array": PICTURES.flip(3).numpy()[..., ::-1],
    }
    for name, images in forms.items():
        torch.testing.assert_close(make(images, 0), expected, rtol=0, atol=1e-5, msg=name)
    assert torch.equal(forms["floats, channels first"], (PICTURES / 255).permute(0, 3, 1, 2))  # not changed in place


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (PICTURES.float(), r"have values from 0 to 255, but .* as floats in \[0, 1\]: divide them by 255"),
        (PICTURES / 127.5 - 1, "have values from -1 to 1, .*: pass them without normalisation"),
        (torch.full((2, 3, 8, 8), torch.nan), "have values from nan to nan"),
        (PICTURES.long(), r"have shape \(19, 32, 32, 3\) and type torch.int64, but expected \(N, H, W, 3\) or"),
        (PICTURES[0], r"have shape \(32, 32, 3\) and type torch.uint8, but expected"),
        (PICTURES[..., :1], r"have shape \(19, 32, 32, 1\)"),
        (PICTURES[:0], r"have shape \(0, 32, 32, 3\)"),
    ],
)
def test_other_images_are_refused(images: Tensor, text: str) -> None:
    with pytest.raises(DataError, match=text):
        DeviceViews(SimCLRTransform(32, normalize=NORMALIZE))(images, 0)


def test_views_without_a_key_are_new_each_time() -> None:
    make = DeviceViews(SimCLRTransform(32, normalize=NORMALIZE))
    torch.manual_seed(0)
    first, second = make(PICTURES)[0], make(PICTURES)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(make(PICTURES)[0], first)


def test_views_are_detached_and_of_one_image_too() -> None:
    views = DeviceViews(SimCLRTransform(32, normalize=NORMALIZE))(PICTURES[:1], 0)
    assert [view.shape for view in views] == [(1, 3, 32, 32)] * 2
    assert not any(view.requires_grad for view in views)


class Sharper(v2.ColorJitter):
    """Third-party subclass, which may behave differently from its base."""


class OwnCall(MultiViewTransform):
    def __call__(self, image: Any) -> Any:
        return image


@pytest.mark.parametrize(
    ("transform", "text"),
    [
        (transform_of(v2.RandomPosterize(4)), "of RandomPosterize cannot be made on the device: it is not known"),
        (
            transform_of(Sharper(0.4)),
            "of Sharper cannot be made on the device: it is not known. Make them in the data load",
        ),
        (SimCLRTransform(32, rr_prob=0.5, rr_degrees=10.0), "of RandomApply .* applies RandomRotation, not a Color"),
        (transform_of(RandomRotate(angle=45)), "of RandomRotate .* has angle 45, which is not a multiple of 90"),
        (
            transform_of(v2.RandomResizedCrop(8, interpolation=InterpolationMode.NEAREST)),
            "has interpolation nearest, not bilinear or bicubic",
        ),
        (
            transform_of(ToTensor(), v2.RandomGrayscale()),
            "of RandomGrayscale .* comes after the conversion to a tensor",
        ),
        (MultiViewTransform([v2.RandomGrayscale()]), "of RandomGrayscale .* does not convert to a tensor in"),
        (OwnCall([]), "of OwnCall .* it is not a Lightly MultiViewTransform"),
        (v2.Compose([ToTensor()]), "of Compose .* it is not a Lightly MultiViewTransform"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_it_does_not_know_it_refuses(transform: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        DeviceViews(transform)


def test_a_view_that_is_not_square_is_not_turned() -> None:
    make = DeviceViews(transform_of(v2.RandomResizedCrop((16, 24)), RandomRotate(prob=1.0)))
    with pytest.raises(DataError, match="turns views of 16×24 pixels by 90°, but expected square ones: crop to a"):
        make(PICTURES[:2])


def test_what_never_happens_is_not_refused() -> None:
    never = SimCLRTransform(32, rr_prob=0.0, rr_degrees=10.0, vf_prob=0.0, gaussian_blur=0.0, normalize=NORMALIZE)
    names = [type(part).__name__ for part in DeviceViews(never).views[0][0]]
    assert names == ["Crop", "Jitter", "Greyscale", "Normalize"]


def test_the_host_never_asks_the_device_for_a_value() -> None:
    """The device "meta" has shapes but no values, so an operation that waits for a value raises."""
    make = DeviceViews(VICRegTransform(32, solarize_prob=0.5, rr_prob=0.5, vf_prob=0.5, normalize=NORMALIZE))
    views = make._views(torch.empty(8, 3, 40, 40, dtype=torch.uint8, device="meta"), Generator())
    assert [(view.shape, view.device.type) for view in views] == [((8, 3, 32, 32), "meta")] * 2


@pytest.mark.parametrize("name", [entry.name for entry in entries("method") if entry.distribution == "idaa-lightly"])
def test_the_views_of_every_method_have_the_sizes_of_lightlys(name: str) -> None:
    transform = load("method", name)(*create_backbone("resnet9-w4", 32)).transform(32, NORMALIZE)
    ours = DeviceViews(transform)(PICTURES[:2], 0)
    theirs = transform(Image.fromarray(PICTURES[0].numpy()))
    assert [view.shape[1:] for view in ours] == [view.shape for view in theirs]


# Device views in a run


def tiny(**options: Any) -> RunConfig:
    return RunConfig(
        aug="none", limit_train=96, backbone="resnet9-w4", batch_size=32, epochs=2, accelerator="cpu", **options
    )


def parts_of(config: RunConfig) -> Parts:
    config = resolve(config)
    return make_parts(config, make_augmentation(config), read_data(config))


def test_pixels_come_in_the_order_of_views() -> None:
    first, second = (parts_of(tiny(views=views)) for views in ("device", "loader"))
    for epoch in range(2):
        batches = []
        for parts in (first, second):
            loader = parts.loader(10, ranks=2, rank=1)
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            batches.append(list(loader))
        assert len(batches[0]) == 4
        for (pixels, labels), (_, same) in zip(*batches, strict=True):
            assert (pixels.shape, pixels.dtype) == ((10, 32, 32, 3), torch.uint8)
            assert torch.equal(labels, same)


def test_a_run_says_what_made_its_views() -> None:
    options = ["--limit-train", "96", "--backbone", "resnet9-w4", "--batch-size", "32", "--accelerator", "cpu"]
    vae = ["--epochs", "1", "--set", "aug.width=4", "--set", "aug.bottleneck_dim=8"]
    result = CliRunner().invoke(main, ["run", *options, *vae, "--views", "device", "--out", "run"])
    assert result.exit_code == 0, result.output
    assert "Views by the device, in batches (as asked for)." in " ".join(result.output.split())
    record = json.loads(Path("run/record.json").read_text())
    assert record["data"]["views"] == {"by": "device", "because": "as asked for"}


def test_a_vae_is_fitted_on_views_from_the_same_place() -> None:
    """The VAE sees new views each epoch, and its cache key says where they were made."""
    contexts = [fit_context(parts_of(tiny(views=views)), torch.device("cpu")) for views in ("device", "loader")]
    assert contexts[0].key == {**contexts[1].key, "views": "device"}
    first, again = (contexts[0].views(40) for _ in range(2))
    epochs = [list(first), list(first), list(again)]
    assert [[batch.shape for batch in epoch] for epoch in epochs] == [[(40, 3, 32, 32)] * 2] * 3
    assert torch.equal(epochs[0][1], epochs[2][1])
    assert not torch.equal(epochs[0][1], epochs[1][1])


def test_a_run_that_is_resumed_has_the_views_of_one_that_is_not() -> None:
    def train(epochs: int, checkpoint: str | None = None) -> tuple[pl.Trainer, SelfSupervised]:
        parts = parts_of(tiny(views="device"))
        module = SelfSupervised(
            parts.method, parts.augmentation, epochs=2, steps_per_epoch=3, seed=0, device_views=parts.device_views
        )
        trainer = make_trainer(parts.config, max_epochs=epochs, logger=False, enable_checkpointing=False)
        trainer.fit(module, parts.loader(32), ckpt_path=checkpoint, weights_only=True)
        return trainer, module

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Hides Lightning's hints.
        whole = train(2)[1]
        train(1)[0].save_checkpoint("half.ckpt")
        resumed = train(2, "half.ckpt")[1]
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    assert not any("device_views" in name for name in whole.state_dict())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_makes_the_views(make_folder: Callable[..., Path]) -> None:
    parts = parts_of(tiny())
    assert (type(parts.device_views), parts.views_reason) == (DeviceViews, "the default with images in memory")
    strange = transform_of(v2.RandomPosterize(4))
    made, reason = choose_views(parts.config, parts.data, strange)
    text = "the views of RandomPosterize cannot be made on the device: it is not known. Make them in the data loader"
    assert (made, reason) == (None, text)
    with pytest.raises(UsageError, match=f"{text}, by --views loader"):
        choose_views(tiny(views="device"), parts.data, strange)
    with pytest.raises(UsageError, match="views is 'gpu', but expected auto or loader or device"):
        parts_of(tiny(views="gpu"))
    folder = make_folder(Path("large"), 100, {"train": 4, "test": 2})
    disk = replace(tiny(), data=f"folder:{folder}", image_size=100)
    text = f"--views device needs images in memory, but those of folder:{folder} stay on disk, because they have"
    with pytest.raises(UsageError, match=re.escape(text)):
        parts_of(replace(disk, views="device"))
    assert parts_of(disk).views_reason == "the images stay on disk"
