"""Colour, affine and jitter spaces: starts, points checked by hand, gradients and searches."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.transforms import functional as TF

from idaa_lightly import FGSM, PGD, AffineSpace, ColorSpace, JitterSpace, ViewGenerator
from idaa_lightly.ascent import Ascent, Norm, project
from idaa_lightly.errors import UsageError
from idaa_lightly.spaces import Pixels, Space

NORMALIZE = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
PIXELS = Pixels(NORMALIZE)
SPACES = {"color": ColorSpace(NORMALIZE), "affine": AffineSpace(), "jitter": JitterSpace(NORMALIZE)}
all_spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(size: int = 16) -> Tensor:
    grid = 0.2 + 0.6 * draw(3, 3, 4, 4)  # No sharp edges, and inside [0, 1].
    return PIXELS.normalized(nn.functional.interpolate(grid, (size, size), mode="bilinear", align_corners=True))


IMAGES = {name: torch.full((2, 3, 8, 8), grey).double() for name, grey in {"black": 0, "grey": 0.5, "white": 1}.items()}
IMAGES |= {"random": draw(2, 3, 8, 8)}


def test_pixels_by_hand() -> None:
    pixels, x = Pixels({"mean": [0.5], "std": [0.25]}), torch.tensor([[[[2.0, -2.0, 1.0]]]])
    assert torch.equal(pixels.from_normalized(x), torch.tensor([[[[1.0, 0.0, 0.75]]]]))
    assert torch.equal(pixels.normalized(pixels.from_normalized(x)), x)


@pytest.mark.parametrize("pixels", IMAGES.values(), ids=IMAGES.keys())
@all_spaces
def test_the_start_is_rendered_as_the_input_and_every_gradient_is_finite(space: Space, pixels: Tensor) -> None:
    assert space.starts_at_input
    for dtype, atol in ((torch.float64, 1e-7 if isinstance(space, JitterSpace) else 1e-12), (torch.float32, 1e-5)):
        x = PIXELS.normalized(pixels).to(dtype)
        start, render = space.at(x)
        torch.testing.assert_close(render(start), x, rtol=0, atol=atol)
        for offset in (0.0, 0.5, -1.0):
            point = (start + offset).requires_grad_()
            (gradient,) = torch.autograd.grad((render(point) * draw(*x.shape)).sum(), point)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@all_spaces
def test_the_start_is_the_input_in_half_precision(space: Space, dtype: torch.dtype) -> None:
    x = smooth().to(dtype)
    start, render = space.at(x)
    assert render(start).dtype == dtype
    torch.testing.assert_close(render(start), x, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@all_spaces
def test_autocast_changes_nothing(space: Space) -> None:
    start, render = space.at(smooth().float())
    expected = render(start), render(start + 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        start, render = space.at(smooth().float())
        rendered = render(start), render(start + 0.5)
    torch.testing.assert_close(rendered, expected, rtol=0, atol=1e-5)


def test_a_colour_mixing_by_hand() -> None:
    """Rows are red, green and blue. Each lists weights of the other two channels, which are halved and at least 0."""
    x = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1)
    point = torch.tensor([[[0.2, 0.0], [-0.4, 0.5], [1.0, 1.0]]])
    expected = torch.tensor([0.1 + 0.1 * 0.4, 0.5 + 0.25 * 0.4, 0.5 * 0.1 + 0.5 * 0.5])
    torch.testing.assert_close(ColorSpace(PLAIN).at(x)[1](point).flatten(), expected)
    grey = torch.full((1, 3, 2, 2), 0.3)
    assert torch.equal(ColorSpace(PLAIN).at(grey)[1](point), grey)


@given(eps=st.floats(0, 1), norm=st.sampled_from(["linf", "l2"]), seed=st.integers(0, 99))
def test_a_ball_bounds_the_share_of_other_colours(eps: float, norm: Norm, seed: int) -> None:
    primaries = torch.eye(3, dtype=torch.float64).view(1, 3, 1, 3)  # a red, a green and a blue pixel
    _, render = ColorSpace(NORMALIZE).at(PIXELS.normalized(primaries))
    alpha = PIXELS.from_normalized(render(project(4 * draw(1, 3, 2, seed=seed) - 2, eps, norm)))[0, :, 0]
    assert (alpha >= -1e-12).all()
    torch.testing.assert_close(alpha.sum(1), torch.ones(3, dtype=torch.float64))
    assert (1 - alpha.diagonal() <= eps + 1e-12).all()


def test_an_affine_map_by_hand() -> None:
    """Positive values move right and down, turn clockwise and enlarge. Shifts are fractions of the width or height."""
    x, point = draw(5, 3, 9, 13), torch.zeros(5, 4, dtype=torch.float64)
    point[range(5), [1, 2, 0, 0, 3]] = torch.tensor([4 / 13, -2 / 9, 1.0, -1.0, 1.0], dtype=torch.float64)
    right, up, clockwise, anticlockwise, larger = AffineSpace(degrees=90, translate=0.5, scale=0.5).at(x)[1](point)
    torch.testing.assert_close(right[..., 2:], x[0, ..., :-2])
    torch.testing.assert_close(right[..., :2], x[0, ..., [2, 1]])  # The border is reflected.
    torch.testing.assert_close(up[:, :-1], x[1, :, 1:])
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)  # kornia before 0.9 has π in float32.
    close(clockwise[..., 2:11], torch.rot90(x[2, ..., 2:11], -1, (1, 2)))  # Compare the square in the middle.
    close(anticlockwise[..., 2:11], torch.rot90(x[3, ..., 2:11], 1, (1, 2)))
    torch.testing.assert_close(larger[:, 1::3, 3:10:3], x[4, :, 2:7:2, 4:9:2])  # Scale 1.5 moves distance 2 to 3.


@pytest.mark.parametrize("unit", [-1.0, 0.5, 1.0])
@pytest.mark.parametrize("index", range(4))
def test_a_jitter_is_torchvisions(index: int, unit: float) -> None:
    """Agreement is to 1e-4, because torchvision weighs red in grey by 0.2989, not 0.299, and has hue in float32."""
    x, bounds = draw(3, 3, 8, 8), {"brightness": 0.5, "contrast": 0.4, "saturation": 0.3, "hue": 0.2}
    name, bound = list(bounds.items())[index]
    expected = getattr(TF, f"adjust_{name}")(x, unit * bound + (name != "hue"))
    rendered = JitterSpace(PLAIN, **bounds).at(x)[1](unit * torch.eye(4, dtype=torch.float64)[index].expand(3, 4))
    torch.testing.assert_close(rendered, expected, rtol=0, atol=1e-4)


@given(seed=st.integers(0, 99), image=st.sampled_from(sorted(IMAGES)))
def test_jitters_come_in_order_and_are_clamped(seed: int, image: str) -> None:
    x, point = IMAGES[image], 2 * draw(2, 4, seed=seed) - 1
    spaces = [JitterSpace(NORMALIZE, brightness=0.9, contrast=0.8, saturation=0.7, hue=hue) for hue in (0, 0.5)]
    without_hue, result = (PIXELS.from_normalized(space.at(PIXELS.normalized(x))[1](point)) for space in spaces)
    b, c, s = (1 + point[:, :3] * torch.tensor([0.9, 0.8, 0.7])).T.reshape(3, 2, 1, 1, 1)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    x = (b * x).clamp(0, 1)
    x = (c * x + (1 - c) * (weights * x).sum(1, keepdim=True).mean((2, 3), keepdim=True)).clamp(0, 1)
    x = (s * x + (1 - s) * (weights * x).sum(1, keepdim=True)).clamp(0, 1)
    torch.testing.assert_close(without_hue, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(result.amax(1), x.amax(1), rtol=0, atol=1e-7)  # A hue shift keeps the largest
    torch.testing.assert_close(result.amin(1), x.amin(1), rtol=0, atol=1e-7)  # and the smallest channel.


@all_spaces
def test_gradients_are_finite_differences_and_each_samples_own(space: Space) -> None:
    start, render = space.at(smooth(size=6))
    point = (0.1 + 0.4 * draw(*start.shape)).requires_grad_()  # Neither clamped nor on the pixel grid.
    assert torch.autograd.gradcheck(render, point)
    (gradient,) = torch.autograd.grad(render(point)[1].square().sum(), point)
    assert (gradient[1] != 0).all()
    assert not gradient[[0, 2]].any()


@pytest.mark.parametrize(
    "ascent", [FGSM(0.3), FGSM(0.3, "l2"), PGD(0.3, steps=5), PGD(0.3, steps=9, random_start=True)]
)
@all_spaces
def test_a_search_climbs_inside_its_ball(space: Space, ascent: Ascent) -> None:
    seen, x, weights = [], smooth(), smooth().flip(0, 2)
    watched = lambda value, point: seen.append(ascent(value, point)) or seen[-1]  # noqa: E731
    value = lambda images: (images * weights).sum((1, 2, 3))  # noqa: E731
    views = ViewGenerator(space, watched)(x, lambda images: value(images).sum())
    assert (value(views) > value(x) + 1).all()
    sizes = seen[0].flatten(1).norm(dim=1, p=math.inf if ascent.norm == "linf" else 2)
    torch.testing.assert_close(sizes, torch.full_like(sizes, 0.3))


def test_colours_below_zero_are_not_mixed_and_find_back() -> None:
    x, slopes = smooth(), []
    start, render = ColorSpace(NORMALIZE).at(x)
    for offset in (0.0, -0.3):
        point = (start + offset).requires_grad_()
        views = render(point)
        assert torch.equal(views, x)
        slopes += torch.autograd.grad((views * smooth().flip(0, 2)).sum(), point)
    assert (slopes[0] != 0).all()
    assert torch.equal(*slopes)


def test_one_step_finds_the_best_mixing() -> None:
    space, x, weights = ColorSpace(NORMALIZE), smooth(), draw(3, 3, 16, 16) - 0.5  # linear: FGSM is optimal
    value = lambda images: (images * weights).sum((1, 2, 3))  # noqa: E731
    best = value(ViewGenerator(space, FGSM(0.5))(x, lambda images: value(images).sum()))
    others = torch.stack([value(space.at(x)[1](draw(3, 3, 2, seed=seed) - 0.5)) for seed in range(50)])
    assert (best > torch.stack([value(x), *others])).all()


@pytest.mark.parametrize("name", ["affine", "jitter"])
def test_a_search_finds_a_known_point(name: str) -> None:
    start, render = SPACES[name].at(smooth())
    known = torch.tensor([[0.5, -0.4, 0.3, -0.6]], dtype=torch.float64).expand(3, 4)
    found = PGD(1.0, steps=80, step_size=0.02)(lambda point: -(render(point) - render(known)).square().sum(), start)
    torch.testing.assert_close(found, known, rtol=0, atol=0.1)


MOST = {"degrees": 180, "translate": 1, "hue": 0.5}
MOST |= dict.fromkeys(["scale", "brightness", "contrast", "saturation"], 0.99)


@pytest.mark.parametrize("name", MOST)
def test_bad_bounds(name: str) -> None:
    for value in (-0.1, 200, math.nan):
        with pytest.raises(
            UsageError, match=f"^{re.escape(f'{name} is {value}, but expected float, 0 to {MOST[name]}')}$"
        ):
            AffineSpace(**{name: value}) if name in ("degrees", "translate", "scale") else JitterSpace(
                PLAIN, **{name: value}
            )
