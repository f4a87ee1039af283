"""Who walks over the table of Memory Cards (CoME, appendix C.1).

    cards-random  the paper's policy for its training sequences: toggle with chance 0.4, each of the four moves with 0.15
    zig-zag       its special test: line by line, every card is turned once, then on the way back once more, and so on

From a table that lies covered, zig-zag shows all cards after one pass of 31 actions, hides them with the second, and with the third
asks what was where. Each pass is a segment of the episode.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from wmgym.settings.memory_cards import ACTIONS, zig_zag

if TYPE_CHECKING:
    from wmgym.agents.scripted import Walker

CHANCES = {"up": 0.15, "down": 0.15, "left": 0.15, "right": 0.15, "toggle": 0.4}

Moves = Generator[int, None, None]


def cards_random(walker: Walker) -> Moves:
    """Toggle, or move somewhere, for ever."""
    chances = [CHANCES[action] for action in ACTIONS]
    while True:
        yield int(walker.rng.choice(len(ACTIONS), p=chances))


def zig_zags(walker: Walker) -> Moves:
    """To the corner at the top left, then zig-zag down, up, down, ... for ever."""
    walker.begin("corner")
    yield from [ACTIONS.index("left")] * round(walker.pose[0])
    yield from [ACTIONS.index("up")] * round(3 - walker.pose[1])
    while True:
        for back in (False, True):
            walker.begin("up" if back else "down")
            yield from zig_zag(back)
