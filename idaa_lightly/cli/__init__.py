"""`idaa-bench`: parse, call, print. One file per command. Torch is imported only when a command needs it."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from idaa_lightly.cli.compare import compare
from idaa_lightly.cli.embed import embed
from idaa_lightly.cli.export import export
from idaa_lightly.cli.finetune import finetune
from idaa_lightly.cli.identity import identity
from idaa_lightly.cli.knn import knn
from idaa_lightly.cli.linear import linear
from idaa_lightly.cli.plugins import plugins
from idaa_lightly.cli.report import report
from idaa_lightly.cli.run import run
from idaa_lightly.cli.sweep import sweep
from idaa_lightly.cli.table import table
from idaa_lightly.cli.terminal import messages_on
from idaa_lightly.cli.transfer import transfer
from idaa_lightly.cli.vae import vae
from idaa_lightly.errors import IDAAError


class Commands(click.Group):
    """Commands that end in one sentence and an exit code if something is wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        ctx.obj = Console(markup=False)
        try:
            with messages_on(ctx.obj):
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
            hints = {
                "run": " The same command with --resume goes on after the last finished epoch.",
                "sweep": " The same command goes on where it was.",
                "transfer": " The same command goes on where it was.",
                "table": " The same command goes on where it was.",
                "linear": " The same command goes on with the next protocol.",
                "finetune": " The same command goes on with the next share of the labels.",
            }
            click.echo("Interrupted." + hints.get(ctx.invoked_subcommand or "", ""), err=True)
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="idaa-lightly")
def main() -> None:
    """Trains and evaluates self-supervised vision models with adversarial views that keep a sample's identity.

    \b
    idaa-bench run                                  SimCLR with IDAA on scikit-learn's digits, about two minutes
    idaa-bench run --data cifar10 --aug clae        a rival on CIFAR-10, 300 epochs
    idaa-bench sweep --aug none,idaa --seeds 0-4    every combination once; restartable; here or on a cluster
    idaa-bench compare runs                         mean ± std, paired differences, accuracy at equal compute
    idaa-bench report runs --out report.html        the same and all plots, as one page to send
    idaa-bench identity RUN                         are the views hard, and do they keep the identity?
    idaa-bench table laptop                         a published table: runs what is missing, and renders it
    idaa-bench plugins                              what --method and --aug can be
    idaa-bench knn RUN                              evaluates a run again, or features of your own
    idaa-bench linear RUN                           a linear layer on its features, by one protocol or several
    idaa-bench transfer RUN --to dtd,pets           the same on other data sets
    idaa-bench embed RUN --out features.npz         its features; export: its weights
    idaa-bench finetune RUN --labels 1%,10%         its backbone, trained on a few labels
    """


for command in (
    table,
    run,
    sweep,
    compare,
    report,
    vae,
    knn,
    linear,
    finetune,
    identity,
    transfer,
    embed,
    export,
    plugins,
):
    main.add_command(command)
