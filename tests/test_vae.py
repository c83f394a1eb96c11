"""The VAE: shapes, the loss by hand, training and files."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightly.data import LightlyDataset
from lightly.transforms import SimCLRTransform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from idaa_lightly import VAE, fit_vae
from idaa_lightly.errors import DataError, FileFormatError, NonFiniteError, UsageError
from idaa_lightly.vae import vae_loss
from idaa_lightly.vae_cache import cached_vae


@pytest.mark.parametrize(("size", "side", "channels"), [(16, 8, 3), (28, 7, 1), (32, 8, 3), (64, 8, 3), (224, 7, 3)])
def test_shapes(size: int, side: int, channels: int) -> None:
    vae = VAE(size, channels, bottleneck_dim=5, width=16)
    mean, logvar = vae.encode(torch.randn(2, channels, size, size))
    assert mean.shape == logvar.shape == (2, 5)
    assert vae.decode(mean).shape == (2, channels, size, size)
    assert vae.decoder[1].unflattened_size == (16, side, side)


@pytest.mark.parametrize(("size", "widths"), [(32, [64, 128]), (224, [8, 16, 32, 64, 128])])
def test_the_papers_layers(size: int, widths: list[int]) -> None:
    strided = [part for part in VAE(size).encoder if isinstance(part, nn.Conv2d)]
    assert [(part.out_channels, part.kernel_size, part.stride) for part in strided] == [
        (width, (4, 4), (2, 2)) for width in widths
    ]


def test_loss_by_hand() -> None:
    class Fixed:
        def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2)

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return torch.full((1, 3, 2, 2), 2.0)

    loss, error, divergence = vae_loss(Fixed(), torch.zeros(1, 3, 2, 2), beta=0.5)  # type: ignore[arg-type]
    assert error == 4.0
    assert divergence.item() == pytest.approx((1 + 4) / 2 / (1 * 3 * 2))
    assert loss.item() == pytest.approx(4 + 0.5 * 5 / 12)


def test_fitting_lowers_the_error_repeats_and_leaves_the_random_stream_alone() -> None:
    batches = [
        torch.randn(16, 3, 1, 1, generator=torch.Generator().manual_seed(i)).expand(-1, -1, 16, 16) for i in (1, 2)
    ]
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        vae = VAE(16, bottleneck_dim=8, width=8)
        before = torch.get_rng_state()
        epochs: list[int] = []
        history = fit_vae(vae, batches, epochs=30, lr=5e-3, on_epoch=lambda epoch, _, seen=epochs: seen.append(epoch))
        assert torch.equal(before, torch.get_rng_state())
        assert epochs == list(range(1, 31))
        assert history[-1]["mse"] < 0.5 * history[0]["mse"]
        assert not vae.training
        results.append(vae.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_beta_presses_on_the_divergence() -> None:
    batches = [torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))]
    ends = []
    for beta in (0.0, 10.0):
        torch.manual_seed(0)
        ends.append(fit_vae(VAE(16, bottleneck_dim=8, width=8), batches, epochs=15, beta=beta)[-1]["kl"])
    assert ends[1] < 0.5 * ends[0]


class Views(Dataset[Any]):
    """Data set of two views, a label and a name per image, like a LightlyDataset."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return [self.images[index], -self.images[index]], index, f"{index}.png"


def test_batches_come_in_many_forms(folder: Path) -> None:
    """The first view is fitted, whatever stands beside it, and a generator serves all epochs."""
    images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batches = images.split(6)
    forms: dict[str, Any] = {
        "tensors": list(batches),
        "images and labels": DataLoader(TensorDataset(images, torch.arange(12)), 6),
        "views, labels and names": DataLoader(Views(images), 6),
        "a generator": (batch for batch in batches),
        "a generator of tuples": (((batch, -batch), torch.zeros(6)) for batch in batches),
    }
    histories = {}
    for name, form in forms.items():
        torch.manual_seed(0)
        histories[name] = fit_vae(VAE(16, bottleneck_dim=4, width=4), form, epochs=2)
    assert all(history == histories["tensors"] for history in histories.values()), histories

    data = LightlyDataset(str(folder / "train"), transform=SimCLRTransform(16))
    vae = VAE(16, bottleneck_dim=4, width=4)
    assert len(fit_vae(vae, DataLoader(data, 12), epochs=1)) == 1


@pytest.mark.parametrize("images", [torch.bfloat16, torch.float64])
def test_images_of_another_type(images: torch.dtype) -> None:
    (found,) = fit_vae(VAE(16, bottleneck_dim=4, width=4), [torch.randn(8, 3, 16, 16).to(images)], epochs=1)
    assert 0 < found["loss"] < 10


def test_a_vae_that_is_worse_than_the_mean_image_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """The first epoch's error is above 1, since the last BatchNorm gives images of unit variance."""
    batches = [torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))]
    fit_vae(VAE(16, bottleneck_dim=4, width=4), batches, epochs=1)
    (message,) = caplog.messages
    assert re.fullmatch(
        r"Warning: the VAE's mean squared error is [12]\.\d\d after epoch 1, .*: fit it for more .*", message
    )
    colours = batches[0][..., :1, :1].expand_as(batches[0])
    fit_vae(vae := VAE(16, bottleneck_dim=4, width=4), [colours], epochs=60, lr=0.01)
    assert vae.fitted["mse"] < vae.fitted["variance"]
    assert len(caplog.messages) == 1


