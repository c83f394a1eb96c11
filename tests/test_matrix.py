"""Every method and every augmentation, in a few real training steps of a narrow network.

CI runs every method × {none, idaa} and every augmentation × {simclr, byol}. `make matrix` runs all allowed pairs.
"""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightly.loss import DCLWLoss
from lightly.loss.directclr_loss import DirectCLRLoss
from lightly.loss.visreg_loss import VISRegLoss
from lightly.transforms import RandomSolarization
from PIL import Image
from torch import Tensor, nn

from idaa_lightly import CLAE, IDAA, VAE, AdversarialLoss, dual_batchnorm
from idaa_lightly.ascent import Noise
from idaa_lightly.backbones import create_backbone
from idaa_lightly.batchnorm import adversarial_batchnorm
from idaa_lightly.errors import NonFiniteError, UsageError
from idaa_lightly.options import options_of
from idaa_lightly.outputs import detached, embedding_of
from idaa_lightly.plugin import Augmentation, FitContext, GeneratorAugmentation, Method
from idaa_lightly.registry import entries, load
from idaa_lightly.training import SelfSupervised
from idaa_lightly.variants import ThirdViewLoss
from idaa_lightly_plugins.augmentations.hvp import HardPairLoss
from idaa_lightly_plugins.methods.dcl import mises_fisher_weights

NORMALIZE = {"mean": [0.5] * 3, "std": [0.25] * 3}
OURS = "idaa-lightly"
METHODS = [entry.name for entry in entries("method") if entry.distribution == OURS]
AUGMENTATIONS = [entry.name for entry in entries("augmentation") if entry.distribution == OURS]
ALLOWED = [
    (method, aug)
    for method in METHODS
    for aug in AUGMENTATIONS
    if not load("augmentation", aug).refuses(load("method", method))
]
SMALL = {
    "projection_dim": 16, "prediction_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8, "prototypes": 8, "queue": 32,
    "bank": 32, "local_views": 2, "width": 4, "groups": 8, "slices": 16, "whitened_dim": 3, "whitening_size": 8,
}  # fmt: skip


def small(plugin: type) -> dict[str, int]:
    return {name: size for name, size in SMALL.items() if name in options_of(plugin)}


