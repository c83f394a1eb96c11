"""Render the measurements in results/*.json into cost.md, between `<!-- costs -->` and `<!-- end -->`.

python benchmarks/costs.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from idaa_lightly.bench.compare.text import markdown
from idaa_lightly.files import atomic_write

HERE = Path(__file__).parent
SECTION = re.compile(r"(<!-- costs -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(page: str) -> str:
    """Return a page with its section of costs rendered from results/*.json.

    Args:
        page: Text of README.md.
    """
    found = {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))}
    parts = [markdown(["what", "against", "target", "measured", "command"], [list(row) for row in _rows(found)])]
    parts += [_forms(found["step_cost_forms"])] if "step_cost_forms" in found else []
    parts += [_growth_of_step(found["step_cost_growth"]), _growth_of_views(found["views_cost_growth"])]
    parts += [_growth_of_knn(found["knn_cost_growth"]), _machines(found)]
    text = "\n\n".join(parts)
    return SECTION.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page)


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the main table of costs."""
    (step,) = found["step_cost"]["settings"]
    command, plain = "`step_cost.py`", "SimCLR's step, ResNet-18, 32 px"
    for name, reach in (
        ("IDAA", "≤ 1.90 × FLOPs, ≤ 2.0 × time, ≤ 1.55 × memory"),
        ("IDAA, reused", "approximate; about 1.71 ×"),
        ("IDAA, half", "approximate"),
        ("IDAA, random", "the control"),
        ("CLAE", ""),
    ):
        ratio = step["steps"][name]["relative"]
        seen = [f"{ratio[key]:.2f} × {unit}" for key, unit in COSTS.items()]
        yield f"step of {name}", plain, reach, ", ".join(seen), command
    views, blurred = found["views_cost"]["settings"]
    for row, name in ((views, ""), (blurred, ", with blur at p = 0.5")):
        faster = row["faster_than"]
        seen = f"{faster['lightly']:.1f} × (kornia's: {faster['lightly'] / faster['kornia']:.1f} ×)"
        peer = "Lightly's SimCLRTransform, image by image on PIL"
        yield f"views a CPU-second, {row['image_size']} px{name}", peer, "≥ 4 ×", seen, "`views_cost.py`"
    knn = found["knn_cost"]
    for row, reach in zip(knn["exact"], ("≥ 1.35 ×", "≥ 1.5 ×", "≥ 3.5 ×; ≥ 10 × less extra memory"), strict=True):
        what = "exact kNN, {bank} × {dimension}, {queries} queries, {classes} classes".format(**row)
        seen = f"{row['faster']:.2f} × faster, {row['less_memory']:.1f} × less extra memory"
        yield what, "Lightly's `knn_predict`, batches of 512", reach, seen, "`knn_cost.py`"
    many, half = knn["settings"], knn["half"]
    seen = f"{many['faster_than_so_many_runs_of_lightly']:.0f} × faster; {many['all_over_one']:.2f} × one of ours"
    yield (
        f"{many['settings']} settings of k and T in one search",
        "as many calls of Lightly; one of ours",
        "≥ 25 ×; ≤ 1.2 ×",
        seen,
        "`knn_cost.py`",
    )
    seen = f"{half['bytes']:.1f} × the bytes, {half['points']:+.2f} points, {half['time']:.2f} × the time"
    yield "bank in float16", "in float32", "half, ≤ 0.05 points, ≤ 1.5 ×", seen, "`knn_cost.py`"
    start = found["startup_cost"]
    later, evaluation = start["to_first_step_s"] - start["of_it_evaluation_s"], start["first_evaluation_s"]
    seen = f"{start['first_time_s'] - evaluation:.2f} s, {later:.2f} s when repeated in the process, "
    seen += f"beyond {start['imports_s']:.1f} s of imports and {evaluation:.1f} s of evaluating the untrained network"
    yield "start to the first step, digits", "—", "< 2 s", seen, "`startup_cost.py`"
    yield "NT-Xent", "Lightly's", "no slower, no more memory", "it is Lightly's", "—"


def _forms(found: dict[str, Any]) -> str:
    """Return a table of the forms of a further view."""
    (step,) = found["settings"]
    rows = [[name, *(f"{entry['relative'][key]:.2f}" for key in COSTS)] for name, entry in step["steps"].items()]
    caption = f"A step of every form, × SimCLR's, {step['backbone']}, {step['image_size']} px, `step_cost.py --forms`:"
    return f"{caption}\n\n{markdown(['step', *COSTS.values()], rows)}"


COSTS = {"flops_per_image": "FLOPs", "seconds": "time", "peak_bytes": "peak memory"}


def _growth_of_step(content: dict[str, Any]) -> str:
    rows = []
    for setting in content["settings"]:
        steps = setting["steps"]
        names = ("SimCLR", "IDAA, random", "IDAA", "IDAA, reused", "IDAA, half")
        rates = [f"{setting['batch_size'] / steps[name]['seconds']:.0f}" for name in names]
        rows.append([f"{setting['image_size']} px", str(setting["batch_size"]), *rates])
    header = ["image", "batch", "SimCLR", "random", "IDAA", "reused", "half"]
    return f"Images a CPU-second, `step_cost.py --growth`, ResNet-18 of width 16:\n\n{markdown(header, rows)}"


def _growth_of_views(content: dict[str, Any]) -> str:
    rows = []
    for setting in content["settings"]:
        spent = setting["microseconds_a_view"]
        blur = "yes" if setting["p_of_blur"] else "no"
        cells = [f"{spent[name]:.0f}" for name in ("lightly", "kornia", "ours")]
        rows.append([f"{setting['image_size']} px", str(setting["batch_size"]), blur, *cells])
    header = ["image", "batch", "blur", "Lightly on PIL", "kornia", "DeviceViews"]
    return f"CPU-microseconds a view, `views_cost.py --growth`:\n\n{markdown(header, rows)}"


def _growth_of_knn(content: dict[str, Any]) -> str:
    rows = []
    for row in content["exact"]:
        both = [f"{row[name]['seconds']:.2f}" for name in ("lightly", "ours")]
        rows.append([str(row["bank"]), str(row["classes"]), *both, f"{row['faster']:.2f} ×"])
    queries = content["exact"][0]["queries"]
    header = ["bank", "classes", "Lightly", "ours", "faster"]
    return f"CPU-seconds of exact kNN, `knn_cost.py --growth`, {queries} queries:\n\n{markdown(header, rows)}"


def _machines(found: dict[str, Any]) -> str:
    """Return a sentence on the machine, versions and commit of each measurement."""
    lines = []
    for name, content in found.items():
        device, versions = content["device"], content["versions"]
        where = f"{device['count']} × {device['name']} ({device['torch_threads']} thread)"
        commit = (content["git_commit"] or "no commit")[:9]
        lines.append(f"{name}: {where}, torch {versions['torch']}, lightly {versions['lightly']}, {commit}")
    return "Measured on: " + "; ".join(lines) + "."


if __name__ == "__main__":
    page = HERE / "cost.md"
    with atomic_write(page) as temporary:
        temporary.write_text(rendered(page.read_text()))