def test_fitting_refuses() -> None:
    text = r"fit_vae got a batch with {}, but expected normalised images \(N, C, H, W\), .* ends in a normalisation"
    for batch, got in (
        ({"images": torch.zeros(2, 3, 16, 16)}, "dict"),
        ([], "list"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"torch.uint8 of shape \(2, 3, 16, 16\)"),
        (torch.zeros(3, 16, 16), r"torch.float32 of shape \(3, 16, 16\)"),
    ):
        with pytest.raises(DataError, match=text.format(got)):
            fit_vae(VAE(16, width=4), [batch], epochs=1)
    with pytest.raises(DataError, match="got no batches: pass a list or a DataLoader"):
        fit_vae(VAE(16, width=4), iter([]), epochs=1)
    with pytest.raises(UsageError, match="epochs is 0"):
        fit_vae(VAE(16, width=4), [], epochs=0)
    with pytest.raises(NonFiniteError, match="the VAE's loss is nan in epoch 1"):
        fit_vae(VAE(16, width=4), [torch.full((4, 3, 16, 16), torch.nan)], epochs=1)


def test_saved_and_loaded(tmp_path: Path) -> None:
    vae = VAE(16, 1, bottleneck_dim=3, width=4).eval()
    history = fit_vae(vae, [torch.randn(4, 1, 16, 16)], epochs=2)
    vae.save(tmp_path / "vae.pt")
    again = VAE.load(tmp_path / "vae.pt")
    z = torch.randn(2, 3)
    assert torch.equal(again.decode(z), vae.decode(z))
    assert again.config == {"image_size": 16, "channels": 1, "bottleneck_dim": 3, "width": 4}
    assert again.fitted == vae.fitted
    assert again.fitted.items() >= {"epochs": 2, **history[-1]}.items()
    assert [path.name for path in tmp_path.iterdir()] == ["vae.pt"]


def test_loading_leaves_the_global_random_stream_alone(tmp_path: Path) -> None:
    VAE(16, width=4).save(tmp_path / "vae.pt")
    before = torch.get_rng_state()
    VAE.load(tmp_path / "vae.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_operations_of_fitting_are_counted() -> None:
    vae = VAE(16, 1, bottleneck_dim=3, width=4)
    with FlopCounterMode(display=False) as counter:
        vae_loss(vae, torch.randn(2, 1, 16, 16), 0.1)[0].backward()
    fit_vae(vae, [torch.randn(4, 1, 16, 16), torch.randn(3, 1, 16, 16)], epochs=5)
    assert vae.fitted["flops"] == counter.get_total_flops() / 2 * 7 * 5


def test_the_error_of_the_mean_image(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    images = 0.5 + 0.01 * torch.randn(5, 3, 16, 16)  # not normalised
    vae = VAE(16, bottleneck_dim=3, width=4)
    fit_vae(vae, [images[:3], images[3:]], epochs=1)
    assert vae.fitted["variance"] == pytest.approx(float(images.var(0, correction=0).mean()), rel=1e-3)
    assert "but the mean image has 7.78e-05: fit it for more epochs, and check that the images are" in caplog.text


def test_a_file_that_is_no_vae(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("__import__('pathlib').Path('ran').touch()",)

    cases = {"text.pt": b"no", "empty.pt": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    torch.save(Evil(), tmp_path / "evil.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    for name in (*cases, "evil.pt", "other.pt", "missing.pt"):
        with pytest.raises(FileFormatError, match=rf"{name} .*VAE"):
            VAE.load(tmp_path / name)
    assert not Path("ran").exists()


@pytest.mark.parametrize(("size", "width"), [(7, 128), (0, 128), (33, 128), (224, 8)])
def test_sizes_that_cannot_be_built(size: int, width: int) -> None:
    with pytest.raises(UsageError, match=f"images of {size} px with width {width} cannot be built"):
        VAE(size, width=width)


def test_images_of_another_shape() -> None:
    with pytest.raises(DataError, match=r"for images of shape \(N, 3, 32, 32\), but got \(2, 3, 16, 16\)"):
        VAE(32, width=4).encode(torch.zeros(2, 3, 16, 16))


def test_the_cache_fits_once_for_all_who_want_the_same(tmp_path: Path) -> None:
    fitted: list[int] = []

    def fit() -> VAE:
        fitted.append(1)
        return VAE(16, bottleneck_dim=3, width=4)

    threads = [threading.Thread(target=cached_vae, args=({"beta": 0.1}, tmp_path, fit)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fitted) == 1
    cached_vae({"beta": 1.0}, tmp_path, fit)
    assert len(fitted) == 2
    keys = [json.loads(path.read_text())["key"] for path in tmp_path.glob("*.json")]
    assert sorted(key["beta"] for key in keys) == [0.1, 1.0]
