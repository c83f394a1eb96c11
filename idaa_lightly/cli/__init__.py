"""Command line `idaa-bench`, one file per command. Torch is imported only by commands that need it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from idaa_lightly.bench.ranks import is_first_process
from idaa_lightly.bench.run.ranks import supervisor
from idaa_lightly.cli.ablate import ablate
from idaa_lightly.cli.compare import compare
from idaa_lightly.cli.detect import detect
from idaa_lightly.cli.embed import embed
from idaa_lightly.cli.export import export
from idaa_lightly.cli.finetune import finetune
from idaa_lightly.cli.identity import identity
from idaa_lightly.cli.knn import knn
from idaa_lightly.cli.linear import linear
from idaa_lightly.cli.plugins import plugins
from idaa_lightly.cli.plugins import show as plugins_show
from idaa_lightly.cli.report import report
from idaa_lightly.cli.requeue import requeue
from idaa_lightly.cli.run import run
from idaa_lightly.cli.semi import semi
from idaa_lightly.cli.sweep import sweep
from idaa_lightly.cli.table import table
from idaa_lightly.cli.terminal import ARGUMENTS, machine_errors, messages_on
from idaa_lightly.cli.transfer import transfer
from idaa_lightly.cli.vae import vae
from idaa_lightly.errors import IDAAError
from idaa_lightly.registry import add_file


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C asks the process to end. It is handled like Ctrl-C.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, and on SIGUSR1 and SIGUSR2, which announce the end of Slurm jobs.

    Further signals are ignored, so that they cannot interrupt the cleaning up. Only default handlers are replaced.
    """
    names = ("SIGTERM", "SIGUSR1", "SIGUSR2") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows lacks the last two.
    process = os.getpid()
    got: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if not got and os.getpid() == process:  # Forked workers of a data loader end with this process.
            got.append(number)
            child = getattr(signal, "SIGCHLD", number)
            if callable(signal.getsignal(child)):  # Torch's handler raises if the signal ends its workers as well.
                before[child] = signal.signal(child, lambda *_: None)
            raise Terminated(number)

    free = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    before = {number: signal.signal(number, stop) for number in free}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Commands(click.Group):
    """Command group that turns errors into one sentence and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Keep them for commands that repeat themselves in other processes."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Print errors and interruptions as one sentence."""
        ctx.obj, arguments = Console(markup=False), list(ctx.args)
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # Read by torch when it is imported.
        supervisor()  # From here on, a rank ends with the process that watches it.
        try:
            with messages_on(ctx.obj), machine_errors(), _signals_interrupt():
                return super().invoke(ctx)
        except IDAAError as error:
            text = str(error).strip()
            if "Original Traceback" in text:  # From a worker of the data loader. The last line is the message.
                text = text.splitlines()[-1]
            text = " ".join(text.split()).removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
            if watching := supervisor():  # It shows one of the ranks' messages, which are often the same.
                watching.send(text)
            else:
                click.echo(f"Error: {text}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as stop:
            hints = {
                "run": " Repeat the command with --resume to continue after the last finished epoch.",
                "semi": " Repeat the command with --resume to continue after the last finished epoch.",
                "detect": " Repeat the command with --resume to continue after the last checkpoint.",
                "sweep": " Repeat the command to continue.",
                "ablate": " Repeat the command to continue.",
                "transfer": " Repeat the command to continue.",
                "table": " Repeat the command to continue.",
                "linear": " Repeat the command to continue with the interrupted protocol.",
                "finetune": " Repeat the command to continue with the interrupted share of the labels.",
            }
            number = stop.number if isinstance(stop, Terminated) else signal.SIGINT
            name = f" by {signal.Signals(number).name}" * isinstance(stop, Terminated)
            hint = hints.get(ctx.invoked_subcommand or "", "")
            if supervisor():
                ctx.exit(128 + number)  # The process that watches this rank prints the message.
            if number == getattr(signal, "SIGUSR1", 0) and ctx.invoked_subcommand == "run" and "--resume" in arguments:
                hint = requeue() or hint
            if is_first_process():  # With DDP, all processes come here.
                click.echo(f"Interrupted{name}.{hint}", err=True)
            ctx.exit(128 + number)  # 130 after Ctrl-C and 143 after SIGTERM, as in shells.


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="idaa-lightly")
def main() -> None:
    """Train and evaluate self-supervised vision models with adversarial views that keep a sample's identity.

    Every training run writes a run directory, which the other commands read. RUN stands for a run directory.

    \b
    Train:
      idaa-bench run                                  SimCLR with IDAA on scikit-learn's digits, about a minute
      idaa-bench run --data cifar10 --aug clae        SimCLR with CLAE on CIFAR-10, 300 epochs
      idaa-bench sweep --aug none,idaa --seeds 0-4    every combination; can be interrupted and repeated
      idaa-bench semi --data cifar10 --labels 250     FixMatch with IDAA: a classifier from a few labels
      idaa-bench vae --epochs 300 --out vae.pt        IDAA's VAE alone, for --vae of several runs
      idaa-bench plugins                              values of --method and --aug

    \b
    Compare:
      idaa-bench ablate --aug idaa                    does the augmentation help, and which part of it?
      idaa-bench compare runs                         mean ± std, paired differences, accuracy at equal compute
      idaa-bench report runs --out report.html        the same table and all plots, as one HTML page
      idaa-bench table laptop                         a published table; its missing runs are trained first

    \b
    Evaluate:
      idaa-bench knn RUN                              kNN on frozen features of a run, or on your own features
      idaa-bench linear RUN                           linear layer on frozen features, by several protocols
      idaa-bench finetune RUN --labels 1%,10%         fine-tuning of the backbone on a few labels
      idaa-bench transfer RUN --to dtd,pets           linear layer on frozen features of other data sets
      idaa-bench detect RUN --data coco:PATH          Mask R-CNN on the backbone: box and mask AP
      idaa-bench identity RUN                         are the views hard, and do they keep the identity?

    \b
    Export:
      idaa-bench embed RUN --out features.npz         features of a run's images
      idaa-bench export RUN --out resnet18.pth        weights of a run's backbone, for torchvision or timm
    """


def _add_files(ctx: click.Context, option: click.Parameter, paths: tuple[Path, ...]) -> None:
    for path in paths:
        add_file(path)


PLUGIN = click.Option(
    ["--plugin"],
    multiple=True,
    expose_value=False,
    is_eager=True,
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_add_files,
    metavar="FILE.py",
    help="Python file whose plugin classes become names: the class MyViews is my-views. The code of the file is run, "
    "so a run directory never names one. Can be repeated.",
)

for command in (
    table,
    run,
    semi,
    sweep,
    ablate,
    compare,
    report,
    vae,
    knn,
    linear,
    finetune,
    detect,
    identity,
    transfer,
    embed,
    export,
    plugins,
):
    main.add_command(command)
for command in {*main.commands.values(), plugins_show}:
    command.params.append(PLUGIN)
