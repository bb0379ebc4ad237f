"""Draw the lineage of a report: boxes from left to right, each to the right of all its inputs."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from align.report.gather import Made

_WIDTH, _HEIGHT, _ACROSS, _DOWN = 148, 40, 46, 18  # pixels: a box, and the gaps between boxes


def draw(made: Sequence[Made]) -> Markup:
    """Return an SVG; in `made`, inputs come before what was made from them."""
    columns = _columns(made)
    tallest = max(map(len, columns.values()))
    height = tallest * (_HEIGHT + _DOWN) + _DOWN
    corners = {}
    for column, members in columns.items():
        top = (height - len(members) * (_HEIGHT + _DOWN) + _DOWN) / 2
        for row, each in enumerate(members):
            corners[each.key] = (column * (_WIDTH + _ACROSS) + 4, top + row * (_HEIGHT + _DOWN))
    width = len(columns) * (_WIDTH + _ACROSS) - _ACROSS + 8
    edges = [
        _edge(corners[key], corners[each.key], f"{key} {each.key}", slot)
        for each in made
        for slot, key in each.inputs
    ]
    boxes = [_box(*corners[each.key], each) for each in made]
    names = {each.key: each.name for each in made}
    said = [
        f"{each.name} from {' and '.join(dict.fromkeys(names[key] for _, key in each.inputs))}"
        for each in made
        if each.inputs
    ]
    label = f"What was made from what: {'; '.join(said) or ', '.join(names.values())}."
    return Markup(
        '<svg viewBox="0 0 {} {:.0f}" style="min-width:{:.0f}px" role="img" aria-label="{}"'
        ' class="lineage">{}{}</svg>'
    ).format(width, height, 0.75 * width, label, Markup("").join(edges), Markup("").join(boxes))


def _columns(made: Sequence[Made]) -> dict[int, list[Made]]:
    """Return the artifacts of each column, from top to bottom.

    Each is to the right of its inputs. An artifact without inputs, such as data, is in the column
    just left of its first reader. In a column, artifacts are sorted by the mean height of their
    inputs.
    """
    depth: dict[str, int] = {}
    for each in made:
        depth[each.key] = max((depth[key] + 1 for _, key in each.inputs), default=0)
    for each in made:
        if not each.inputs:
            readers = [
                depth[other.key]
                for other in made
                if any(key == each.key for _, key in other.inputs)
            ]
            depth[each.key] = max(0, min(readers, default=1) - 1)
    columns: dict[int, list[Made]] = {column: [] for column in sorted(depth.values())}
    for each in made:
        columns[depth[each.key]].append(each)
    height: dict[str, float] = {}
    for members in columns.values():
        members.sort(
            key=lambda each: (
                sum(height.get(key, 0.0) for _, key in each.inputs) / max(1, len(each.inputs))
            )
        )
        height |= {each.key: row - len(members) / 2 for row, each in enumerate(members)}
    return columns


def _edge(one: tuple[float, float], other: tuple[float, float], ends: str, slot: str) -> Markup:
    x1, y1, x2, y2 = one[0] + _WIDTH, one[1] + _HEIGHT / 2, other[0], other[1] + _HEIGHT / 2
    bend = (x2 - x1) / 2
    path = f"M{x1} {y1:.0f} C{x1 + bend} {y1:.0f} {x2 - bend} {y2:.0f} {x2} {y2:.0f}"
    return Markup('<path class="edge" data-ends="{}" d="{}"><title>{}</title></path>').format(
        ends, path, slot
    )


def _box(x: float, y: float, made: Made) -> Markup:
    tip = f"{made.artifact.ref}, sha256 {made.artifact.digest[:12]}"
    box = Markup('<rect x="{}" y="{:.0f}" width="{}" height="{}" rx="6"/>').format(
        x, y, _WIDTH, _HEIGHT
    )
    name = Markup('<text x="{}" y="{:.0f}">{}</text>').format(x + 9, y + 17, made.name[:21])
    below = Markup('<text class="faint" x="{}" y="{:.0f}">{} {}</text>').format(
        x + 9, y + 32, made.stage, made.version
    )
    return Markup('<g class="{}" data-key="{}"><title>{}</title>{}{}{}</g>').format(
        made.artifact.kind, made.key, tip, box, name, below
    )
