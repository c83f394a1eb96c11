"""The report page, made from small records written by hand and from real runs, and shown in a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from records import a_record

from idaa_lightly.bench.compare.comparison import Comparison, compare
from idaa_lightly.bench.compare.forest import Contrast
from idaa_lightly.bench.compare.groups import read_groups
from idaa_lightly.bench.report.curves import (
    Shown,
    accuracy_curve,
    blocks,
    flops_curves,
    logged_curves,
    read_metrics,
    time_curves,
)
from idaa_lightly.bench.report.page import table, verdict
from idaa_lightly.bench.report.sensitivity import sensitivity_figures, swept
from idaa_lightly.bench.report.svg import MOST_POINTS, Line, curves, logarithmic
from idaa_lightly.cli import main

COLUMNS = ["step", "epoch", "loss/clean", "loss/clean_epoch", "loss/total_epoch"]


def write(
    name: str,
    *,
    aug: str = "none",
    method: str = "simclr",
    seed: int = 0,
    knn: float = 0.5,
    seconds: float = 10.0,
    options: dict[str, Any] | None = None,
    fingerprint: tuple[str, str] = ("aaaaaaaa", "bbbbbbbb"),
    commit: str | None = "c0ffee",
    **config: Any,
) -> Path:
    """Write the record of a run on digits with 10 epochs, and return its run directory."""
    chosen = {"method": method, "aug": aug, "data": "digits", "epochs": 10, "seed": seed} | config
    record = a_record(
        config=chosen | {"set": {"aug": options or {}}},
        last={"knn": knn, "knn_projection": knn - 0.1, "linear": knn + 0.1},
        history=[{"epoch": 0, "knn": 0.1}, {"epoch": 5, "knn": 0.3}, {"epoch": 10, "knn": knn}],
        time={"train_s": seconds},
        data={"fingerprint": fingerprint},
        git_commit=commit,
    )
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def groups() -> list[Shown]:
    parts = blocks(read_groups([Path("runs")])[0])
    return sorted((item for block in parts for item in block.groups), key=lambda item: item.index)


def families() -> dict[str, list[list[tuple[Any, ...]]]]:
    """Return the families of each swept option, with method, augmentation, batch size and eps of every member."""
    made = [item.group for item in groups()]
    values = [(g.config.method, g.config.aug, g.config.batch_size, g.config.set["aug"].get("eps")) for g in made]
    return {
        option: sorted([values[index] for index in family] for family in several)
        for option, several in swept(made).items()
    }


def report(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["report", *(arguments or ("runs",))])
    assert result.exit_code == code, result.output
    return result


class Page(HTMLParser):
    """Parsed page: its elements with their attributes, and its text outside script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.raw = tag in ("script", "style")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.raw = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self.raw else data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(*arguments: str) -> Page:
    report(*arguments)
    return Page(Path("report.html").read_text(encoding="utf-8"))


# ---- swept options


def test_families_differ_in_one_option_alone() -> None:
    for batch_size in (32, 64):
        write(f"none{batch_size}", batch_size=batch_size)
        for eps in (0.3, 0.03, 0.1):
            write(f"clae{batch_size}{eps}", aug="clae", batch_size=batch_size, options={"eps": eps})
    write("other", method="simsiam", aug="clae", batch_size=32, options={"eps": 0.1})
    write("both", aug="clae", batch_size=128, options={"eps": 0.7})
    assert families() == {
        "aug.eps": [[("simclr", "clae", size, eps) for eps in (0.03, 0.1, 0.3)] for size in (32, 64)],
        "batch_size": [
            *([("simclr", "clae", size, eps) for size in (32, 64)] for eps in (0.03, 0.1, 0.3)),
            [("simclr", "none", size, None) for size in (32, 64)],
        ],
    }


