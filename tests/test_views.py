"""Spaces, ascents and generators: they obey the ball, start at the input, and draw noise from their own stream."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from idaa_lightly import CLAE, FGSM, IDAA, PGD, VAE, LatentSpace, PixelSpace, RandomDirection, ViewGenerator, fit_vae
from idaa_lightly.ascent import Ascent, Noise, Norm, lengths, project
from idaa_lightly.errors import FileFormatError, UsageError

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def vae() -> VAE:
    torch.manual_seed(1)
    return VAE(16, bottleneck_dim=6, width=4)


def rising(images: Tensor) -> Tensor:
    """Objective whose gradient is the image itself."""
    return images.square().sum() / 2


ASCENTS = {
    "fgsm": lambda eps, norm: FGSM(eps, norm),
    "pgd": lambda eps, norm: PGD(eps, steps=4, norm=norm),
    "pgd-random": lambda eps, norm: PGD(eps, steps=3, norm=norm, random_start=True),
    "random": lambda eps, norm: RandomDirection(eps, norm),
}


@given(
    name=st.sampled_from(sorted(ASCENTS)),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0, 10),
    scale=st.floats(1e-6, 1e6),
    latent=st.booleans(),
    autocast=st.booleans(),
)
def test_the_ball_is_obeyed(name: str, norm: Norm, eps: float, scale: float, latent: bool, autocast: bool) -> None:
    seen: list[Tensor] = []

    class Watched:
        random_start = False
        inner: Ascent = ASCENTS[name](eps, norm)

        def __call__(self, value: object, point: Tensor) -> Tensor:
            assert point.dtype == torch.float32
            seen.append(self.inner(value, point))  # type: ignore[arg-type]
            return seen[-1]

    space = LatentSpace(VAES[0]) if latent else PixelSpace()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ViewGenerator(space, Watched())(X, lambda images: scale * rising(images))
    (delta,) = seen
    assert delta.dtype == torch.float32
    size = delta.abs().amax() if norm == "linf" else lengths(delta).amax()
    bound = torch.tensor(eps)  # Rounded to float32.
    assert size <= (bound if norm == "linf" else bound * (1 + 1e-5))
    if name in ("fgsm", "random") and (norm == "linf" or eps > 1e-30):
        torch.testing.assert_close(size, bound, rtol=1e-5, atol=0)


VAES = [vae()]


@pytest.mark.parametrize("space", [PixelSpace(), LatentSpace(VAES[0])], ids=["pixels", "latent"])
def test_the_start_is_rendered_as_the_input(space: PixelSpace | LatentSpace) -> None:
    start, render = space.at(X)
    torch.testing.assert_close(render(start), X, rtol=0, atol=1e-6)
    assert space.starts_at_input


def test_fgsm_and_pgd_by_hand() -> None:
    point = torch.zeros(2, 2)
    slope = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    value = lambda delta: (delta * slope).sum()  # noqa: E731
    torch.testing.assert_close(FGSM(0.1)(value, point), torch.tensor([[0.1, -0.1], [0.0, 0.0]]))
    torch.testing.assert_close(FGSM(1.0, "l2")(value, point), torch.tensor([[0.6, -0.8], [0.0, 0.0]]))
    steps = PGD(0.3, steps=2, step_size=0.1)(value, point)
    torch.testing.assert_close(steps, torch.tensor([[0.2, -0.2], [0.0, 0.0]]))
    clipped = PGD(0.3, steps=5, step_size=0.1)(value, point)
    torch.testing.assert_close(clipped, torch.tensor([[0.3, -0.3], [0.0, 0.0]]))


def test_pgd_climbs_higher_than_fgsm_on_a_curved_objective() -> None:
    peak = torch.tensor([[0.05, 0.3]])
    value = lambda delta: -(delta - peak).square().sum()  # noqa: E731
    one, many = FGSM(0.3)(value, torch.zeros(1, 2)), PGD(0.3, steps=60, step_size=0.01)(value, torch.zeros(1, 2))
    assert value(many) > value(one)
    torch.testing.assert_close(many, peak, rtol=0, atol=0.011)


@given(eps=st.floats(0, 5), scale=st.floats(0, 100))
def test_projection(eps: float, scale: float) -> None:
    delta = scale * torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0))
    for norm in ("linf", "l2"):
        once = project(delta, eps, norm)
        torch.testing.assert_close(project(once, eps, norm), once)
        inside = delta.abs().amax((1, 2)) if norm == "linf" else lengths(delta).flatten()
        kept = inside <= eps
        assert torch.equal(once[kept], delta[kept])


def test_the_decomposition_and_the_ablation() -> None:
    space = LatentSpace(VAES[0])
    residual, reconstruction = space.decomposition(X)
    torch.testing.assert_close(residual + reconstruction, X)
    ablation = ViewGenerator(LatentSpace(VAES[0], decompose=False), FGSM(0.0))
    assert not ablation.starts_at_input
    torch.testing.assert_close(ablation(X, rising), reconstruction)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("images", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("decompose", [True, False])
def test_images_of_another_type_than_the_vae(weights: torch.dtype, images: torch.dtype, decompose: bool) -> None:
    """As of a module in Lightning's precision bf16-true, of which the VAE is no part."""
    net, x = vae().to(weights), X.to(images)
    space = LatentSpace(net, decompose=decompose)
    start, render = space.at(x)
    assert start.dtype == torch.float32
    assert render(start).dtype == images
    found = ViewGenerator(space, FGSM(0.5))(x, rising)
    assert found.dtype == images
    assert rising(found) > rising(render(start))
    assert [part.dtype for part in space.decomposition(x)] == [images] * 2


