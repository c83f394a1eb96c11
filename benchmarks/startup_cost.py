"""Time from `idaa-bench run` to the first training step on digits, without imports, and the evaluation's share of it.

python benchmarks/startup_cost.py
"""

from __future__ import annotations

import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.console import Console

BEGUN = time.process_time()


class Reached(Exception):
    """Raised at the first training step."""


@click.command()
@click.option("--aug", default="none", show_default=True, help="Augmentation. idaa fits its VAE before the first step.")
@click.option("--repeats", default=3, show_default=True, help="Measured starts. The fastest counts.")
def main(aug: str, repeats: int) -> None:
    """Measure the start of a run in CPU seconds, and write results/startup_cost.json beside this file."""
    from idaa_lightly.bench.config import RunConfig
    from idaa_lightly.bench.run.train import run
    from idaa_lightly.evaluation.search import faiss_available
    from idaa_lightly.registry import load
    from idaa_lightly.training import Evaluation, SelfSupervised

    evaluate, evaluations = Evaluation.on_fit_start, []

    def timed(*args: Any) -> None:
        start = time.process_time()
        evaluate(*args)
        evaluations.append(time.process_time() - start)

    def stop(*args: Any) -> None:
        raise Reached

    Evaluation.on_fit_start, SelfSupervised.training_step = timed, stop  # type: ignore[method-assign]
    import_module("sklearn.datasets")  # A run imports this and the following only when it needs them.
    if faiss_available():
        import_module("faiss")
    load("method", RunConfig().method)
    load("augmentation", aug)
    imports, times = time.process_time() - BEGUN, []
    for _ in range(repeats):
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                run(RunConfig(aug=aug, accelerator="cpu"), Path(folder) / "run")
            except Reached:
                times.append(time.process_time() - start)
    from measure import save

    content = {"aug": aug, "imports_s": imports, "to_first_step_s": min(times), "first_time_s": times[0]}
    content |= {"of_it_evaluation_s": evaluations[times.index(min(times))], "first_evaluation_s": evaluations[0]}
    Console().print(content)
    Console().print(f"Written to {save('startup_cost', content)}")


if __name__ == "__main__":
    main()
