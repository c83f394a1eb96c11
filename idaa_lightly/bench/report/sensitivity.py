"""Options with several values among groups that are otherwise the same, and how accuracy depends on them."""

from __future__ import annotations

import json
from typing import Any

from idaa_lightly.bench.compare.groups import BASELINE, MARKS, Group, Measure
from idaa_lightly.bench.report.curves import MEASURES, Figure, Shown, figure, line, style
from idaa_lightly.bench.report.svg import COLOURS, Line, sensitivity


def swept(groups: list[Group]) -> dict[str, list[list[int]]]:
    """For each option, the families of groups that differ in it alone, each by the option's value.

    Method, augmentation and data are no options here. Groups of another commit or other images are no family, except
    that the training images may differ where it is their number that is swept.
    """
    options = [group.config.flat() for group in groups]
    found = {}
    for option in sorted({name for own in options for name in own} - {"method", "aug", "data"}):
        families: dict[str, list[int]] = {}
        for index, (group, own) in enumerate(zip(groups, options, strict=True)):
            record = next(iter(group.records.values()))
            images = record["data"]["fingerprint"][option == "limit_train" :]
            rest = {name: value for name, value in own.items() if name != option}
            key = json.dumps([rest, images, MARKS["commit"](record)], sort_keys=True)
            families.setdefault(key, []).append(index)
        several = [family for family in families.values() if len(family) > 1]
        if several:
            found[option] = [sorted(family, key=lambda index: _rank(options[index].get(option))) for family in several]
    return found


def _rank(value: Any) -> tuple[bool, bool, float, str]:
    """Numbers in order, then text, then what is not set."""
    number = isinstance(value, int | float)
    return value is None, not number, value if number else 0.0, str(value)


def sensitivity_figures(groups: list[Shown]) -> list[Figure]:
    """A figure of each measure for each swept option, with `none` drawn across where it is one and the same."""
    made: list[Figure] = []
    several = len({item.group.config.data for item in groups}) > 1
    for option, families in swept([item.group for item in groups]).items():
        facets: dict[tuple[str, str], list[list[Shown]]] = {}
        for family in families:
            items = [groups[index] for index in family]
            facets.setdefault(_facet(option, items[0]), []).append(items)
        for (where, data), part in facets.items():
            for measure, (name, ylabel) in MEASURES.items():
                values, lines, levels = swept_lines(option, part, groups, measure)
                plot = sensitivity(lines, values, f"swept{len(made)}", option, ylabel, levels)
                caption = f"{name} accuracy by {option}{where}" + (f" on {data}" if several else "")
                made.append(figure(plot, caption, [*lines, *levels], legend=len(lines) + len(levels) > 1))
    return made


def swept_lines(
    option: str, families: list[list[Shown]], groups: list[Shown], measure: Measure
) -> tuple[list[Any], list[Line], list[Line]]:
    """The values of an option in order, a line a family whose x are places among them, and the lines of `none`."""
    values: list[Any] = []
    for value in sorted((item.group.config.flat().get(option) for family in families for item in family), key=_rank):
        values += [value] if value not in values else []
    lines = []
    for number, (family, name) in enumerate(zip(families, _family_names(option, families), strict=True)):
        x = [values.index(item.group.config.flat().get(option)) for item in family]
        members = tuple(item.index for item in family)
        lines.append(line(name, members, style(number), x, [item.group.percent(measure) for item in family]))
    levels = {level.index: level for family in families if (level := _level(family, groups))}
    dashed = [
        line(level.label, level.groups, COLOURS * number, [0], [level.group.percent(measure)])
        for number, level in enumerate(levels.values(), start=1)
    ]
    return values, lines, dashed


def _facet(option: str, item: Shown) -> tuple[str, str]:
    """An option of a plugin means what it means for this plugin only."""
    kind = option.partition(".")[0]
    return f" of {getattr(item.group.config, kind)}" if kind in ("method", "aug") else "", item.group.config.data


def _family_names(option: str, families: list[list[Shown]]) -> list[str]:
    """What tells the families of a figure apart."""
    first = [family[0].group.config.flat() | {"commit": family[0].group.mark("commit")} for family in families]
    names = sorted({name for own in first for name in own} - {"method", "aug", "data", option})
    telling = [name for name in names if any(own.get(name) != first[0].get(name) for own in first)]
    return [
        " ".join([f"{own['method']} × {own['aug']}", *(f"{name}={own[name]}" for name in telling if name in own)])
        for own in first
    ]


def _level(family: list[Shown], groups: list[Shown]) -> Shown | None:
    """The one group of `none` that has all other options of the family."""

    def setting(item: Shown) -> tuple[str, str]:
        return item.group.setting, item.group.mark("commit")

    settings = {setting(item) for item in family}
    found = [item for item in groups if item.group.config.aug == BASELINE and {setting(item)} == settings]
    return found[0] if len(found) == 1 else None