def make_method(name: str, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    backbone, num_features = create_backbone("resnet9-w4", 16)
    plugin = load("method", name)
    method: Method = plugin(backbone, num_features, **small(plugin))
    return method


def make_augmentation(name: str, **options: Any) -> Augmentation:
    plugin = load("augmentation", name)
    if "vae" in options_of(plugin):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            VAE(16, bottleneck_dim=6, width=4).save("vae.pt")
        options["vae"] = "vae.pt"
    else:
        options = small(plugin) | options
    augmentation: Augmentation = plugin(**options)
    augmentation.fit(
        FitContext(
            views=lambda size: [],
            key={},
            images=8,
            image_size=16,
            channels=3,
            normalize=NORMALIZE,
            epochs=2,
            seed=0,
            device=torch.device("cpu"),
            cache_dir=Path(),
            progress=lambda title, total: print,
        )
    )
    return augmentation


def views(seed: int, dtype: torch.dtype = torch.float32, local: int = 0) -> list[Tensor]:
    """Return two views of the same 8 samples, followed by `local` smaller views."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.rand(8, 3, 16, 16, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(2, 8, 3, 16, 16, generator=generator, dtype=torch.float64)
    whole = [((samples + part).clamp(0, 1) - 0.5) / 0.25 for part in noise]
    return [view.to(dtype) for view in [*whole, *[whole[0][..., :8, part : part + 8] for part in range(local)]]]


def batch(seed: int, module: SelfSupervised) -> list[Tensor]:
    """Return the views that a module trains on: two, as many more as its objective asks for, and local ones."""
    x0, x1, *local = views(seed, local=2 * module.method.multi_crop)
    more = {ThirdViewLoss: [x1.flip(3)], HardPairLoss: [x0.flip(3), x1.flip(3)]}.get(type(module.objective), [])
    return [x0, x1, *more, *local]


def steps(module: SelfSupervised, optimizer: Any, scheduler: Any, start: int, count: int) -> list[float]:
    losses = []
    for step in range(start, start + count):
        module.method.before_step(step, *module.schedule)
        loss = module.objective(module.method, *batch(step, module)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def fresh(method: str, aug: str, seed: int, **options: Any) -> tuple[SelfSupervised, Any, Any]:
    module = SelfSupervised(
        make_method(method, seed), make_augmentation(aug, **options), epochs=2, steps_per_epoch=2, seed=0
    ).train()
    configured = module.configure_optimizers()
    return module, configured["optimizer"], configured["lr_scheduler"]["scheduler"]


IN_CI = {(method, aug) for method in METHODS for aug in ("none", "idaa")} | {
    (method, aug) for method in ("simclr", "byol") for aug in AUGMENTATIONS
}


@pytest.mark.parametrize(
    ("method", "aug"), [pytest.param(*pair, marks=[] if pair in IN_CI else pytest.mark.matrix) for pair in ALLOWED]
)
def test_trains_and_resumes_to_the_bit(method: str, aug: str) -> None:
    check_training(method, aug)


@pytest.mark.parametrize(
    "options",
    [{"place": "replace"}, {"search": "network"}, {"search": "network", "place": "replace", "mode": "shared"}],
)
def test_other_forms_of_idaa_train_and_resume_to_the_bit(options: dict[str, Any]) -> None:
    for method in ("simclr", "byol"):
        check_training(method, "idaa", **options)


def check_training(method: str, aug: str, **options: Any) -> None:
    """Train for two steps, save, and train for two more. The latter are repeated from the saved state."""
    whole = fresh(method, aug, 0, **options)
    before = {name: parameter.detach().clone() for name, parameter in whole[0].named_parameters()}
    losses = steps(*whole, 0, 2)
    torch.save([part.state_dict() for part in whole], "half.pt")
    losses += steps(*whole, 2, 2)
    assert torch.tensor(losses).isfinite().all()
    idle = [
        name
        for name, parameter in whole[0].named_parameters()
        if torch.equal(before[name], parameter) and not name.endswith(("original0", ".0.bias"))
    ]  # `original0` holds the fixed weight norms of DINO's last layer, and an instance norm removes viewmaker's biases.
    assert idle == []
    resumed = fresh(method, aug, 1, **options)
    for part, state in zip(resumed, torch.load("half.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    assert steps(*resumed, 2, 2) == losses[2:]
    for name, value in whole[0].state_dict().items():
        other = resumed[0].state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name


@pytest.mark.parametrize("name", METHODS)
def test_the_attacks_start_gradient_is_not_zero(name: str) -> None:
    """The attack has a direction at its start, between an image and itself. Checked in float64 on the whole method.

    The methods that have none say so, and refuse searches that start there.
    """
    method = dual_batchnorm(make_method(name).double())
    method.before_step(0, 1, 1)
    x, *_ = views(0, torch.float64)
    x.requires_grad_()
    with adversarial_batchnorm(method):
        output = method(x)
        (gradient,) = torch.autograd.grad(method.loss(detached(output), output), x)  # type: ignore[operator]
    lengths = gradient.flatten(1).norm(dim=1)
    assert lengths.min() > 1e-8 if method.start_gradient else lengths.max() < 1e-12
    assert ((name, "clae") in ALLOWED) == method.start_gradient
    assert {(name, "pgd"), (name, "random"), (name, "third")} <= set(ALLOWED)


def test_options_cannot_make_a_search_start_where_there_is_no_gradient() -> None:
    method = make_method("wmse")
    assert make_augmentation("pgd").loss(method)
    with pytest.raises(
        UsageError, match="with these options, its search starts at the view itself, where the gradient"
    ):
        make_augmentation("pgd", random_start=False).loss(method)
    make_augmentation("pgd", random_start=False, random=True).loss(method)
    with pytest.raises(UsageError, match="random is false, which is idaa itself: choose --aug idaa"):
        make_augmentation("random", random=False)


@pytest.mark.parametrize("name", METHODS)
def test_the_attack_leaves_no_trace_in_the_method(name: str) -> None:
    """Queues, memory banks, momentum networks, centres, prototypes and running statistics stay unchanged."""
    method = dual_batchnorm(make_method(name)).train()
    everything = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    state = {key: value.clone() for key, value in everything.items()}
    criterion = AdversarialLoss(method.loss, IDAA(VAE(16, bottleneck_dim=6, width=4)))  # type: ignore[arg-type]
    others = views(0, local=2 * method.multi_crop)[2:]
    criterion._attack(method, views(0)[0], [detached(method(view)) for view in others] if others else [])
    after = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    running = ("running_mean", "running_var", "num_batches_tracked")  # The clean pass of the local views changes them.
    assert [
        key for key in state if not torch.equal(state[key], after[key]) and not (others and key.endswith(running))
    ] == []
    assert all(parameter.grad is None for parameter in method.parameters())


@pytest.mark.parametrize(
    ("name", "aug"),
    [(name, "clae") for name in METHODS]
    + [(name, aug) for name in ("simclr", "byol") for aug in AUGMENTATIONS if aug not in ("clae", "hvp", "third")],
)
def test_what_a_step_with_the_augmentation_leaves_behind_is_what_one_without_leaves(name: str, aug: str) -> None:
    """x' enters no queue, bank, centre or running statistic. They hold only what the clean pair puts there."""
    method = make_method(name)
    module = SelfSupervised(method, make_augmentation(aug), epochs=1, steps_per_epoch=1, seed=0).train()
    plain = copy.deepcopy(method)
    batch = views(0, local=2 * method.multi_crop)
    module.objective(method, *batch)
    plain.loss(*[plain(view) for view in batch])
    for (key, found), expected in zip(method.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected), key
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_replaced_view_enters_no_queue(name: str) -> None:
    """Queues, banks and centres hold what the loss of x0 with itself puts there."""
    method = make_method(name)
    module = SelfSupervised(
        method, make_augmentation("clae", place="replace"), epochs=1, steps_per_epoch=1, seed=0
    ).train()
    plain = copy.deepcopy(method)
    x0, x1, *local = views(0, local=2 * method.multi_crop)
    module.losses(x0, x1, *local).total.backward()
    outputs = [plain(view) for view in (x0, *local)]
    plain.loss(outputs[0], *outputs)
    for (key, found), expected in zip(method.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected), key


def test_a_third_view_is_one_more_loss_of_the_method() -> None:
    method = make_method("simclr")
    augmentation: Any = make_augmentation("third", weight=0.5)
    x0, x1 = views(0)
    x2, transform = x1.flip(3), method.transform(16, NORMALIZE)
    z0, z1, z2 = method(x0), method(x1), method(x2)
    expected = method.loss(z0, z1) + 0.5 * method.loss(z0, z2)
    torch.testing.assert_close(augmentation.loss(method)(method, x0, x1, x2).total, expected)
    assert len(augmentation.transform(transform).transforms) == len(transform.transforms) + 1
    assert not augmentation.dual_batchnorm
    assert make_augmentation("third", branch="adversarial").dual_batchnorm


@pytest.mark.parametrize("name", ["moco", "nnclr", "dino", "tico", "smog"])
def test_the_clean_pair_does_enter(name: str) -> None:
    """The clean pair does change the banks and centres, so the test above can fail."""
    method = dual_batchnorm(make_method(name)).train()
    bank = {
        "moco": "criterion.memory_bank.bank", "nnclr": "bank.bank", "dino": "criterion.center",
        "tico": "criterion.C", "smog": "groups.group_features",
    }[name]  # fmt: skip
    before = dict(method.named_buffers())[bank].clone()
    AdversarialLoss(method.loss, CLAE())(method, *views(0, local=2 * method.multi_crop))  # type: ignore[arg-type]
    assert not torch.equal(before, dict(method.named_buffers())[bank])
    assert name == "dino" or bank in method.state_dict(), "a resumed run would start with another bank"


def test_moco_compares_no_query_with_a_key_of_its_own_sample_in_the_queue() -> None:
    method = make_method("moco").train()
    x0, x1 = views(0)
    outputs = method(x0), method(x1)
    queue = method.criterion.memory_bank.bank.clone()  # type: ignore[union-attr]
    loss = method.loss(*outputs)
    halves = []
    for (query, _), (_, key) in (outputs, outputs[::-1]):
        q, k = nn.functional.normalize(query), nn.functional.normalize(key)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.1
        halves.append(nn.functional.cross_entropy(logits, torch.zeros(8, dtype=torch.long)))
    torch.testing.assert_close(loss, sum(halves) / 2)


@pytest.mark.parametrize("name", ["moco", "byol", "dino"])
def test_momentum_networks_follow_before_each_step(name: str) -> None:
    method: Any = make_method(name)
    assert all(map(torch.equal, method.backbone.parameters(), method.momentum_backbone.parameters()))
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(1)
    method.before_step(0, 1, 1)
    for parameter, follower in zip(method.backbone.parameters(), method.momentum_backbone.parameters(), strict=True):
        torch.testing.assert_close(follower, parameter - 0.99)
        assert not follower.requires_grad


@pytest.mark.parametrize("name", ["tico", "mmcr"])
def test_the_momentum_rises_to_one(name: str) -> None:
    method: Any = make_method(name)
    seen: list[float] = []
    method.follow = seen.append
    for step in range(4):
        method.before_step(step, 2, 2)
    assert (seen[0], seen[-1]) == (0.996, 1.0)
    assert seen == sorted(seen)


def test_koleo_finds_the_nearest_images_in_half_precision() -> None:
    """Features of an untrained network differ by less than half precision can tell."""
    method: Any = make_method("dinov2")
    g = torch.Generator().manual_seed(0)
    features = [1 + 0.02 * torch.randn(32, 16, generator=g) for _ in range(2)]
    outputs = [torch.zeros(32, 16) for _ in range(2)]
    gradients = []
    for half in (False, True):
        leaves = [part.clone().requires_grad_() for part in features]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            method.loss(*((outputs[0], outputs[1], leaf) for leaf in leaves)).backward()
        gradients.append(torch.cat([leaf.grad for leaf in leaves]))
    torch.testing.assert_close(*gradients)


def test_smog_needs_a_projection_for_each_group() -> None:
    with pytest.raises(UsageError, match="bank is 9, but k-means needs one projection or more for each of 10 groups"):
        load("method", "smog")(nn.Flatten(), 4, groups=10, bank=9)


def test_vicregs_optimiser_takes_a_generator_of_parameters() -> None:
    method = make_method("vicreg")
    optimizer, _ = method.optimizer([{"params": method.parameters()}], 1, 1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(method.parameters()))


def test_smog_restarts_its_groups_and_its_momentum_network() -> None:
    method: Any = make_method("smog")
    method.bank.bank[:] = torch.eye(16).repeat(2, 1)[torch.arange(32) % 8]  # eight clusters of one point each
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(1)
    method.before_step(300, 1, 1)
    assert all(map(torch.equal, method.backbone.parameters(), method.momentum_backbone.parameters()))
    torch.testing.assert_close(
        method.groups.group_features.sort(0, descending=True).values[0], torch.eye(16)[:8].sum(0)
    )
    torch.testing.assert_close(method.groups.group_features.norm(dim=1), torch.ones(8))


def test_fastsiam_predicts_the_mean_of_the_other_views() -> None:
    method: Any = make_method("fastsiam").eval()
    outputs = [method(view) for seed in range(2) for view in views(seed)]
    expected = 0.0
    for number, (prediction, _) in enumerate(outputs):
        others = [projection for other, (_, projection) in enumerate(outputs) if other != number]
        expected = expected - nn.functional.cosine_similarity(prediction, torch.stack(others).mean(0)).mean() / 4
    torch.testing.assert_close(method.loss(*outputs), expected)
    pair: Any = make_method("simsiam").eval()
    torch.testing.assert_close(method.loss(*outputs[:2]), pair.loss(*outputs[:2]))


def test_mmcr_is_minus_the_nuclear_norm_of_the_mean_embeddings() -> None:
    method: Any = make_method("mmcr")
    outputs = [method(view) for view in views(0)]
    means = sum(part for output in outputs for part in output) / 4
    torch.testing.assert_close(method.loss(*outputs), -torch.linalg.svdvals(means).sum())
    assert all(part.norm(dim=1).allclose(torch.ones(8)) for output in outputs for part in output)


@pytest.mark.parametrize("name", ["lejepa", "visreg", "wmse"])
def test_random_numbers_of_a_loss_depend_on_the_step_only(name: str) -> None:
    method: Any = make_method(name)
    method.whitening_size = 6  # otherwise all samples are one group, and nothing is drawn
    outputs = [method(torch.cat([view, view[:4].flip(3)])) for view in views(0)]
    losses = []
    for step in (0, 1, 0):
        state = torch.get_rng_state()
        method.before_step(step, 1, 1)
        losses.append(method.loss(*outputs).item())
        assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[2] != losses[1]


def test_visreg_is_lightlys_loss_with_four_global_views() -> None:
    method: Any = make_method("visreg")
    outputs = [method(view) for seed in range(3) for view in views(seed)]
    method.before_step(7, 1, 1)
    found = method.loss(*outputs)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        criterion = VISRegLoss(lambda_param=0.6, num_slices=16)
        expected = criterion(global_proj=torch.stack(outputs[:4]), local_proj=torch.stack(outputs[4:]))
    torch.testing.assert_close(found, expected)
    transform = method.transform(16, NORMALIZE)
    assert [view.shape[-1] for view in transform(Image.new("RGB", (16, 16)))] == [16] * 4 + [8] * 2
    steps = [step for view in transform.transforms for step in view.transform.transforms]
    assert [step.prob for step in steps if isinstance(step, RandomSolarization)] == [0.2] * 6


@pytest.mark.parametrize("name", ["barlowtwins", "byol", "frossl", "smog", "tico"])
def test_second_views_are_solarised_as_in_lightlys_benchmarks(name: str) -> None:
    transform: Any = load("method", name)(nn.Flatten(), 2).transform(16, NORMALIZE)
    steps = [step for view in transform.transforms for step in view.transform.transforms]
    assert [step.prob for step in steps if isinstance(step, RandomSolarization)] == [0.0, 0.2]


def test_dclw_gives_larger_weights_to_pairs_that_agree_less() -> None:
    """With σ = 0.5 and cosines 1 and 0, the weights are 2 − 2 · e² / (e² + 1) and 2 − 2 / (e² + 1)."""
    anchor, positive = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    high = math.exp(2) / (math.exp(2) + 1)
    torch.testing.assert_close(mises_fisher_weights(anchor, positive, 0.5), torch.tensor([2 - 2 * high, 2 * high]))
    plain, weighted = (load("method", "dcl")(nn.Flatten(), 4, sigma=sigma) for sigma in (None, 0.5))
    assert plain.loss(*torch.eye(4).repeat(2, 1, 1)) == weighted.loss(*torch.eye(4).repeat(2, 1, 1))  # all agree alike
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightly's weights warn about a copy.
        pairs = torch.randn(2, 8, 4)
        torch.testing.assert_close(weighted.loss(*pairs), DCLWLoss(temperature=0.1, sigma=0.5)(*pairs))


def test_directclr_compares_the_first_features() -> None:
    method: Any = load("method", "directclr")(nn.Flatten(), 16, share=0.25)
    first, second = torch.randn(2, 8, 16)
    assert torch.equal(method(first), first[:, :4])
    torch.testing.assert_close(method.loss(first[:, :4], second[:, :4]), DirectCLRLoss(4, 0.1)(first, second))


def test_hypersphere_by_hand() -> None:
    """Two samples that are opposite in both views: alignment 0, uniformity log exp(−2 · 4) = −8."""
    method: Any = load("method", "hypersphere")(nn.Flatten(), 2)
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(method.loss(ends, ends), torch.tensor(-8.0))
    torch.testing.assert_close(method.loss(ends, -ends), torch.tensor(4.0 - 8.0))


def test_the_invariance_term_of_frossl_is_divided_by_the_batch_size() -> None:
    """Each sample twice leaves the other term unchanged. So half the weight with half the batch is the same loss.

    By default, the weight is therefore proportional to the batch size.
    """
    whole, half = (load("method", "frossl")(nn.Flatten(), 2, invariance=weight) for weight in (1.0, 0.5))
    anchor, positive = torch.randn(2, 8, 4)
    loss: Any = whole.loss(torch.cat([anchor, anchor]), torch.cat([positive, positive]))
    torch.testing.assert_close(loss, half.loss(anchor, positive))
    assert (loss - whole.loss(anchor, positive)).abs() > 0.1
    usual: Any = load("method", "frossl")(nn.Flatten(), 2)
    for count in (4, 8):  # The dimension is 4.
        given: Any = load("method", "frossl")(nn.Flatten(), 2, invariance=float(count))
        pair = anchor[:count], positive[:count]
        assert torch.equal(usual.loss(*pair), given.loss(*pair))


def test_sigreg_grows_with_the_batch_size() -> None:
    """With half the batch, twice the ratio λ / (1 − λ) gives the same loss, up to its scale."""
    whole, half = (load("method", "lejepa")(nn.Flatten(), 2, regularisation=weight) for weight in (1 / 3, 1 / 2))
    views = torch.randn(2, 8, 4)
    loss: Any = whole.loss(*torch.cat([views, views], 1))
    torch.testing.assert_close(loss * 3 / 2, half.loss(*views) * 2)


def test_macl_raises_the_temperature_as_pairs_agree() -> None:
    """Two samples, aligned: the temperature is 0.1 · (1 + 0.5 · 1), and a negative has the cosine 0."""
    method: Any = load("method", "macl")(nn.Flatten(), 2)
    certainty = 1 / (1 + 2 * math.exp(-1 / 0.15))
    expected = -math.log(certainty) / (1 - certainty)
    torch.testing.assert_close(method.loss(torch.eye(2), torch.eye(2)), torch.tensor(expected), rtol=1e-4, atol=0)
    sharp: Any = load("method", "macl")(nn.Flatten(), 2, temperature=0.05)
    gradients = []
    for enabled in (False, True):
        points = torch.eye(64).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = sharp.loss(points, torch.eye(64).roll(1, 1) * 0.1 + torch.eye(64))
        loss.backward()
        gradients.append(points.grad)
    torch.testing.assert_close(*gradients)
    with pytest.raises(UsageError, match=r"rise is 0.5 and threshold 1.0, so the temperature could reach 0"):
        load("method", "macl")(nn.Flatten(), 2, threshold=1.0)


def test_wmse_whitens_in_groups() -> None:
    method: Any = load("method", "wmse")(nn.Flatten(), 12, whitened_dim=3, whitening_size=8)
    first, second = torch.randn(2, 16, 3, dtype=torch.float64)
    same = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q  # whitening removes scales
    torch.testing.assert_close(method.loss(first, 5 * first + 1).item(), 0.0, atol=1e-3, rtol=0)
    assert method.loss(first, second) > 0.1 < method.loss(first, first @ same)
    with pytest.raises(UsageError, match="12 samples cannot be whitened in groups of 8: use a multiple as batch size"):
        method.loss(first[:12], second[:12])
    with pytest.raises(UsageError, match="4 samples are whitened in 3 dimensions, but twice as many samples as"):
        method.loss(first[:4], second[:4])
    method.criterion.whitening.eps = 0.0
    with pytest.raises(NonFiniteError, match="covariance has become singular: lower the learning rate, or raise"):
        method.loss(first * torch.tensor([0, 1, 1]), second)
    with pytest.raises(UsageError, match="128 samples are whitened in 65 dimensions"):
        load("method", "wmse")(nn.Flatten(), 12, whitened_dim=65)


def test_swav_brings_its_prototypes_back_to_the_sphere() -> None:
    method: Any = make_method("swav")
    method.before_step(0, 1, 1)
    torch.testing.assert_close(method.prototypes.heads[0].weight.norm(dim=1), torch.ones(8))


def test_simclr_overfits_a_batch() -> None:
    module = SelfSupervised(make_method("simclr"), make_augmentation("none"), epochs=1, steps_per_epoch=1, seed=0)
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    first = last = 0.0
    for step in range(60):
        loss = module.objective(module.method, *views(0)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
    floor = nn.functional.cross_entropy(torch.tensor([[2.0, *[-2.0 / 7] * 14]]), torch.tensor([0])).item()
    assert last < first - 0.5
    assert last < floor + 0.6


@pytest.mark.parametrize("name", ["random", "pgd", "viewmaker", "pinda"])
def test_noise_is_of_the_runs_seed(name: str) -> None:
    """Several seeds of a random control must not share their directions."""
    drawn = []
    for seed in (0, 1, 0):
        module = SelfSupervised(make_method("simclr"), make_augmentation(name), epochs=1, steps_per_epoch=1, seed=seed)
        (noise,) = [part for part in module.objective.modules() if isinstance(part, Noise)]
        drawn.append(noise.like(torch.zeros(5)))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize(
    "name", [name for name in AUGMENTATIONS if issubclass(load("augmentation", name), GeneratorAugmentation)]
)
def test_every_search_has_its_control_in_its_own_space(name: str) -> None:
    """The control has the space and the radius of the search, but never evaluates the objective."""
    augmentation: Any = make_augmentation(name, random=True)
    searched, control = augmentation.generator(), augmentation.loss(make_method("simclr")).generator
    assert type(control.space) is type(searched.space)
    assert (control.ascent.eps, control.ascent.norm) == (searched.ascent.eps, searched.ascent.norm)
    x, _ = views(0)
    asked: list[Tensor] = []
    made = control(x, lambda images: asked.append(images) or images.sum())  # type: ignore[func-returns-value]
    assert not asked
    assert (made - x).flatten(1).abs().amax(1).min() > 0.001


def test_groups_of_the_optimiser() -> None:
    """The generator's parameters have their own learning rate. Frozen parameters are in no group."""
    module = SelfSupervised(
        make_method("byol"), make_augmentation("viewmaker", lr=0.5), epochs=2, steps_per_epoch=2, seed=0
    )
    method, own = module.configure_optimizers()["optimizer"].param_groups
    assert (method["lr"], own["lr"]) == (0.24, 0.5)
    assert {id(p) for p in own["params"]} == {id(p) for p in module.objective.parameters()}
    assert all(parameter.requires_grad for parameter in method["params"])
    assert embedding_of(module.method(views(0)[0])).requires_grad