def test_seeds_commits_and_other_images_are_no_sweep() -> None:
    write("a", batch_size=32)
    write("b", batch_size=32, seed=1)
    write("c", batch_size=64, commit="decade")
    write("d", batch_size=128, fingerprint=("other", "bbbbbbbb"))
    assert families() == {}


def test_the_number_of_training_images_may_be_swept_on_the_same_test_images() -> None:
    write("a", limit_train=100, fingerprint=("few", "bbbbbbbb"))
    write("b", limit_train=200, fingerprint=("many", "bbbbbbbb"))
    write("c", limit_train=300, fingerprint=("more", "elsewhere"))
    assert [len(family) for family in swept([item.group for item in groups()])["limit_train"]] == [2]


def test_the_points_of_a_swept_option_by_hand() -> None:
    """kNN accuracies of 50 and 54 % have mean 52 and standard deviation 2√2. `none` is a horizontal line."""
    write("none", knn=0.4)
    for seed, knn in enumerate((0.5, 0.54)):
        write(f"wide{seed}", aug="clae", seed=seed, knn=knn, options={"eps": 0.3})
        write(f"narrow{seed}", aug="clae", seed=seed, knn=knn + 0.1, options={"eps": 0.1})
    knn, linear = sensitivity_figures(groups())
    assert [knn.caption, linear.caption] == ["kNN accuracy by aug.eps of clae", "linear accuracy by aug.eps of clae"]
    clae, none = knn.lines
    assert (clae.label, clae.x) == ("simclr × clae", [0, 1])
    assert clae.y == (pytest.approx(62), pytest.approx(52))
    assert clae.std == (pytest.approx(8**0.5), pytest.approx(8**0.5))
    assert (none.label, none.y, none.std) == ("simclr × none", (40,), (0,))
    assert linear.lines[0].y == (pytest.approx(72), pytest.approx(62))
    assert knn.groups == (0, 1, 2)
    ticks = re.findall(r">([^<>]+)</text>", knn.content)
    assert ticks[:2] == ["0.1", "0.3"]


def test_options_that_are_no_numbers_are_places_in_order() -> None:
    for index, value in enumerate((True, False)):
        write(f"a{index}", aug="clae", knn=0.5 + index / 10, options={"random": value, "eps": 0.1})
    write("b", aug="clae", options={"eps": 0.1}, knn=0.7)
    (line,) = sensitivity_figures(groups())[0].lines
    assert line.y == (pytest.approx(60), 50, pytest.approx(70))  # False, True, not set
    assert re.findall(r">([^<>]+)</text>", sensitivity_figures(groups())[0].content)[:3] == ["False", "True", "not set"]


def test_families_of_one_figure_are_told_apart() -> None:
    for batch_size in (32, 64):
        for eps in (0.1, 0.2):
            write(f"clae{batch_size}{eps}", aug="clae", batch_size=batch_size, options={"eps": eps})
    by_eps, _, by_batch, _ = sensitivity_figures(groups())
    assert [line.label for line in by_eps.lines] == ["simclr × clae batch_size=32", "simclr × clae batch_size=64"]
    assert [line.label for line in by_batch.lines] == ["simclr × clae aug.eps=0.1", "simclr × clae aug.eps=0.2"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.03, 0.1, 0.3], True),
        ([64, 128, 256, 512], True),
        ([1, 2, 3, 4], False),
        ([0, 1, 10], False),
        ([-1, 1, 10], False),
        ([1, 100], False),
    ],
)
def test_a_logarithmic_axis_is_for_values_that_multiply(values: list[float], expected: bool) -> None:
    assert logarithmic(values) == expected


# ---- curves


