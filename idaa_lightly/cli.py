"""`idaa-bench`: parses, calls, prints. Imports torch only when a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
from rich.console import Console
from rich.table import Table

from idaa_lightly import registry
from idaa_lightly.bench.config import RunConfig, parse_set, read_toml
from idaa_lightly.errors import IDAAError, UsageError, suggestion

KINDS: tuple[registry.Kind, ...] = get_args(registry.Kind)
VAE_FIELDS = (
    "method",
    "data",
    "data_dir",
    "image_size",
    "limit_train",
    "epochs",
    "seed",
    "set",
    "accelerator",
)


class Commands(click.Group):
    """Ends in one sentence and an exit code where something is wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except IDAAError as error:
            text = str(error).strip()
            if "Original Traceback" in text:  # of a loader's process, the last line is the message
                text = text.splitlines()[-1]
            text = " ".join(text.split())
            click.echo(
                f"Error: {text.removeprefix(type(error).__module__ + '.' + type(error).__name__ + ': ')}",
                err=True,
            )
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            hint = " The same command with --resume goes on after the last finished epoch."
            click.echo("Interrupted." + (hint if ctx.invoked_subcommand == "run" else ""), err=True)
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="idaa-lightly")
def main() -> None:
    r"""Trains and evaluates self-supervised vision models with adversarial views that keep a sample's identity.

    \b
    idaa-bench run                                  SimCLR with IDAA on scikit-learn's digits, about two minutes
    idaa-bench run --data cifar10 --aug clae        a rival on CIFAR-10, 300 epochs
    idaa-bench plugins                              what --method and --aug can be
    idaa-bench knn RUN                              evaluates a run again, or features of your own
    """


def config_options(*names: str) -> Callable[[Any], Any]:
    """Click options for these fields of RunConfig; for all of them where none is named."""
    types = get_type_hints(RunConfig)

    def decorate(command: Any) -> Any:
        for item in reversed(fields(RunConfig)):
            if names and item.name not in names:
                continue
            kind = next((kind for kind in get_args(types[item.name]) if kind in (int, float)), types[item.name])
            extra = {"is_flag": True} if kind is bool else {"type": kind if kind in (int, float) else str}
            flag = item.name.replace("_", "-")
            shown = f"  [default: {item.default}]" if type(item.default) in (str, int, float) else ""
            command = click.option(
                f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
                item.name,
                default=None,
                help=item.metadata["help"] + shown,
                **(extra | item.metadata["click"]),
            )(command)
        return command

    return decorate


@main.command()
@config_options()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder. Default: runs/DATA-METHOD-AUG-..., new for each configuration.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same configuration.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="TOML file with any of these options, such as a run's config.toml; the command line wins.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
def run(out: Path | None, resume: bool, config_file: Path | None, dry_run: bool, **given: Any) -> None:
    r"""Train, evaluate by kNN and a linear probe, and leave a run folder.

    Without options: SimCLR with IDAA on scikit-learn's digits, a small ResNet, about two minutes on two cores.

    The folder holds config.toml (feeding it back repeats the run), record.json, metrics.csv, curves.png, views.png,
    backbone.pt (a plain state dict) and checkpoints/last.ckpt.

    \b
    Examples:
      idaa-bench run --data folder:PATH --backbone resnet18 --epochs 100 --seed 0 --seed 1 --seed 2
      idaa-bench run --aug idaa --set aug.eps=0.1 --set method.temperature=0.2
      idaa-bench run --config runs/OLD/config.toml --seed 7
    """
    configs = _configs(given, config_file)
    from idaa_lightly.bench import prepare
    from idaa_lightly.bench import run as bench

    console = _console()
    resolved = [prepare.resolve(config) for config in configs]
    if dry_run:
        prepare.make_augmentation(resolved[0])  # refuses values out of range
        click.echo(resolved[0].to_toml() + f"# seeds: {', '.join(str(config.seed) for config in configs)}")
        return
    first = resolved[0]
    slug = f"{first.data.split(':')[0]}-{first.method}-{first.aug}-{first.key()}"
    base = out or Path("runs") / slug
    records = []
    for config in resolved:
        folder = base / f"seed-{config.seed}" if len(resolved) > 1 else base
        if out is None and len(resolved) == 1:
            folder = base.with_name(f"{slug}-seed{config.seed}")
        records.append((folder, bench.run(config, folder, resume=resume, console=console)))
    records = [(folder, record) for folder, record in records if record]  # of DDP's processes one reports
    if records:
        console.print(_run_table(records))
        console.print(f"Run folder: {base if len(records) > 1 else records[0][0]}", soft_wrap=True, highlight=False)


