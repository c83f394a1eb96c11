"""Comparison with the outputs of the authors' released programs on float64 inputs. See tests/golden/README.md."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.nn import functional as F

from idaa_lightly import CLAE, IDAA, AdversarialLoss, OUCLLoss

FILE = Path(__file__).parent / "golden" / "reference.npz"
OUCL_KEYS = ("loss", "grad_pos", "grad_neg")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(FILE) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def test_ntxent(golden: dict[str, Tensor]) -> None:
    """Lightly's loss normalises its inputs and theirs does not, so gradients are compared on the sphere's tangent."""
    a, b = (golden[f"ntxent_{name}"].clone().requires_grad_() for name in "ab")
    loss = NTXentLoss(float(golden["ntxent_temperature"]))(a, b)
    torch.testing.assert_close(loss, golden["ntxent_loss"], rtol=0, atol=1e-12)
    loss.backward()
    for tensor, name in ((a, "a"), (b, "b")):
        theirs = golden[f"ntxent_grad_{name}"]
        tangent = theirs - (theirs * tensor).sum(1, keepdim=True) * tensor
        torch.testing.assert_close(tensor.grad, tangent.detach(), rtol=0, atol=1e-12)


def tiny_network(golden: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = F.linear(x.flatten(1), golden["tiny_f1_weight"], golden["tiny_f1_bias"]).relu()
    return F.normalize(F.linear(hidden, golden["tiny_f2_weight"], golden["tiny_f2_bias"]))


def tiny_vae(golden: dict[str, Tensor]) -> SimpleNamespace:
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = F.linear(x.flatten(1), golden["tiny_enc_weight"], golden["tiny_enc_bias"])
        return mean, torch.zeros_like(mean)

    def decode(z: Tensor) -> Tensor:
        return F.linear(z, golden["tiny_dec_weight"], golden["tiny_dec_bias"]).tanh().view(-1, 3, 8, 8)

    return SimpleNamespace(encode=encode, decode=decode)


@pytest.mark.parametrize("name", ["idaa", "clae"])
def test_adversarial_views(golden: dict[str, Tensor], name: str) -> None:
    x = golden["tiny_x"]
    eps = float(golden[f"{name}_eps"])
    generator = IDAA(tiny_vae(golden), eps=eps) if name == "idaa" else CLAE(eps=eps)
    criterion = AdversarialLoss(NTXentLoss(0.5), generator)
    views = criterion(lambda images: tiny_network(golden, images), x, x.flip(0)).views
    torch.testing.assert_close(views, golden[f"{name}_x_adv"], rtol=0, atol=1e-12)


def test_reconstruction(golden: dict[str, Tensor]) -> None:
    space = IDAA(tiny_vae(golden)).space
    residual, reconstruction = space.decomposition(golden["tiny_x"])  # type: ignore[attr-defined]
    torch.testing.assert_close(reconstruction, golden["idaa_reconstruction"], rtol=0, atol=1e-12)
    torch.testing.assert_close(residual + reconstruction, golden["tiny_x"], rtol=0, atol=1e-14)


def oucl(golden: dict[str, Tensor], positives: Tensor, *, weighted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return our loss of the stored similarities, and its gradients for positives and negatives."""
    pair = [part.clone().requires_grad_() for part in (positives, golden["oucl_neg"])]
    loss = OUCLLoss(float(golden["oucl_gamma"]), float(golden["oucl_margin"]), weighted=weighted).of_similarities(*pair)
    grad_pos, grad_neg = torch.autograd.grad(loss, pair)
    return loss.detach(), grad_pos, grad_neg


def test_oucl_released(golden: dict[str, Tensor]) -> None:
    for name, found in zip(OUCL_KEYS, oucl(golden, golden["oucl_pos"], weighted=False), strict=True):
        torch.testing.assert_close(found, golden[f"oucl_released_{name}"], rtol=0, atol=1e-12)


def test_oucl_weighted(golden: dict[str, Tensor]) -> None:
    """Their Γ⁺(d⁺ − γ⁺ + 1e-7) is our Γ⁺(d⁺ − γ⁺) at another d⁺ in closed form. Both then agree to rounding."""
    theirs = [golden[f"oucl_weighted_{name}"] for name in OUCL_KEYS]
    d, m = golden["oucl_pos"], golden["oucl_margin"]
    for found, expected in zip(oucl(golden, d, weighted=True), theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    other = 1 - ((1 - d) ** 2 - 1e-7 * (1 + m - d)).sqrt()
    loss, grad_pos, grad_neg = oucl(golden, other, weighted=True)
    grad_pos = grad_pos * (1 + m - d) / (1 + m - other)  # Keep the factor Γ⁺ of the given d⁺.
    for found, expected in zip((loss, grad_pos, grad_neg), theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
