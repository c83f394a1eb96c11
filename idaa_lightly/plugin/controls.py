"""Controls: runs that an augmentation is compared with, to find which part of it helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Control:
    """Run that an augmentation is compared with.

    Attributes:
        name: Name of the row in tables and plots, such as "random direction".
        aug: Name of the control's augmentation. Empty for the one that is compared.
        options: Options that differ from the compared run, by scope: "aug" or "method". With another augmentation,
            "aug" holds all that are not its defaults.
        adds: Part that the control has and the row before it on the ladder lacks, such as "second term". The ladder
            leads from the method alone to the augmentation. Empty if the control is no step of it.
        judged: True if a gain of the augmentation must exceed that of this control. False for other forms of the
            augmentation, which are only shown.
        missing: Reason why this method has no such control, as a sentence. Empty if it has.
        twin: True if another row is the same in a network without BatchNorm.

    Example:
        >>> from idaa_lightly.plugin import Control
        >>> Control("half as strong", options={"aug": {"eps": 0.1}}, judged=False).options
        {'aug': {'eps': 0.1}}
    """

    name: str
    aug: str = ""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    adds: str = ""
    judged: bool = True
    missing: str = ""
    twin: bool = False


def third_view_controls(weight: float, *, uniformity: bool, shared: bool = False) -> list[Control]:
    """Return controls of a loss with an adversarial third view: an ordinary one, and the first view unchanged.

    Each passes through the first (clean) BatchNorm or through the second (adversarial) one.

    Args:
        weight: Weight of the second term.
        uniformity: True if the loss of a view with itself is a uniformity term, as it is for losses that compare one
            embedding per view.
        shared: True if the adversarial view passes through the first BatchNorm.
    """
    no_term = (
        "its loss compares the outputs of two different networks or heads, so that of a view with itself is no "
        "uniformity term"
    )
    return [
        _through("third ordinary view", "third", weight, "clean"),
        _through("third ordinary view", "third", weight, "adversarial"),
        _through(
            "unperturbed view",
            "unperturbed",
            weight,
            "clean",
            adds="second term" if shared else "",
            missing="" if uniformity else no_term,
        ),
        _through("unperturbed view", "unperturbed", weight, "adversarial", adds="" if shared else "second term"),
    ]


def unperturbed_second_view() -> Control:
    """Return the control for a replaced second view: the second view unchanged, through the second BatchNorm.

    Through the first BatchNorm, the unchanged view gives the method alone.
    """
    options = {"branch": "adversarial", "place": "replace"}
    return Control("second view, second BatchNorm", "unperturbed", {"aug": options}, adds="second BatchNorm")


def _through(name: str, aug: str, weight: float, branch: str, **facts: Any) -> Control:
    place = "first" if branch == "clean" else "second"
    options = {"aug": {"weight": weight, "branch": branch}}
    return Control(f"{name}, {place} BatchNorm", aug, options, twin=branch == "clean", **facts)