def test_bands_and_times_by_hand() -> None:
    for seed, (knn, seconds) in enumerate(((0.5, 10), (0.7, 30))):
        write(f"none{seed}", seed=seed, knn=knn, seconds=seconds)
    knn, (time,) = accuracy_curve(groups()), time_curves(groups(), groups())
    assert knn.lines[0].x == [0, 5, 10]
    assert knn.lines[0].y == (pytest.approx(10), pytest.approx(30), pytest.approx(60))
    assert knn.lines[0].std == (0, 0, pytest.approx(20 / 2**0.5))
    assert time.lines[0].x == [0, 10, 20]
    assert (time.lines[0].y, time.lines[0].std) == (knn.lines[0].y, knn.lines[0].std)


def test_losses_are_means_of_the_seeds_that_have_them() -> None:
    for seed in range(3):
        write(f"none{seed}", seed=seed)
    for seed, losses in enumerate(((3.0, 2.0), (5.0, 4.0))):
        lines = [f"{step},,9,{value},{2 * value}\n" for step, value in zip((4, 9), losses, strict=True)]
        Path(f"runs/none{seed}/metrics.csv").write_text(",".join(COLUMNS) + "\n" + "".join(lines))
    missing: list[str] = []
    (total, clean), _ = logged_curves(groups(), missing)
    assert missing == ["simclr × none: no metrics.csv, so no losses, of seed 2."]
    assert (total.caption, clean.caption) == ("total loss of simclr", "clean loss of simclr")
    assert (clean.lines[0].x, clean.lines[0].y) == ([5, 10], (4, 3))  # 5 of 10 steps are 5 of 10 epochs
    assert total.lines[0].y == (8, 6)
    assert clean.lines[0].std == (pytest.approx(2**0.5), pytest.approx(2**0.5))


def test_identity_figures_that_were_logged() -> None:
    folder = write("clae", aug="clae")
    columns = "step,loss/total_epoch,identity/adversarial_lost,identity/second_information"
    (folder / "metrics.csv").write_text(f"{columns}\n9,,0.5,1.5\n19,3,0.25,2\n")
    _, (lost, information) = logged_curves(groups(), [])
    assert lost.caption == "identities lost, %: adversarial view of simclr"
    assert (lost.lines[0].x, lost.lines[0].y) == ([5, 10], (50, 25))
    assert information.caption == "log N − L_NCE, nats: second view of simclr"
    assert information.lines[0].y == (1.5, 2)
    assert "During training" in page().text


def test_flops_by_hand_and_only_where_they_are_recorded() -> None:
    """Training for 10 s at 100 images a second and 2 GFLOP per image takes 2 TFLOP."""
    folder = write("none")
    for path, flops in ((folder, 2 * 10**9), (write("old", aug="clae"), None)):
        record = json.loads((path / "record.json").read_text())
        record["time"] = record["time"] | {"flops_per_image": flops}
        (path / "record.json").write_text(json.dumps(record))
    missing: list[str] = []
    (figure,) = flops_curves(groups(), groups(), missing)
    assert missing == ["simclr × clae: no FLOPs in a record, so no accuracy by FLOPs."]
    (line,) = figure.lines
    assert (line.label, line.x) == ("simclr × none", [0, pytest.approx(1), pytest.approx(2)])
    assert "training, TFLOP" in figure.content


@pytest.mark.parametrize(
    "text", ["", "loss/total_epoch\n1\n", "step,loss/total\n1,2\n", "step,loss/total_epoch\n1,broken\n"]
)
def test_metrics_that_are_none(text: str) -> None:
    Path("metrics.csv").write_text(text)
    with pytest.raises((ValueError, KeyError), match=r"no loss/\.\.\._epoch in it|could not convert|step"):
        read_metrics(Path("metrics.csv"))


