"""Hard views: the pair by hand, no trace of the passes that select, their cost, and the views that are drawn."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_matrix import NORMALIZE, make_augmentation, make_method
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from idaa_lightly.backbones import create_backbone
from idaa_lightly.errors import UsageError
from idaa_lightly.registry import load


class Directions(nn.Module):
    """Method whose embedding is the mean of each channel, and which keeps the sizes of all images it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return images.mean((2, 3))

    def loss(self, *outputs: Tensor) -> Tensor:
        return torch.stack(outputs).requires_grad_()  # type: ignore[return-value]


def images(angles: list[float], size: int = 4) -> Tensor:
    """Return an image per angle, in degrees, with two channels whose means point into its direction."""
    radians = torch.tensor(angles).deg2rad()
    return 3 * torch.stack([radians.cos(), radians.sin()], 1)[:, :, None, None].expand(-1, -1, size, size)


VIEWS = [images(angles) for angles in ([0, 0], [10, 80], [25, 20], [5, 130])]  # four views of two samples


@pytest.mark.parametrize(("select_at", "size"), [("full", 4), ("half", 2)])
def test_the_hardest_pair_by_hand(select_at: str, size: int) -> None:
    """The first and the third view of the first sample are 25° apart, the first and the last of the second 130°."""
    method: Any = Directions()
    further = images([7, 7], size=2)
    output = make_hvp(select_at=select_at)(method, *VIEWS, further)
    first, second, last = output.total
    torch.testing.assert_close(first, images([0, 0]).mean((2, 3)))
    torch.testing.assert_close(second, images([25, 130]).mean((2, 3)))
    torch.testing.assert_close(last, further.mean((2, 3)))
    assert method.seen == [(8, 2, size, size), (2, 2, 4, 4), (2, 2, 4, 4), (2, 2, 2, 2)]


def make_hvp(**options: Any) -> Any:
    augmentation = load("augmentation", "hvp")(**options)
    augmentation.fit(SimpleNamespace(channels=2, image_size=4))
    return augmentation.loss(Directions())


def test_a_random_pair() -> None:
    """Every pair is chosen sooner or later. Nothing is embedded for it, and no other random number is drawn."""
    method: Any = Directions()
    loss, state, chosen = make_hvp(random=True), torch.get_rng_state(), set()
    for _ in range(40):
        one, other = loss(method, *VIEWS).total.detach()
        chosen.add((round(float(one[1, 0]), 3), round(float(other[1, 0]), 3)))
    assert len(chosen) == 6
    assert {shape[0] for shape in method.seen} == {2}
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["byol", "moco", "nnclr"])
@pytest.mark.parametrize("select_at", ["full", "half"])
def test_the_selection_leaves_no_trace(name: str, select_at: str) -> None:
    """Running statistics, queues and the random state are those of a step on the chosen pair alone."""
    method = make_method(name).train()
    method.backbone = nn.Sequential(method.backbone, nn.Dropout())
    loss: Any = make_augmentation("hvp", select_at=select_at).loss(method)
    views = list(torch.randn(4, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    plain, embedded = copy.deepcopy(method), []
    hook = method.register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0]))
    state = torch.get_rng_state()
    output = loss(method, *views)
    after = torch.get_rng_state()
    hook.remove()
    torch.set_rng_state(state)
    selected, *pair = embedded
    assert len(selected) == 32
    assert torch.equal(plain.loss(*[plain(view) for view in pair]), output.total)
    assert torch.equal(torch.get_rng_state(), after)
    for (key, found), expected in zip(method.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected), key
    assert all(parameter.grad is None for parameter in method.parameters())


def test_operations() -> None:
    """A forward pass of four views costs 4 of the 6 units of a step, and a quarter of that at half resolution."""
    views, counts = list(torch.rand(4, 4, 3, 32, 32)), {}
    for name, options in (("none", {}), ("full", {}), ("half", {"select_at": "half"}), ("random", {"random": True})):
        method = load("method", "simclr")(*create_backbone("resnet9-w8", 32))
        augmentation = make_augmentation("none" if name == "none" else "hvp", **options)
        loss, given = augmentation.loss(method), views[:2] if name == "none" else views
        with FlopCounterMode(display=False) as counter:
            loss(method, *given).total.backward()
        counts[name] = counter.get_total_flops()
    assert counts["random"] == counts["none"]
    assert counts["full"] / counts["none"] == pytest.approx(10 / 6, rel=0.02)
    assert counts["half"] / counts["none"] == pytest.approx(7 / 6, rel=0.02)


@pytest.mark.parametrize("name", ["simclr", "dino"])
def test_the_views_of_a_method_are_drawn_in_turns(name: str) -> None:
    transform = make_method(name).transform(16, NORMALIZE)
    drawn = make_augmentation("hvp", views=5).transform(transform).transforms
    first, second, *further = transform.transforms
    assert drawn == [first, second, first, second, first, *further]
    assert len(further) == (2 if name == "dino" else 0)


def test_a_backbone_of_one_size_is_refused_at_half_resolution() -> None:
    method = load("method", "simclr")(*create_backbone("vit_b_16", 32))
    text = "select_at is half, but the backbone does not work with images of 8 px (Wrong image height! Expected 32 but"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}.*: take select_at=full or another backbone$"):
        make_augmentation("hvp", select_at="half").loss(method)


def test_controls() -> None:
    augmentation, method = load("augmentation", "hvp"), load("method", "simclr")
    for options, names in (
        ({}, ["random pair", "hardest pair at half resolution"]),
        ({"select_at": "half"}, ["random pair", "hardest pair at full resolution"]),
        ({"random": True}, []),
    ):
        assert [control.name for control in augmentation(**options).controls(method)] == names
