"""Half precision, eps = 0, degenerate inputs, and attacks whose gradient is infinite or NaN."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from test_matrix import AUGMENTATIONS, METHODS, batch, make_augmentation, make_method, views
from test_views import ASCENTS, VAES, X, rising
from torch import Tensor, nn

from idaa_lightly import (
    CLAE,
    AdversarialLoss,
    AffineSpace,
    DebiasedLoss,
    InfoNCELoss,
    LatentSpace,
    OUCLLoss,
    PixelSpace,
    UELLoss,
    ViewGenerator,
)
from idaa_lightly.ascent import Norm
from idaa_lightly.bench.run.loggers import MetricsCSV
from idaa_lightly.errors import UsageError
from idaa_lightly.plugin import GeneratorAugmentation
from idaa_lightly.registry import load
from idaa_lightly.training import SelfSupervised

HALF = [torch.bfloat16, torch.float16]
SEARCHED = [name for name in AUGMENTATIONS if issubclass(load("augmentation", name), GeneratorAugmentation)]
NOTHING = {
    "affine": {"degrees": 0.0, "translate": 0.0, "scale": 0.0},
    "jitter": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
}


def make(method: str, aug: str) -> SelfSupervised:
    module = SelfSupervised(make_method(method), make_augmentation(aug), epochs=2, steps_per_epoch=2, seed=0).train()
    module.method.before_step(0, *module.schedule)
    return module


def assert_finite(module: SelfSupervised, total: Tensor) -> None:
    total.backward()
    assert total.isfinite()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []


@pytest.mark.parametrize(
    ("method", "aug", "dtype"),
    [("simclr", aug, dtype) for aug in AUGMENTATIONS for dtype in HALF]
    + [
        (method, "clae" if load("method", method).start_gradient else "pgd", torch.float16)
        for method in METHODS
        if method != "simclr"
    ],
)
def test_a_step_in_half_precision(method: str, aug: str, dtype: torch.dtype) -> None:
    module = make(method, aug)
    with torch.autocast("cpu", dtype):
        output = module.losses(*batch(0, module))
    assert_finite(module, output.total)
    if aug in SEARCHED:
        changed = (output.views - batch(0, module)[0]).flatten(1).abs().amax(1)
        assert changed.min() > 1e-3
        assert module.objective.generator.fallbacks == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", [torch.float64, torch.float32, *HALF], ids=["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", SEARCHED)
def test_without_a_radius_the_view_is_the_image_to_the_bit(name: str, precision: torch.dtype) -> None:
    augmentation: Any = make_augmentation(name, **NOTHING.get(name, {"eps": 0.0}))
    generator = augmentation.generator().control() if name == "random" else augmentation.generator()
    if isinstance(generator.space, LatentSpace) and precision == torch.float64:
        generator.space.vae.double()  # type: ignore[attr-defined]
    x = views(0, torch.float64 if precision == torch.float64 else torch.float32)[0]
    with torch.autocast("cpu", precision if precision in HALF else torch.bfloat16, enabled=precision in HALF):
        made = generator(x, rising)
    assert made.dtype == x.dtype
    assert torch.equal(made, x)
    assert generator.fallbacks == 0


@pytest.mark.parametrize("name", METHODS)
def test_degenerate_inputs(name: str) -> None:
    """Equal pixels, equal samples, equal views, and a network that maps everything to zero."""
    for kind in ("constant", "duplicated", "same views", "collapsed"):
        module = make(name, "clae")
        first, *others = batch(0, module)
        images = {
            "constant": [torch.zeros_like(view) for view in (first, *others)],
            "duplicated": [view[:1].expand_as(view).clone() for view in (first, *others)],
            "same views": [first, first, *others[1:]],
        }
        if kind == "collapsed":
            for part in module.method.modules():
                if isinstance(part, nn.Linear):
                    nn.init.zeros_(part.weight)
        output = module.losses(*images.get(kind, [first, *others]))
        assert_finite(module, output.total)
        assert module.objective.generator.fallbacks == 0, kind  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("method", "aug", "options"), [("byol", "none", {}), ("byol", "clae", {"mode": "half"}), ("simclr", "metaug", {})]
)
def test_one_sample_for_a_batchnorm(method: str, aug: str, options: dict[str, Any]) -> None:
    module = SelfSupervised(
        make_method(method), make_augmentation(aug, **options), epochs=1, steps_per_epoch=1, seed=0
    ).train()
    count = 2 if options else 1
    with pytest.raises(UsageError, match=r"one sample \(input size torch.Size\(\[1, 16\]\)\), but needs 2 or more"):
        module.losses(*(view[:count] for view in views(0)))


@settings(max_examples=30)
@given(
    loss=st.sampled_from([InfoNCELoss(), UELLoss(), DebiasedLoss(), DebiasedLoss(beta=1.0), OUCLLoss(), NTXentLoss()]),
    kind=st.sampled_from(["equal", "zero", "pairs equal", "opposite"]),
    scale=st.sampled_from([1e-20, 1.0, 1e15]),
    dtype=st.sampled_from([None, *HALF]),
)
def test_degenerate_embeddings(loss: nn.Module, kind: str, scale: float, dtype: torch.dtype | None) -> None:
    one, other = scale * torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    one, other = {
        "equal": (one[:1].repeat(6, 1), one[:1].repeat(6, 1)),
        "zero": (0 * one, 0 * one),
        "pairs equal": (one, one.clone()),
        "opposite": (one, -one),
    }[kind]
    leaves = [part.clone().requires_grad_() for part in (one, other)]
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        value = loss(*leaves)
    assert value.isfinite()
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(value, leaves))


@settings(max_examples=25)
@given(
    name=st.sampled_from(["fgsm", "pgd", "pgd-random"]),
    norm=st.sampled_from(["linf", "l2"]),
    space=st.sampled_from([PixelSpace(), LatentSpace(VAES[0]), AffineSpace()]),
    bad=st.dictionaries(st.integers(0, 3), st.sampled_from([float("inf"), -float("inf"), float("nan")])),
)
def test_a_lost_attack_keeps_the_clean_view(name: str, norm: Norm, space: Any, bad: dict[int, float]) -> None:
    """The other samples get the views that they would have got without the lost ones."""
    slope = torch.randn(X.shape, generator=torch.Generator().manual_seed(5))
    broken = slope.clone()
    for row, value in bad.items():
        broken[row, 1, 2, 3] = value
    expected, generator = (ViewGenerator(space, ASCENTS[name](0.3, norm)) for _ in range(2))
    wanted = expected(X, lambda images: (images * slope).sum())
    before = X.clone()
    delta, made = generator.search(X, lambda images: (images * broken).sum())
    for row in range(len(X)):
        assert torch.equal(made[row], X[row] if row in bad else wanted[row])
    assert not delta[[*bad]].any()
    assert (generator.fallbacks, expected.fallbacks) == (len(bad), 0)
    assert torch.equal(X, before)


def test_an_overflow_in_float16_is_no_attack_but_a_finite_loss() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 8))
    for dtype, lost in ((torch.float16, len(X)), (torch.bfloat16, 0)):
        criterion = AdversarialLoss(lambda a, b: 1e7 * NTXentLoss()(a, b), CLAE())
        with torch.autocast("cpu", dtype):
            output = criterion(network, X, X + 0.1)
        assert output.total.isfinite()
        assert criterion.generator.fallbacks == lost  # type: ignore[union-attr]
        assert torch.equal(output.views, X) == bool(lost)


class Overflow(torch.autograd.Function):
    """Identity with an infinite gradient for the first sample."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        return slope.index_fill(0, torch.tensor([0]), float("inf"))


@pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec)")
def test_lost_attacks_are_counted_in_the_log() -> None:
    """The counter is logged once per epoch. The gradient that trains the network stays finite."""
    method: Any = make_method("simclr")

    class Overflowing(type(method)):  # type: ignore[misc]
        def loss(self, anchor: Any, positive: Any, *others: Any) -> Tensor:
            loss: Tensor = super().loss(anchor, positive if anchor.requires_grad else Overflow.apply(positive))
            return loss

    method.__class__ = Overflowing
    module = SelfSupervised(method, make_augmentation("clae"), epochs=2, steps_per_epoch=2, seed=0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=MetricsCSV(Path("metrics.csv")),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    loader = torch.utils.data.DataLoader([([*sample], 0) for sample in zip(*views(0), strict=True)] * 2, 8)
    trainer.fit(module, loader)
    with Path("metrics.csv").open() as file:
        counts = [row["attack/fallbacks"] for row in csv.DictReader(file) if row["attack/fallbacks"]]
    assert counts == ["16.0", "16.0"]