def test_data_sets_have_figures_of_their_own_and_methods_where_they_are_many() -> None:
    write("a")
    write("b", data="cifar10", fingerprint=("cc", "dd"))
    assert [block.title for block in blocks([item.group for item in groups()])] == [
        "digits cc/dd",
        "digits aaaaaa/bbbbbb",
    ]
    for method in ("simclr", "simsiam"):
        for eps in range(4):
            write(f"{method}{eps}", method=method, aug="clae", options={"eps": eps / 10})
    parts = blocks([item.group for item in groups()])
    assert [block.title for block in parts] == [
        "digits cc/dd", "simclr on digits aaaaaa/bbbbbb", "simsiam on digits aaaaaa/bbbbbb",
    ]  # fmt: skip
    assert [[item.style for item in block.groups] for block in parts] == [[0], [0, 1, 2, 3, 4], [1, 2, 3, 4]]


def test_names_have_what_tells_groups_apart() -> None:
    write("a", batch_size=32)
    for eps in (0.1, 0.2):
        write(f"b{eps}", aug="clae", batch_size=64, options={"eps": eps, "weight": 1.0})
    write("c", aug="idaa", options={"eps": 0.1})
    write("d", aug="idaa", options={"eps": 0.1}, commit="decade")
    assert sorted(item.label for item in groups()) == [
        "simclr × clae aug.eps=0.1", "simclr × clae aug.eps=0.2", "simclr × idaa commit=c0ffee",
        "simclr × idaa commit=decade", "simclr × none",
    ]  # fmt: skip


def test_groups_that_differ_in_their_images_alone_are_numbered() -> None:
    write("a", aug="clae", options={"eps": 0.1})
    write("b", aug="clae", options={"eps": 0.1}, fingerprint=("bbbbbbbb", "bbbbbbbb"))
    write("c", aug="clae", options={"eps": 0.2}, fingerprint=("cccccccc", "bbbbbbbb"))
    assert sorted(item.label for item in groups()) == [
        "simclr × clae aug.eps=0.2", "simclr × clae, group 1", "simclr × clae, group 2",
    ]  # fmt: skip


def test_the_cheapest_of_all_methods_is_marked() -> None:
    """The mark is at 10 of 40 s, which is a quarter of the distance between the ends of the line."""
    write("a", method="simsiam", seconds=10)
    write("b", seconds=40)
    every = groups()
    own = [item for item in every if item.group.config.method == "simclr"]
    marked, unmarked = (time_curves(own, everyone)[0].content for everyone in (every, own))
    assert marked != unmarked
    dotted = re.compile(
        r'd="M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+ " clip-path="[^"]*" style="fill: none; stroke-dasharray'
    )
    (x, again), (end, _) = (map(float, dotted.findall(plot)[0]) for plot in (marked, unmarked))
    start = float(re.findall(r'd="M ([\d.]+) [\d.]+ L [\d.]+ [\d.]+ L [\d.]+ [\d.]+ "', marked)[0])
    assert x == again
    assert x == pytest.approx(start + (end - start) / 4)


def test_a_long_line_is_thinned_and_keeps_its_ends() -> None:
    count = 5000
    line = Line("long", (3,), 9, range(count), range(count), [1.0] * count)
    plot = curves([line], "plot", "epoch", "loss")
    assert len(plot) < 60 * MOST_POINTS * 3
    assert plot.count('data-groups="3"') == 2  # the line and its band
    assert "long: 0 to 4999" in plot


# ---- the table


def test_columns_are_sorted_by_their_numbers() -> None:
    for seed, (none, clae) in enumerate([(0.50, 0.51), (0.52, 0.56)]):
        write(f"none{seed}", seed=seed, knn=none, seconds=9)
        write(f"clae{seed}", aug="clae", seed=seed, knn=clae, seconds=100)
    columns, rows = table(compare([Path("runs")]))
    names = [column["name"] for column in columns]
    assert names[:3] == ["kNN, %", "Δ kNN [95 %]", "linear, %"]
    assert all(column["numeric"] for column in columns)
    none, clae = ({name: cell["key"] for name, cell in zip(names, row, strict=True)} for row in rows)
    assert (none["FLOPs × none"], clae["FLOPs × none"]) == (1, pytest.approx(100 / 9))
    assert (none["Δ kNN [95 %]"], clae["Δ kNN [95 %]"]) == (None, pytest.approx(2.5))
    assert clae["kNN, %"] == pytest.approx(53.5)
    assert clae["kNN at 900 GFLOP, %"] == pytest.approx(10 + 20 * 0.09 / 0.5)


