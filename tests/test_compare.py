"""Tables of finished runs, from small records written by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from records import a_record

from idaa_lightly.bench.compare.comparison import compare, interval
from idaa_lightly.bench.record import accuracy_at
from idaa_lightly.cli import main
from idaa_lightly.errors import FileFormatError, UsageError


def write(
    name: str,
    *,
    aug: str = "none",
    seed: int = 0,
    knn: float = 0.5,
    seconds: float = 10.0,
    options: dict[str, Any] | None = None,
    fingerprint: str = "aaaaaaaa",
    commit: str | None = "c0ffee",
    device: str = "cpu",
    fit_flops: float = 0.0,
    history: list[tuple[int, float]] | None = None,
    **config: Any,
) -> Path:
    """Write the record of a SimCLR run on digits with 10 epochs, and return its run directory."""
    chosen = {"method": "simclr", "aug": aug, "data": "digits", "epochs": 10, "seed": seed} | config
    record = a_record(
        config={"set": {"aug": options or {}}} | chosen,
        last={"knn": knn, "knn_projection": knn - 0.1, "linear": knn + 0.1},
        history=[{"epoch": e, "knn": k} for e, k in history or [(0, 0.1), (5, 0.3), (10, knn)]],
        time={"train_s": seconds, "fit_flops": fit_flops},
        data={"fingerprint": [fingerprint, fingerprint]},
        device={"type": device, "name": device},
        git_commit=commit,
    )
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def rows(*targets: str) -> list[dict[str, Any]]:
    return compare([Path(target) for target in targets or ("runs",)]).rows


def bench(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["compare", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def three_seeds() -> None:
    """Write three pairs of runs, in which CLAE beats none by 1, 2 and 6 points and takes twice as long."""
    for seed, (none, clae) in enumerate([(0.50, 0.51), (0.52, 0.54), (0.54, 0.60)]):
        write(f"a{seed}", seed=seed, knn=none, seconds=10 + seed)
        write(f"deep/b{seed}", aug="clae", seed=seed, knn=clae, seconds=20 + 2 * seed, options={"eps": 0.1})


def test_mean_std_and_paired_difference_by_hand() -> None:
    three_seeds()
    none, clae = rows()
    assert (none["aug"], none["seeds"], clae["aug"], clae["seeds"]) == ("none", 3, "clae", 3)
    assert none["knn_mean"] == pytest.approx(52)
    assert none["knn_std"] == pytest.approx(2)
    assert none["linear_mean"] == pytest.approx(62)
    assert none["knn_minus_baseline"] is None
    # 1, 2 and 6 have mean 3, variance (4 + 1 + 9) / 2 = 7. Student's t at 97.5 % (2 degrees of freedom) is 4.30265.
    half = 4.30265 * 7**0.5 / 3**0.5
    assert clae["knn_minus_baseline"] == pytest.approx(3)
    assert clae["knn_minus_baseline_low"] == pytest.approx(3 - half, abs=1e-4)
    assert clae["knn_minus_baseline_high"] == pytest.approx(3 + half, abs=1e-4)
    assert (clae["train_s_mean"], clae["time_relative"]) == (pytest.approx(22), pytest.approx(2))


def test_differences_to_another_augmentation() -> None:
    three_seeds()
    none, clae = compare([Path("runs")], against="clae").rows
    assert clae["knn_minus_baseline"] is None
    assert none["knn_minus_baseline"] == pytest.approx(-3)
    assert none["time_relative"] == pytest.approx(1 / 2)
    text = bench("runs", "--against", "clae", "--format", "markdown")
    assert "| Δ kNN to clae [95 %] |" in text
    assert "| × clae |" in text
    with pytest.raises(UsageError, match=r"^no run has the augmentation 'ida': there are clae, none$"):
        compare([Path("runs")], against="ida")


def test_interval_of_few() -> None:
    assert interval([1.0]) is None
    low, high = interval([0.0, 2.0]) or (0, 0)
    assert (low, high) == (pytest.approx(1 - 12.7062, abs=1e-4), pytest.approx(1 + 12.7062, abs=1e-4))  # std/√2 is 1


def test_pairs_are_by_seed_whatever_the_order_and_the_number() -> None:
    for seed, knn in ((0, 0.2), (1, 0.4), (2, 0.9)):
        write(f"none{seed}", seed=seed, knn=knn)
    for seed, knn in ((1, 0.41), (0, 0.21), (7, 0.1)):
        write(f"a-clae{seed}", aug="clae", seed=seed, knn=knn)
    clae = rows()[1]
    assert (clae["knn_pairs"], clae["knn_minus_baseline"]) == (2, pytest.approx(1))
    assert (clae["knn_minus_baseline_low"], clae["knn_minus_baseline_high"]) == (pytest.approx(1), pytest.approx(1))
    assert "+1.00 [+1.00, +1.00] of 2 pairs" in bench("runs", "--format", "markdown")


def test_one_seed_has_no_std_and_no_interval() -> None:
    write("none", knn=0.5)
    write("clae", aug="clae", knn=0.525)
    output = bench("runs", "--format", "markdown")
    assert "±" not in output
    assert "| +2.50 |" in output


def test_fitting_counts_as_compute() -> None:
    write("none", seconds=10, knn=0.5)
    write("idaa", aug="idaa", seconds=10, fit_flops=0.6e12, history=[(0, 0.1), (2, 0.3), (4, 0.5), (10, 0.9)], knn=0.9)
    none, idaa = rows()
    assert (none["flops"], idaa["flops"]) == (10**12, 1.6 * 10**12)
    assert idaa["knn_at_budget_mean"] == pytest.approx(50)  # 0.6 of the budget fit the VAE, so epoch 4 of 10 ends it.


def test_equal_compute_by_hand() -> None:
    write("none", seconds=10, knn=0.5)
    write("clae", aug="clae", seconds=40, history=[(0, 0.1), (2, 0.3), (4, 0.5), (10, 0.9)], knn=0.9)
    none, clae = rows()
    assert none["budget_flops"] == clae["budget_flops"] == 10**12  # 10 s, 100 images a second, 1 GFLOP each
    assert (clae["flops"], clae["flops_relative"]) == (4 * 10**12, 4)
    assert none["knn_at_budget_mean"] == pytest.approx(50)
    assert clae["knn_at_budget_mean"] == pytest.approx(35)  # The budget ends after 2.5 of 10 epochs.
    assert "kNN at 1 TFLOP, %" in bench("runs", "--format", "markdown")
    assert (
        accuracy_at({"history": [{"epoch": 0, "knn": 0.2}, {"epoch": 4, "knn": 0.6}], "config": {"epochs": 4}}, 0.5)
        == 0.4
    )


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 11},
        {"lr": 0.1},
        {"options": {"eps": 0.2}},
        {"fingerprint": "bbbbbbbb"},
        {"commit": "decade"},
        {"commit": None},
        {"commit": "c0ffee+"},
        {"batch_size": 7},
        {"precision": "16-mixed"},
        {"image_size": 64},
        {"limit_train": 64},
    ],
)
def test_only_seeds_are_averaged(change: dict[str, Any]) -> None:
    write("one", aug="clae", seed=0)
    write("two", aug="clae", seed=1, **change)
    assert [row["seeds"] for row in rows()] == [1, 1]


@pytest.mark.parametrize("change", [{"workers": 4}, {"data_dir": "elsewhere"}])
def test_what_changes_no_result_splits_no_group(change: dict[str, Any]) -> None:
    write("one", seed=0)
    write("two", seed=1, **change)
    assert [row["seeds"] for row in rows()] == [2]


def test_a_baseline_that_is_there_several_times() -> None:
    """Of the same plugin file if possible. Otherwise a note says why there is no difference."""
    for name, digest in (("a", "1" * 64), ("b", "2" * 64)):
        for aug in ("none", "clae"):
            place = write(f"{name}/{aug}", aug=aug) / "record.json"
            record = json.loads(place.read_text())
            record["versions"]["plugin x.py"] = f"sha256 {digest}"
            place.write_text(json.dumps(record))
    found = compare([Path("runs")])
    assert [row["knn_minus_baseline"] for row in found.rows] == [None, None, 0, 0]
    (note,) = found.notes
    assert note.startswith("Warning: the runs differ in plugin files (x.py 111111111, x.py 222222222)")
    write("c", aug="clae")
    *_, note = compare([Path("runs")]).notes
    assert note == (
        "Warning: simclr × clae has no difference from none, because several groups of none have its options and data: "
        "compare fewer directories."
    )


@pytest.mark.parametrize(
    ("column", "change", "shown", "why"),
    [
        ("data", {"fingerprint": "bbbbbbbb"}, "digits bbbbbb/bbbbbb", "and accuracies on different images cannot be"),
        ("epochs", {"epochs": 20}, "20", "and a longer training alone can raise accuracy."),
        ("commit", {"commit": "decade"}, "decade", "and a change of the code can change results."),
        ("device", {"device": "H200"}, "1 × H200, 2 CPU threads", "so their times cannot be compared."),
    ],
)
def test_groups_that_are_hard_to_compare_are_marked(column: str, change: dict[str, Any], shown: str, why: str) -> None:
    write("none", seconds=10)
    write("clae", aug="clae", seconds=30, **change)
    comparison = compare([Path("runs")])
    (note,) = comparison.notes
    assert note.startswith(f"Warning: the runs differ in {column} (")
    assert shown in note
    assert f"), {why}" in note
    assert [column in row for row in comparison.rows] == [True, True]
    none, clae = comparison.rows
    assert clae[column] == shown
    assert (clae["knn_minus_baseline"] is not None) == (column in ("commit", "device"))
    assert (clae["time_relative"] is not None) == (column == "commit")
    assert clae["budget_flops"] == (3 * 10**12 if column == "data" else 10**12)
    assert none["budget_flops"] == 10**12


@pytest.mark.parametrize(("second", "third"), [("H200", "H200"), ("cpu", "H200")])
def test_times_on_two_devices_are_compared_if_as_many_runs_used_each(second: str, third: str) -> None:
    for seed, (none, clae) in enumerate([("cpu", "cpu"), (second, "cpu"), ("H200", third)]):
        write(f"none-{seed}", seed=seed, seconds=10, device=none)
        write(f"clae-{seed}", aug="clae", seed=seed, seconds=30, device=clae)
    ratios = {row["aug"]: row["time_relative"] for row in rows()}
    assert ratios["clae"] == (3 if second == "cpu" else None)


def test_the_baseline_is_of_the_same_commit_and_the_same_other_options() -> None:
    write("none", knn=0.5, batch_size=64)
    write("none-old", knn=0.1, batch_size=64, commit="decade")
    write("none-large", knn=0.2, batch_size=128)
    write("clae", aug="clae", knn=0.6, batch_size=64, options={"eps": 0.1})
    assert [row["knn_minus_baseline"] for row in rows() if row["aug"] == "clae"] == [pytest.approx(10)]


def test_options_are_shown_where_rows_differ_and_once_where_all_share_them() -> None:
    """A row with a default says so if another row of its method or augmentation has another value."""
    write("none", backbone="resnet9-w2")
    write("clae", aug="clae", backbone="resnet9-w2", options={"eps": 0.03})
    write("clae2", aug="clae", backbone="resnet9-w2", options={"eps": 0.07})
    comparison = compare([Path("runs")])
    assert [row["options"] for row in comparison.rows] == ["", "aug.eps=0.03", "aug.eps=0.07"]
    assert "backbone=resnet9-w2" in comparison.shared
    for temperature in (0.5, 0.7):  # 0.5 is SimCLR's default.
        write(f"t{temperature}", set={"method": {"temperature": temperature}})
    assert [row["options"] for row in rows("runs/t0.5", "runs/t0.7")] == [
        "method.temperature=0.5",
        "method.temperature=0.7",
    ]


def test_a_run_of_a_plugin_that_is_not_installed_shows_all_its_options() -> None:
    write("none")
    write("gone", aug="long-gone", options={"eps": 0.5})
    assert rows()[0]["options"] == ""
    assert "aug.eps=0.5" in rows()[1]["options"]


def test_formats() -> None:
    three_seeds()
    (read,) = (list(csv.DictReader(io.StringIO(bench("runs", "--format", "csv")))),)
    assert [float(row["knn_mean"]) for row in read] == [pytest.approx(52), pytest.approx(55)]
    assert read[0]["knn_minus_baseline"] == ""
    markdown = bench("runs", "--format", "markdown").splitlines()
    assert {line.count("|") for line in markdown[:4]} == {markdown[0].count("|")}
    assert (
        "| simclr | clae | aug.eps=0.1 | 3 | 55.00 ± 4.58 | 45.00 ± 4.58 | 65.00 ± 4.58 | +3.00 [-3.57, +9.57]"
        in markdown[3]
    )
    latex = bench("runs", "--format", "latex")
    assert r"simclr & clae & aug.eps=0.1 & 3 & 55.00 $\pm$ 4.58" in latex
    assert r"kNN, \%" in latex
    assert "±" not in latex.partition(r"\begin")[2]
    terminal = bench("runs")
    assert "All groups: data digits aaaaaa/aaaaaa, epochs 10, commit c0ffee, device 1 × cpu, 2 CPU threads" in terminal


@pytest.mark.parametrize(
    ("name", "start"), [("t.md", "| method |"), ("t.csv", "method,aug"), ("t.tex", "% All groups")]
)
def test_the_ending_of_the_file_decides(name: str, start: str) -> None:
    write("none")
    assert f"Written to {name}" in bench("runs", "--out", name)
    assert Path(name).read_text().startswith(start)


def test_an_unknown_ending_is_refused() -> None:
    write("none")
    done = CliRunner().invoke(main, ["compare", "runs", "--out", "table.xls"])
    assert (done.exit_code, "expected a name that ends in .md, .csv, .tex" in done.output) == (2, True)


def test_unfinished_runs_are_counted_and_left_out() -> None:
    write("none")
    Path("runs/half").mkdir()
    Path("runs/half/config.toml").write_text('method = "simclr"\n')
    (Path("runs/none") / "config.toml").write_text('method = "simclr"\n')
    comparison = compare([Path("runs")])
    assert comparison.notes == ["Left out: 1 unfinished, without a record: runs/half."]
    assert len(comparison.rows) == 1


def test_curves_on_other_images_are_named() -> None:
    write("none")
    folder = write("later", seed=1)
    record = json.loads((folder / "record.json").read_text())
    for entry in record["history"]:
        entry["knn_validation"] = entry["knn"]
    (folder / "record.json").write_text(json.dumps(record))
    (note,) = compare([Path("runs")]).notes
    assert note.startswith("Warning: learning curves of schema 2 and older are on the test images")


def test_a_folder_given_twice_counts_once_but_a_copy_is_refused() -> None:
    write("none")
    assert [row["seeds"] for row in rows("runs", "runs/none")] == [1]
    write("copy")
    with pytest.raises(UsageError, match=r"none and .*copy are the same run|copy and .*none are the same run"):
        compare([Path("runs")])


def test_nothing_there() -> None:
    with pytest.raises(FileFormatError, match=r"nowhere holds no finished run of idaa-bench run: expected one"):
        compare([Path("nowhere")])
    folder = write("none")
    (folder / "record.json").write_text('{"schema": 1}')
    with pytest.raises(FileFormatError, match=r"record.json is damaged: config: Field required"):
        compare([Path("runs")])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_cuts_no_figure(width: int) -> None:
    for seed in (0, 1):
        write(f"none-{seed}", seed=seed, knn=0.5 + 0.01 * seed)
        write(f"clae-{seed}", seed=seed, aug="clae", knn=0.525 + 0.005 * seed, options={"eps": 0.1 + 0.2})
    terminal = CliRunner(env={"FORCE_COLOR": "1", "COLUMNS": str(width), "NO_COLOR": "1"})
    output = click.unstyle(terminal.invoke(main, ["compare", "runs"]).output)
    table = [line for line in output.splitlines() if line[:1] in "┏┃┡│└"]
    assert max(map(len, table)) <= width
    assert "…" not in output
    figures = ["50.50 ± 0.71", "52.75 ± 0.35", "60.50 ± 0.71", "62.75 ± 0.35", "+2.25 [-0.93, +5.43]"]
    assert all(any(f" {figure} " in line for line in table) for figure in figures)
    assert "All groups: method simclr, seeds 2, not shown at this width: images/s; " in output


def test_a_pipe_gets_markdown_at_full_width() -> None:
    write("none")
    assert bench("runs").splitlines()[0].startswith("| method | aug | seeds | kNN, % | kNN on the projection, % |")
