"""Sensitivity plots: accuracy over an option that has several values among otherwise equal groups."""

from __future__ import annotations

import json
from typing import Any

from idaa_lightly.bench.compare.groups import BASELINE, MARKS, Group, Measure
from idaa_lightly.bench.report.curves import MEASURES, Figure, Shown, figure, line, style
from idaa_lightly.bench.report.svg import COLOURS, Line, sensitivity


def swept(groups: list[Group]) -> dict[str, list[list[int]]]:
    """Return for each option the families of groups that differ in it alone, ordered by its value.

    Method, augmentation and data do not count as options. Groups of different commits or images form no family, except
    that the training images may differ if their number is the option.
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
    """Return a sort key: numbers first, then text, then unset values."""
    number = isinstance(value, int | float)
    return value is None, not number, value if number else 0.0, str(value)


def sensitivity_figures(groups: list[Shown]) -> list[Figure]:
    """Return a figure for each measure and option. `none` is drawn across if it is the same for the family."""
    made: list[Figure] = []
    several = len({item.group.config.data for item in groups}) > 1
    for option, families in swept([item.group for item in groups]).items():
        facets: dict[tuple[str, str], list[list[Shown]]] = {}
        for family in families:
            items = [groups[index] for index in family]
            facets.setdefault(_facet(option, items[0]), []).append(items)
        for (where, data), part in facets.items():
            for measure, (name, ylabel) in MEASURES.items():
                if not all(item.group.last(measure) for family in part for item in family):
                    continue
                values, lines, levels = swept_lines(option, part, groups, measure)
                plot = sensitivity(lines, values, f"swept{len(made)}", option, ylabel, levels)
                caption = f"{name} accuracy by {option}{where}" + (f" on {data}" if several else "")
                made.append(figure(plot, caption, [*lines, *levels], legend=len(lines) + len(levels) > 1))
    return made


def swept_lines(
    option: str, families: list[list[Shown]], groups: list[Shown], measure: Measure
) -> tuple[list[Any], list[Line], list[Line]]:
    """Return the values of an option in order, a line per family over their places, and the lines of `none`."""
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
    """Return plugin and data of a figure, since an option has a meaning for its own plugin only."""
    kind = option.partition(".")[0]
    return f" of {getattr(item.group.config, kind)}" if kind in ("method", "aug") else "", item.group.config.data


def _family_names(option: str, families: list[list[Shown]]) -> list[str]:
    """Return names that tell the families of a figure apart."""
    first = [family[0].group.config.flat() | {"commit": family[0].group.mark("commit")} for family in families]
    names = sorted({name for own in first for name in own} - {"method", "aug", "data", option})
    telling = [name for name in names if any(own.get(name) != first[0].get(name) for own in first)]
    return [
        " ".join([f"{own['method']} × {own['aug']}", *(f"{name}={own[name]}" for name in telling if name in own)])
        for own in first
    ]


def _level(family: list[Shown], groups: list[Shown]) -> Shown | None:
    """Return the one group of `none` that shares all other options of the family."""

    def setting(item: Shown) -> tuple[str, str]:
        return item.group.setting, item.group.mark("commit")

    settings = {setting(item) for item in family}
    found = [item for item in groups if item.group.config.aug == BASELINE and {setting(item)} == settings]
    return found[0] if len(found) == 1 else None