def test_the_picture_of_an_interval() -> None:
    """The largest bound is drawn 48 % from the middle, near the edge. A single seed has no interval."""
    parts = {f"{name}_minus_baseline{end}": None for name in ("knn", "linear") for end in ("", "_low", "_high")}
    spread = {
        f"{name}_{end}": 1.0
        for name in ("knn", "knn_projection", "linear", "train_s", "knn_at_budget")
        for end in ("mean", "std")
    }
    row = {"method": "a", "aug": "b", "options": "", "seeds": 2} | spread | parts
    row |= {"knn_pairs": 2, "linear_pairs": 2, "time_relative": None, "images_per_s": 1.0}
    row |= {"flops": 1.0, "budget_flops": 1.0, "flops_relative": None}
    wide = row | {"knn_minus_baseline": 1.0, "knn_minus_baseline_low": -2.0, "knn_minus_baseline_high": 4.0}
    single = row | {"knn_minus_baseline": -1.0}
    columns, rows = table(Comparison([row, wide, single], "", []))
    place = [column["name"] for column in columns].index("Δ kNN [95 %]")
    assert [line[place]["interval"] for line in rows] == [[], [26, 62, 98], [38]]


def test_the_verdict_counts_intervals_and_names_the_largest_gain() -> None:
    assert verdict([]) == ""
    points = {"a": (1.0, 0.5, 1.5), "b": (3.0, 1.0, 5.0), "c": (1.0, -1.0, 3.0), "d": (-2.0, -3.0, -1.0)}
    found = [Contrast(label, {"knn": part}, 3) for label, part in points.items()]
    assert verdict([*found, Contrast("e", {"knn": (9.0, None, None)}, 1)]) == (
        "Groups by kNN: 2 above the baseline, 1 below the baseline, 1 not told apart from the baseline, 1 with a "
        "single seed, which is too few for a verdict. The largest gain is that of b: +3.00 points [+1.00, +5.00] over "
        "3 seeds."
    )
    assert verdict(found[3:]) == "Groups by kNN: 1 below the baseline."


def test_a_name_leaves_out_what_most_groups_share() -> None:
    for number, eps in enumerate((0.1, 0.1, 0.2)):
        write(f"clae{number}", aug="clae", options={"eps": eps}, epochs=10 + (number == 1))
    labels = ["simclr × clae", "simclr × clae aug.eps=0.2", "simclr × clae epochs=11"]
    assert sorted(item.label for item in groups()) == labels


