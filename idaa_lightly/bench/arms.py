"""Finished trainings side by side: their records, grouped into arms that differ only in their seeds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.record import finished_runs, no_run, read_record
from idaa_lightly.bench.schema import Record
from idaa_lightly.errors import UsageError


def read_records(folder: Path, kind: type[RunConfig]) -> list[Record]:
    """Return the records of the runs below a directory.

    Args:
        folder: Directory with run directories at any depth.
        kind: Class of their configurations.

    Raises:
        FileFormatError: There are none, or one cannot be read.
    """
    records = [read_record(run, kind) for run in finished_runs(folder, kind)]
    if not records:
        raise no_run(folder, "this command")
    return records


def images_of(record: Record) -> str:
    """Return the starts of the hashes of the training and test images, which the runs of an arm share."""
    return "/".join(part[:6] for part in record["data"]["fingerprint"])


def arms(
    records: Iterable[Record], name_of: Callable[[Record], str], settings_of: Callable[[Record], dict[str, object]]
) -> dict[str, list[Record]]:
    """Return records by arm. Settings are named if they differ between runs of one name.

    Args:
        records: Records from `read_records`.
        name_of: Function from a record to its name in a table, such as "fixmatch × idaa".
        settings_of: Function from a record to the settings that the runs of an arm share.

    Raises:
        UsageError: An arm has a run of the same seed and labels twice.
    """
    groups: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        groups[name_of(record)][str(settings_of(record))].append(record)
    found = {}
    for name, by_settings in groups.items():
        every = [settings_of(runs[0]) for runs in by_settings.values()]
        keys = sorted({key for settings in every for key in settings})
        differing = [key for key in keys if len({str(settings.get(key)) for settings in every}) > 1]
        for settings, runs in zip(every, by_settings.values(), strict=True):
            named = (f"{key.rpartition('.')[2]}={settings[key]}" for key in differing if key in settings)
            arm = " ".join([name, *named])
            seeds = Counter((run["config"]["seed"], run.get("labelled", {}).get("count")) for run in runs)
            if twice := [seed for (seed, _), count in seeds.items() if count > 1]:
                raise UsageError(
                    f"{arm} has seed {twice[0]} more than once, but expected each seed once: move copies of a run out "
                    "of the directory"
                )
            found[arm] = runs
    return found