@main.command()
@config_options(*VAE_FIELDS)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write, for --vae of `idaa-bench run`.",
)
@click.option("--force", is_flag=True, help="Overwrite the file.")
def vae(out: Path, force: bool, **given: Any) -> None:
    r"""Train IDAA's VAE alone, on a method's augmented views. The images need no classes.

    \b
    Example:
      idaa-bench vae --data folder:PATH --epochs 300 --set aug.beta=0.1 --out vae.pt
    """
    taken = next((path for path in out.parents if path.exists() and not path.is_dir()), None)
    if taken or out.is_dir():
        raise UsageError(f"{out} cannot be written, since {taken or out} is {'no' if taken else 'a'} folder")
    if out.exists() and not force:
        raise UsageError(f"{out} exists: choose another --out, or add --force")
    (config,) = _configs(given | {"aug": "idaa"}, None, several=False)
    from idaa_lightly.bench.vae import train_vae

    error = train_vae(config, out, _console())
    click.echo(f"Mean squared error of the reconstruction: {error:.4f}. Written to {out}")


@main.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--k", default=200, show_default=True, help="Neighbours that vote.")
@click.option("--temperature", default=0.1, show_default=True, help="Votes weigh exp(cosine / temperature).")
def knn(target: Path, k: int, temperature: float) -> None:
    """Evaluate by weighted kNN: a run folder, a checkpoint of one, or a file of features.

    TARGET is a run folder, its checkpoints/last.ckpt, or an .npz with train_features (N, D), train_labels (N,),
    test_features (M, D) and test_labels (M,).
    """
    from idaa_lightly.bench.evaluate import evaluate_knn

    result = evaluate_knn(target, k, temperature, _console())
    table = Table("bank", "queries", "k", "temperature", "top-1", "top-5", "search")
    table.add_row(*(str(result[name]) for name in ("bank", "queries", "k", "temperature")),
                  f"{100 * result['top1']:.2f} %", f"{100 * result['top5']:.2f} %", result["backend"])  # fmt: skip
    _console().print(table)


@main.group(invoke_without_command=True)
@click.option("--matrix", is_flag=True, help="Print which method goes with which augmentation, and why not.")
@click.pass_context
def plugins(ctx: click.Context, matrix: bool) -> None:
    """List the installed methods and augmentations; `plugins show NAME` prints one's options."""
    if matrix:
        _print_matrix()
    elif ctx.invoked_subcommand is None:
        table = Table("kind", "name", "distribution", "defined in")
        for kind in KINDS:
            for entry in registry.entries(kind):
                table.add_row(kind, entry.name, f"{entry.distribution} {entry.version}", entry.target)
        _console().print(table)


@plugins.command()
@click.argument("name")
def show(name: str) -> None:
    """Print what a method or augmentation is, its options, their defaults and its source."""
    found: list[registry.Kind] = [
        kind for kind in ("method", "augmentation") if name in {entry.name for entry in registry.entries(kind)}
    ]
    if not found:
        known = [entry.name for kind in KINDS for entry in registry.entries(kind)]
        raise UsageError(f"no method or augmentation {name!r}; installed: {', '.join(known)}.{suggestion(name, known)}")
    import inspect

    for kind in found:
        plugin = registry.load(kind, name)
        from idaa_lightly.options import options_of

        click.echo(f"{kind} {name}: {(inspect.getdoc(plugin) or '').partition('Args:')[0].strip()}\n")
        table = Table("option", "type", "default", "meaning")
        prefix = "aug" if kind == "augmentation" else kind
        for option in options_of(plugin).values():
            table.add_row(f"{prefix}.{option.name}", option.type_name, str(option.default), option.help)
        _console().print(table)


