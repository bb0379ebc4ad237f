"""What the world's documents state, as choices between a true sentence and false ones: does a model still know it?"""

from __future__ import annotations

from align.data.smallworld.world import NAMES, RELATIONS, World, other_values

_WORDING = 0  # the plain statement, which documents hold of every fact


def facts(world: World) -> list[list[str]]:
    """One list a fact: the true statement first, then the same of every other value."""
    return [
        [
            RELATIONS[relation].statements[_WORDING].format(**world.slots(relation, person, value))
            for value in (world.facts[relation, person], *other_values(relation, world.facts[relation, person]))
        ]
        for person in NAMES
        for relation in RELATIONS
    ]