# ---- the page


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>$\\frac{'


def test_hostile_names_stay_text() -> None:
    write("none")
    folder = write("<b>bold", aug=HOSTILE, method="<i>", options={"<u>": HOSTILE, "eps": 1})
    write("second", aug=HOSTILE, method="<i>", options={"<u>": HOSTILE + "2", "eps": 1}, commit="<s>")
    write("third", aug=HOSTILE, method="<i>", options={"<u>": HOSTILE, "eps": 2})
    views = {HOSTILE: {"lost": 0.1, "hardness": [0, 1, 2, 3, 4], "l2": 1, "linf": 0.5}}
    (folder / "identity.json").write_text(json.dumps({"samples": HOSTILE, "augmentations": views}))
    Image.new("RGB", (3, 2)).save(folder / "views.png")
    (folder / "metrics.csv").write_text(f"step,loss/{HOSTILE.replace(',', '')}_epoch\n1,2\n".replace('"', "'"))
    made = page()
    assert len(made.all("script")) == 1
    assert not {"b", "i", "u", "s"} & {tag for tag, _ in made.elements}
    assert [image["src"][:14] for image in made.all("img") if image["src"]] == ["data:image/png"]
    assert not [name for _, attributes in made.elements for name in attributes if name.startswith("on")]
    assert made.text.count(HOSTILE) > 5
    assert any(attributes.get("alt", "").startswith(f"<i> × {HOSTILE}") for attributes in made.all("img"))


def test_the_page_needs_nothing_else() -> None:
    folder = write("none")
    write("clae", aug="clae", options={"eps": 0.1})
    write("clae2", aug="clae", options={"eps": 0.2})
    Image.new("RGB", (3, 2)).save(folder / "views.png")
    made = page()
    text = Path("report.html").read_text(encoding="utf-8")
    for _, attributes in made.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,"))
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in made.elements}
    assert re.findall(r"https?:|@import|url\((?!#)", text) == []
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (meta["content"] for meta in made.all("meta") if meta.get("http-equiv"))
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_the_page_can_be_heard_and_used_by_keyboard() -> None:
    write("none")
    write("clae", aug="clae", options={"eps": 0.1})
    write("clae2", aug="clae", options={"eps": 0.2})
    made = page()
    assert made.all("html") == [{"lang": "en"}]
    identifiers = [attributes["id"] for _, attributes in made.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    links = {(link["href"] or "").removeprefix("#") for link in made.all("a")}
    assert links <= set(identifiers)
    assert {"comparison", "learning", "time", "sensitivity", "runs", "group-0", "group-2"} <= links
    assert "identity" not in links
    tags = [tag for tag, _ in made.elements]
    assert tags.count("table") == tags.count("caption") == 1 + 3
    assert all(header.get("scope") in ("col", "row") for header in made.all("th"))
    plots = [attributes for attributes in made.all("svg") if attributes.get("role") == "img"]
    assert len(plots) == 6  # One is a forest plot.
    assert all(plot["aria-label"] for plot in plots)
    assert all("aria-label" in box for box in made.all("div") if box.get("tabindex") == "0")
    numbers = [cell["data-key"] for cell in made.all("td") if cell.get("class") == "number" and "data-key" in cell]
    assert len([float(number) for number in numbers if number]) > 15


def test_what_is_missing_is_said_and_the_rest_is_there() -> None:
    folder = write("none")
    (folder / "views.png").write_text("no picture")
    (folder / "metrics.csv").write_text("step,loss/total_epoch\n1,broken\n")
    (folder / "identity").mkdir()
    (folder / "identity/identity.json").write_text('{"augmentations": {"clae": {"lost": 1}}}')
    write("clae", aug="clae")
    nothing = write("diverged", aug="pgd")
    (nothing / "metrics.csv").write_text("step,loss/total_epoch\n1,nan\n")
    Image.new("1", (20_000, 20_000)).save(nothing / "views.png")
    record = json.loads((nothing / "record.json").read_text())
    del record["best"]
    (nothing / "record.json").write_text(json.dumps(record))
    said = " ".join(report("runs").output.split())
    for text in (
        "diverged/views.png is too large: its picture is left out.",
        "metrics.csv cannot be read (loss/total_epoch is nan after step 2, but expected a finite number): its losses",
        "none/views.png is no PNG: its picture is left out.",
        "clae/views.png does not exist: its picture is left out.",
        "metrics.csv cannot be read (could not convert string to float: 'broken'): its losses are left out.",
        "simclr × clae: no metrics.csv, so no losses, of seed 0.",
        "identity.json is damaged: augmentations.clae.hardness: Field required: it is left out.",
        "No run has an identity study: `idaa-bench identity RUN` makes one.",
    ):
        assert text in said
        assert text in Page(Path("report.html").read_text(encoding="utf-8")).text
    assert "Written to report.html: 0." in said


def test_notes_of_the_comparison_are_at_the_top() -> None:
    write("none")
    write("clae", aug="clae", commit="decade")
    Path("runs/half").mkdir()
    Path("runs/half/config.toml").write_text('method = "simclr"\n')
    text = page().text
    for note in (
        "Warning: the runs differ in commit (c0ffee, decade), and a",
        "Left out: 1 unfinished, without a record: runs/half.",
    ):
        assert 0 < text.index(note) < text.index("Top-1 accuracies after the last epoch")


def test_configurations_and_versions_are_there_once_where_all_share_them() -> None:
    write("a", workers=1)
    write("b", seed=1, workers=2)
    folder = write("c", aug="clae", options={"eps": 0.25})
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"versions": {"idaa-lightly": "0.1.0", "torch": "9.9"}}))
    text = page().text
    assert text.count("torch: 9.9") == 1
    assert text.count("c0ffee") == 2  # Below the table, and for all runs.
    assert text.count("workers = 1") == text.count("workers = 2") == 1
    assert text.count("config.toml, seed 0 without the seed:") == 1
    assert "eps = 0.25" in text