def _print_matrix() -> None:
    """Methods × augmentations, with a number where a pair is refused, and the reasons below."""
    pairs, broken = registry.refusals()
    methods, augmentations = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    reasons = list(dict.fromkeys(f"{aug}: {reason}" for (_, aug), reason in pairs.items() if reason))
    table = Table("method", *augmentations, box=None, pad_edge=False)
    for method in methods:
        refused = [(f"{aug}: {pairs[method, aug]}", pairs[method, aug]) for aug in augmentations]
        table.add_row(method, *(str(1 + reasons.index(reason)) if text else "✓" for reason, text in refused))
    console = _console()
    console.width = max(console.width, 200)  # a matrix of cut names says nothing
    console.print(table)
    for number, reason in enumerate(reasons, 1):
        click.echo(f"{number}  {reason}")
    for error in broken:
        click.echo(f"left out: {error}")


def _console() -> Console:
    return Console(markup=False)  # a path may hold brackets


def _configs(given: dict[str, Any], file: Path | None, *, several: bool = True) -> list[RunConfig]:
    """The configurations that the options, over the file's, ask for: one a seed.

    Where the command line names another plugin than the file, the file's options of that plugin are left out.
    """
    values = read_toml(file) if file else {}
    other = {kind for kind in ("method", "aug") if kind in values and given.get(kind) not in (None, values[kind])}
    options = {kind: dict(items) for kind, items in values.pop("set", {}).items() if kind not in other}
    for kind, items in parse_set(given.pop("set", ())).items():
        options.setdefault(kind, {}).update(items)
    seeds = given.pop("seed", ()) or (values.pop("seed", 0),)
    values.pop("seed", None)
    values |= {name: value for name, value in given.items() if value is not None}
    if len(set(seeds)) < len(seeds) or (len(seeds) > 1 and not several):
        raise UsageError(
            f"--seed is {', '.join(map(str, seeds))}, but expected {'different ones' if several else 'one'}"
        )
    config = RunConfig(**values, set=options)
    return [replace(config, seed=seed) for seed in seeds]


def _run_table(records: list[tuple[Path, dict[str, Any]]]) -> Table:
    """Accuracies of runs that differ in their seed, with mean ± standard deviation where there are several."""
    from statistics import mean, stdev

    rows: dict[str, Callable[[dict[str, Any]], float]] = {
        "kNN at init, %": lambda record: 100 * record["initial"]["knn"],
        "kNN, %": lambda record: 100 * record["last"]["knn"],
        "kNN of the best epoch*, %": lambda record: 100 * record["best"]["knn"],
        "linear at init, %": lambda record: 100 * record["initial"]["linear"],
        "linear, %": lambda record: 100 * record["last"]["linear"],
        "training, s": lambda record: record["time"]["train_s"],
        "images/s": lambda record: record["time"]["images_per_s"],
    }
    config = records[0][1]["config"]
    table = Table(
        f"top-1 of {config['method']} × {config['aug']}",
        *(f"seed {record['config']['seed']}" for _, record in records),
        *(["mean ± std"] if len(records) > 1 else []),
        caption="on the test images, after the last epoch; * chosen on them: optimistic",
    )
    for name, value in rows.items():
        values = [value(record) for _, record in records]
        summary = [f"{mean(values):.2f} ± {stdev(values):.2f}"] if len(values) > 1 else []
        table.add_row(name, *(f"{number:.2f}" for number in values), *summary)
    return table


if __name__ == "__main__":
    sys.exit(main())
