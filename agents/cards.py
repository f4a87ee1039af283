"""Scripted walkers of Memory Cards (CoME, appendix C.1).

    cards-random  the paper's policy for training sequences: toggle with probability 0.4, each of the four moves with 0.15
    zig-zag       the paper's special test: row by row, turn every card once, then once more on the way back, and so on

If all cards are face down at first, the first pass of 31 actions turns all of them up, the second turns them down, and the third tests
what is remembered. Each pass is a segment of the episode.
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
    """Toggle or move at random, forever."""
    chances = [CHANCES[action] for action in ACTIONS]
    while True:
        yield int(walker.rng.choice(len(ACTIONS), p=chances))


def zig_zags(walker: Walker) -> Moves:
    """Move to the corner at the top left, then zig-zag down, up, down, ... forever."""
    walker.begin("corner")
    yield from [ACTIONS.index("left")] * round(walker.pose[0])
    yield from [ACTIONS.index("up")] * round(3 - walker.pose[1])
    while True:
        for back in (False, True):
            walker.begin("up" if back else "down")
            yield from zig_zag(back)