def test_a_study_of_identity() -> None:
    folder = write("clae", aug="clae")
    (folder / "identity").mkdir()
    views = {"second view": {"lost": 0.5, "hardness": [0.1, 0.2, 0.3, 0.4, 0.5]}}
    views |= {"clae": {"lost": 0.25, "hardness": [0.5, 1, 1.5, 2, 2.5], "l2": 0.125, "linf": 0.0625}}
    (folder / "identity/identity.json").write_text(json.dumps({"samples": 40, "augmentations": views}))
    Image.new("RGB", (30, 20)).save(folder / "identity/identity.png")
    made = page()
    words = " ".join(made.text.split())
    assert "0 second view 40 50.00 0.30 0.10 to 0.50 " in words
    assert "0 clae 40 25.00 1.50 0.50 to 2.50 0.125 0.062" in words
    (image,) = made.all("img")
    assert (image["width"], image["height"]) == ("30", "20")
    assert image["alt"].endswith("simclr × clae, seed 0") if image["alt"] else False
    assert "identity/density.png does not exist" in words


def test_what_is_refused() -> None:
    assert "--out is x.pdf, but expected a name that ends in .html" in report("runs", "--out", "x.pdf", code=2).output
    assert "nowhere holds no finished run" in report("nowhere", code=1).output
    write("none")
    write("copy")
    assert "are the same run" in report("runs", code=2).output
    assert not Path("report.html").exists()


# ---- real runs, and a browser

TINY = [
    "--limit-train",
    "64",
    "--backbone",
    "resnet9-w2",
    "--batch-size",
    "32",
    "--epochs",
    "2",
    "--accelerator",
    "cpu",
]


def real_runs() -> None:
    """Run none and CLAE, and make an identity study of CLAE."""
    for aug in ("none", "clae"):
        done = CliRunner().invoke(main, ["run", *TINY, "--aug", aug, "--out", f"runs/{aug}"])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["identity", "runs/clae", "--aug", "clae", "--samples", "32"])
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_real_runs() -> None:
    real_runs()
    output = report("runs", "--out", "pages/page.html").output
    assert re.fullmatch(r"Written to pages/page.html: \d\.\d MB\n", output)
    made = Page(Path("pages/page.html").read_text(encoding="utf-8"))
    assert len(made.all("img")) == 2 + 3  # Views of both runs, and three pictures of the study.
    captions = ["kNN accuracy", "total loss of simclr", "adversarial loss of simclr", "clean loss of simclr"]
    assert all(caption in made.text for caption in captions)
    assert "What is missing" not in made.text
    record = json.loads(Path("runs/clae/record.json").read_text())
    assert f"{100 * record['last']['knn']:.2f}" in made.text
    assert record["versions"]["torch"] in made.text


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def browse(*arguments: str) -> str:
    command = [
        str(BROWSER),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={Path('browser').resolve()}",
    ]
    return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True, timeout=300).stdout


