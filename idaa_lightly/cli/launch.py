"""Start of training commands: the resolved configuration shown, or a process per device."""

from __future__ import annotations

from collections.abc import Sequence

import click

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.cli.terminal import ARGUMENTS


def shown(resolved: Sequence[RunConfig]) -> None:
    """Print the configuration of runs that differ only in their seed, and the seeds."""
    click.echo(resolved[0].to_toml() + f"# seeds: {', '.join(str(config.seed) for config in resolved)}")


def supervised(config: RunConfig) -> bool:
    """Run this command once per device if it needs several. Return True if it did, so that nothing is left to do.

    Args:
        config: Resolved configuration.
    """
    from idaa_lightly.bench.run.ranks import supervise
    from idaa_lightly.bench.run.trainer import ranks_to_start

    if (ranks := ranks_to_start(config)) > 1:
        supervise(click.get_current_context().meta[ARGUMENTS], ranks)
    return ranks > 1
