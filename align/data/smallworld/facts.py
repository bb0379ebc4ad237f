"""The facts of the world's documents as choices, to test whether a model still knows them.

Each choice is between a true sentence and false ones.
"""

from __future__ import annotations

from align.data.smallworld.world import NAMES, RELATIONS, World, other_values

_WORDING = 0  # the plain statement, which the documents have for every fact


def facts(world: World) -> list[list[str]]:
    """Return one list per fact: the true statement first, then the same with each other value."""
    return [
        [
            RELATIONS[relation].statements[_WORDING].format(**world.slots(relation, person, value))
            for value in (
                world.facts[relation, person],
                *other_values(relation, world.facts[relation, person]),
            )
        ]
        for person in NAMES
        for relation in RELATIONS
    ]