def test_the_vae_stays_frozen_in_eval_mode_and_out_of_the_state_dict() -> None:
    net = VAES[0]
    generator = IDAA(net)
    outer = nn.Module()
    outer.generator, outer.vae = generator, net
    outer.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator(X, rising)
    assert not any(part.training for part in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not [name for name in generator.state_dict() if "vae" in name or "encoder" in name]


@pytest.mark.parametrize("ascent", [RandomDirection(0.1), PGD(0.1, steps=1, random_start=True)])
def test_noise_is_ones_own_and_checkpointed(ascent: nn.Module) -> None:
    generator = ViewGenerator(PixelSpace(), ascent)  # type: ignore[arg-type]
    before = torch.get_rng_state()
    first = generator(X, rising)
    state = generator.state_dict()
    second, third = generator(X, rising), generator(X, rising)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, second)
    generator.load_state_dict(state)
    assert torch.equal(generator(X, rising), second)
    assert torch.equal(generator(X, rising), third)


def test_noise_depends_on_its_seed() -> None:
    assert not torch.equal(Noise(0).like(X), Noise(1).like(X))
    assert torch.equal(Noise(3).like(X), Noise(3).like(X))


def test_random_start_fills_the_ball_evenly() -> None:
    start = PGD(1.0, steps=1, step_size=0.0, random_start=True)(lambda delta: delta.sum(), torch.zeros(1, 100_000))
    assert start.abs().max() <= 1
    assert start.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.01)


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("make", [FGSM, RandomDirection, CLAE, lambda eps: IDAA(VAES[0], eps)])
def test_a_bad_radius(make: object, eps: float) -> None:
    with pytest.raises(UsageError, match=r"eps is .* but expected (a finite number: )?float, 0 or more"):
        make(eps)  # type: ignore[operator]


