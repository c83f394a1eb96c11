"""Command `idaa-bench plugins`."""

from __future__ import annotations

import click
from rich.table import Table

from idaa_lightly import registry
from idaa_lightly.cli.terminal import console
from idaa_lightly.errors import UsageError, suggestion

KINDS = registry.KINDS


@click.group(invoke_without_command=True)
@click.option("--matrix", is_flag=True, help="Print which methods go with which augmentations, with reasons if not.")
@click.pass_context
def plugins(ctx: click.Context, matrix: bool) -> None:
    """List the installed methods, augmentations and backbones.

    They are the values of --method, --aug and --backbone. `idaa-bench plugins show NAME` prints the options of one of
    them.
    """
    if matrix:
        _print_matrix()
    elif ctx.invoked_subcommand is None:
        table = Table(
            "kind",
            "name",
            "distribution",
            "defined in",
            caption="--backbone also takes the networks of torchvision and timm, such as resnet18 and convnext_atto",
        )
        for kind in KINDS:
            for entry in registry.entries(kind):
                table.add_row(kind, entry.name, f"{entry.distribution} {entry.version}", entry.target)
        console().print(table)


@plugins.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the description, source and options of a method or augmentation.

    NAME is a value of --method or --aug, such as simclr or idaa. Set its options with --set of `idaa-bench run`.
    """
    found: list[registry.Kind] = [kind for kind in KINDS if name in {entry.name for entry in registry.entries(kind)}]
    if not found:
        known = [entry.name for kind in KINDS for entry in registry.entries(kind)]
        raise UsageError(f"no plugin {name!r}; installed: {', '.join(known)}.{suggestion(name, known)}")
    import inspect

    for kind in found:
        plugin = registry.load(kind, name)
        from idaa_lightly.options import options_of

        click.echo(f"{kind} {name}: {(inspect.getdoc(plugin) or '').partition('Args:')[0].strip()}\n")
        table = Table("option", "type", "default", "meaning")
        prefix = "aug" if kind == "augmentation" else kind
        for option in options_of(plugin).values():
            table.add_row(f"{prefix}.{option.name}", option.type_name, str(option.default), option.help)
        console().print(table)


def _print_matrix() -> None:
    """Print methods × augmentations: a number for each pair that is refused, and the numbered reasons below."""
    pairs, broken = registry.refusals()
    methods, augmentations = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    reasons = list(dict.fromkeys(f"{aug}: {reason}" for (_, aug), reason in pairs.items() if reason))
    table = Table("method", *augmentations, box=None, pad_edge=False)
    for method in methods:
        refused = [(f"{aug}: {pairs[method, aug]}", pairs[method, aug]) for aug in augmentations]
        table.add_row(method, *(str(1 + reasons.index(reason)) if text else "✓" for reason, text in refused))
    terminal = console()
    terminal.width = max(terminal.width, 200)  # so that names are not cut
    terminal.print(table)
    for number, reason in enumerate(reasons, 1):
        click.echo(f"{number}  {reason}")
    for error in broken:
        click.echo(f"left out: {error}")