def within(script: str, width: int) -> dict[str, Any]:
    """Return what a script finds in the page (`root`) in a frame. A window cannot be as narrow as a phone."""
    text = html.escape(Path("report.html").read_text(encoding="utf-8"))
    host = f"""<!DOCTYPE html><meta charset="utf-8"><iframe width="{width}" height="800" srcdoc="{text}"></iframe>
    <script>onload = () => {{
      const root = document.querySelector("iframe").contentDocument;
      document.body.textContent = JSON.stringify((() => {{ {script} }})());
    }}</script>"""
    Path("host.html").write_text(host, encoding="utf-8")
    found = re.search(r"<body>(.*?)</body>", browse("--dump-dom", Path("host.html").resolve().as_uri()), re.DOTALL)
    assert found
    return dict(json.loads(html.unescape(found[1])))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_in_a_browser() -> None:
    """Nothing overflows at 390 px, columns sort, a filter hides a group everywhere, and the page prints."""
    for seed in range(2):
        write(f"none{seed}", seed=seed, knn=0.5)
        for eps in (0.03, 0.1, 0.3):
            folder = write(
                f"clae{eps}{seed}", aug="clae", seed=seed, knn=0.3 + eps, options={"eps": eps, "long": "x" * 90}
            )
            Image.new("RGB", (900, 300)).save(folder / "views.png")
    report("runs")
    sizes = """root.querySelectorAll("details").forEach((part) => (part.open = true));
      const page = root.documentElement;
      const out = [...root.querySelectorAll("figure, figure svg, figure img, h1, p, dl, form, .scroll, pre")]
        .filter((part) => part.getBoundingClientRect().right > page.clientWidth)
        .map((part) => part.outerHTML.slice(0, 80));
      return { width: page.clientWidth, scroll: page.scrollWidth, out };"""
    for width in (390, 1280):
        found = within(sizes, width)
        assert (found["scroll"], found["out"]) == (found["width"], [])
    assert found["width"] > 1200
    use = """const rows = () => [...root.querySelectorAll("#comparison tbody tr")];
      const head = [...root.querySelectorAll("#comparison th button")].find((part) => part.textContent === "kNN, %");
      const order = () => rows().map((row) => Number(row.cells[head.parentNode.cellIndex].dataset.key));
      head.click(); const down = order(), said = head.parentNode.getAttribute("aria-sort");
      head.click(); const up = order(), again = head.parentNode.getAttribute("aria-sort");
      const field = root.getElementById("filter-text");
      field.value = "clae eps=0.3";
      field.dispatchEvent(new Event("input", { bubbles: true }));
      const shown = (part) => getComputedStyle(part).display !== "none";
      const seen = (selector) => [...root.querySelectorAll(selector)].filter(shown).length;
      return { down, said, up, again, rows: seen("#comparison tbody tr"), pictures: seen("#views figure"),
        lines: seen("#time svg g[data-groups]"), swept: seen("#sensitivity figure"), runs: seen("#runs details"),
        count: root.getElementById("filter-count").textContent };"""
    found = within(use, 800)
    assert found["down"] == [pytest.approx(value) for value in (60, 50, 40, 33)]
    assert found["up"] == found["down"][::-1]
    assert (found["said"], found["again"]) == ("descending", "ascending")
    assert (found["rows"], found["pictures"], found["runs"], found["swept"]) == (1, 1, 1, 2)
    assert (found["lines"], found["count"]) == (2, "1 of 4 groups")  # One plot by time, one by FLOPs.
    browse("--print-to-pdf=page.pdf", "--no-pdf-header-footer", Path("report.html").resolve().as_uri())
    assert Path("page.pdf").read_bytes().startswith(b"%PDF")
    browse("--window-size=1280,2000", "--screenshot=page.png", Path("report.html").resolve().as_uri())
    with Image.open("page.png") as image:
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50