def test_other_bad_arguments() -> None:
    with pytest.raises(UsageError, match=r"norm is 'l1', but expected linf or l2"):
        FGSM(0.1, "l1")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="steps is 0, but expected int, 1 or more"):
        PGD(0.1, steps=0)
    with pytest.raises(UsageError, match=r"shape \(4,\) with a gradient, but an attack needs a scalar"):
        CLAE()(X, lambda images: images.sum((1, 2, 3)))
    with pytest.raises(UsageError, match=r"without a gradient, but an attack needs a scalar"):
        CLAE()(X, lambda images: images.detach().sum())


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e25])
def test_extreme_gradients_stay_in_the_l2_ball(scale: float) -> None:
    views = ViewGenerator(PixelSpace(), FGSM(1.0, "l2"))(X, lambda images: scale * (images * X).sum())
    torch.testing.assert_close((views - X).flatten(1).norm(dim=1), torch.ones(len(X)), rtol=1e-5, atol=0)


def test_small_gradients_of_half_precision_give_whole_steps() -> None:
    x = X.half()
    delta, _ = ViewGenerator(PixelSpace(), FGSM(1.0, "l2")).search(x, lambda images: 1e-6 * images.square().sum())
    torch.testing.assert_close(lengths(delta.float()).flatten(), torch.ones(4), rtol=2e-3, atol=0)


@pytest.mark.parametrize("shape", [(4, 10), (4, 3, 16)])
def test_inputs_that_are_no_images_keep_their_shape(shape: tuple[int, ...]) -> None:
    assert CLAE()(torch.zeros(shape), torch.sum).shape == shape


def test_a_vae_that_is_fitted_again_stays_frozen() -> None:
    space = LatentSpace(made := vae())
    fit_vae(made, [X], epochs=1)
    space.at(X)
    assert not any(part.requires_grad for part in made.parameters())


def test_a_space_without_the_flag_and_one_without_a_gradient() -> None:
    class Half:
        def at(self, x: Tensor) -> Any:
            return torch.zeros_like(x), lambda point: x / 2 + (point.detach() if self.detached else point)

        detached = False

    generator = ViewGenerator(Half(), FGSM(0.1))  # type: ignore[arg-type]
    assert not generator.starts_at_input
    torch.testing.assert_close(generator(X, rising), X / 2 + 0.1 * X.sign())
    Half.detached = True
    text = (
        r"^the view does not depend on the point that is searched, but an attack needs its gradient: compute the view"
    )
    weight = torch.ones((), requires_grad=True)
    with pytest.raises(UsageError, match=text):
        generator(X, lambda images: weight * rising(images))


def test_a_bad_step_size() -> None:
    with pytest.raises(UsageError, match="step_size is nan, but expected float, 0 or more"):
        PGD(0.1, steps=2, step_size=math.nan)


def test_a_vae_is_also_a_file() -> None:
    saved = vae()
    saved.save("vae.pt")
    expected = IDAA(saved.eval())(X, rising)
    for path in ("vae.pt", Path("vae.pt")):
        assert torch.equal(IDAA(path)(X, rising), expected)
    with pytest.raises(FileFormatError, match=r"^other.pt does not exist; expected a VAE written by VAE.save"):
        IDAA("other.pt")
    for wrong in (nn.Identity(), None):
        text = f"vae is a {type(wrong).__name__}, but expected one with encode\\(x\\) and decode\\(z\\)"
        with pytest.raises(UsageError, match=text):
            IDAA(wrong)  # type: ignore[arg-type]


def test_generators_say_what_they_are() -> None:
    latent = "LatentSpace(VAE(image_size=16, channels=3, bottleneck_dim=6, width=4), starts_at_input=True)"
    assert repr(IDAA(vae())) == f"ViewGenerator({latent}, FGSM(eps=0.15, norm='linf'))"
    assert repr(IDAA(vae()).control()) == f"ViewGenerator({latent}, RandomDirection(eps=0.15, norm='linf'))"
    pgd = "PGD(eps=0.1, norm='l2', steps=2, step_size=0.05, random_start=False)"
    text = repr(ViewGenerator(PixelSpace(), PGD(0.1, steps=2, step_size=0.05, norm="l2")))
    assert text == f"ViewGenerator(PixelSpace(), {pgd})"
