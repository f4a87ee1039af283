"""`MemoryCards-v0`: cards on a 4 x 4 table, turned one by one (CoME, appendix C.1 and D.1). What was seen must be remembered.

Actions: up, down, left, right move a cursor, toggle turns the card under it. The objects stay where they are for an episode; the
reward is 0; an episode has 250 steps. The pose is the cursor's cell: x is the column from the left, y the row from the bottom.

The paper does not say everything. What it leaves open is a keyword:

deck     "pairs" (default): eight objects lie on two cards each. Whoever knows the deck but not the layout is right about a card with
         chance 1/8, which is the 13 % that the paper calls chance. "blanks": eight cards have an object each, eight are blank;
         saying "blank" is right half of the time.
cover    how the cards lie at first: "all" covered (default), "none", or "random" for each card. The paper's test sequences start
         with all or none covered; of its training sequences it says nothing.
cursor   whether the cursor is drawn, a ring in the margin of its tile (default), or not. The paper does not mention one.

The cursor starts at the top left unless `reset(options={"start": pose})` says otherwise, and the edge of the table stops it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wmgym.envs.checks import check_reset_options
from wmgym.envs.memory_cards import table as cards
from wmgym.envs.memory_cards.table import CELLS, COVERS, DECKS, SIDE, Table
from wmgym.settings import memory_cards as setting
from wmgym.vectors import load_generator

if TYPE_CHECKING:
    from wmgym.envs.memory_cards.vector_env import MemoryCardsVectorEnv

STATE = ("horizon", "elapsed", "objects", "is_open", "cursor", "np_random", "seed")


@dataclass(frozen=True)
class Rules:
    """What is fixed when an env is made; checks itself."""

    task: str = "free"
    deck: str = "pairs"
    cover: str = "all"
    cursor: bool = True
    size: int = 48
    render_size: int | None = None
    horizon: int = setting.HORIZON
    render_mode: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("task", ("free",)), ("deck", DECKS), ("cover", COVERS), ("render_mode", (None, "rgb_array"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}")
        if not isinstance(self.cursor, (bool, np.bool_)):
            raise ValueError(f"cursor must be True or False, got {self.cursor!r}")
        for name in ("size", "render_size"):
            side = getattr(self, name)
            if not (side is None and name == "render_size") and not (is_whole(side) and 16 <= side <= 2048 and side % SIDE == 0):
                raise ValueError(f"{name} must be a multiple of {SIDE} from 16 to 2048 pixels, got {side!r}")
        if not (is_whole(self.horizon) and self.horizon >= 1):
            raise ValueError(f"horizon must be a positive integer, got {self.horizon!r}")

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0, 255, (self.size, self.size, 3), np.uint8)

    def draw(self, table: Table) -> NDArray[np.uint8]:
        """What the agent sees: [N, size, size, 3]."""
        return cards.draw(table, self.size, self.cursor)

    def render(self, table: Table) -> NDArray[np.uint8]:
        """What `render()` shows: [N, render_size, render_size, 3]."""
        return cards.draw(table, self.render_size or self.size, self.cursor)

    def open(self, rng: np.random.Generator, start: int | None) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
        """An episode's first table: objects, which cards lie open, the cursor's cell."""
        return (*cards.deal(rng, self.deck, self.cover), start or 0)


class MemoryCardsEnv(gym.Env):
    """One table of cards; see the top of this file for `deck`, `cover` and `cursor`.

    size, render_size: sides of the frames observed and rendered, multiples of 4. horizon: steps after which an episode is cut off.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  # Gymnasium's own form

    def __init__(
        self,
        task: str = "free",
        deck: str = "pairs",
        cover: str = "all",
        cursor: bool = True,
        size: int = 48,
        render_size: int | None = None,
        horizon: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        horizon = setting.HORIZON if horizon is None else horizon
        self.rules = Rules(task, deck, cover, cursor, size, render_size, horizon, render_mode)
        self.horizon, self.render_mode = int(horizon), render_mode
        self.observation_space: spaces.Box = self.rules.observation_space
        self.action_space = spaces.Discrete(len(setting.ACTIONS))
        self._table: Table | None = None
        self._elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        start = check_options(options)
        super().reset(seed=seed)
        objects, is_open, cursor = self.rules.open(self.np_random, start)
        self._table, self._elapsed = Table(objects[None], is_open[None], np.array([cursor])), 0
        return self._seen(self._table)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before = self._running()
        if not self.action_space.contains(action):
            raise ValueError(f"action must be an integer from 0 to {len(setting.ACTIONS) - 1}, got {action!r}")
        self._table = cards.move(before, np.array([action]))
        self._elapsed += 1
        frame, info = self._seen(self._table)
        return frame, 0.0, False, self._elapsed >= self.horizon, info

    def render(self) -> NDArray[np.uint8] | None:
        table = self._running()
        return self.rules.render(table)[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._table = None

    def save_state(self) -> dict[str, Any]:
        """Everything that the rest of the episode, and the episodes after it, depend on."""
        return state_of(self._running(), 0, self.horizon, self._elapsed, self.np_random, self._np_random_seed)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a value of `save_state`, bit for bit."""
        check_state(state)
        self.horizon, self._elapsed = int(state["horizon"]), int(state["elapsed"])
        self._table = table_of([state])
        self._np_random, self._np_random_seed = load_generator(state["np_random"]), state["seed"]

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> MemoryCardsVectorEnv:
        """n futures of this moment, as a vector env that never resets by itself; this env is untouched.

        They keep this env's generator, or get new ones from `seeds`. Nothing in an episode is random: that matters to a later reset.
        """
        from wmgym.envs.memory_cards.vector_env import branched  # here, because that one is built on this file

        return branched(self.rules, [self.save_state()], np.array([self._elapsed >= self.horizon]), n, seeds, "numpy")

    def get_action_meanings(self) -> list[str]:
        return list(setting.ACTIONS)

    def get_keys_to_action(self) -> dict[tuple[str, ...], int]:
        return dict(setting.SETTING.keys)

    def _running(self) -> Table:
        if self._table is None:
            raise gym.error.ResetNeeded("reset() must be called first")
        return self._table

    def _seen(self, table: Table) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        return self.rules.draw(table)[0], {"pose": cards.poses(table)[0]}


# what the vector env uses too


def state_of(table: Table, lane: int, horizon: int, elapsed: int, rng: np.random.Generator, seed: int | None) -> dict[str, Any]:
    """A running episode as a value."""
    return {
        "horizon": horizon,
        "elapsed": elapsed,
        "objects": table.objects[lane].copy(),
        "is_open": table.is_open[lane].copy(),
        "cursor": int(table.cursor[lane]),
        "np_random": copy.deepcopy(rng.bit_generator.state),
        "seed": seed,
    }


def table_of(states: Sequence[Mapping[str, Any]]) -> Table:
    """The tables of saved states, in fresh memory."""
    objects, is_open = (np.stack([np.array(state[name]) for state in states]) for name in ("objects", "is_open"))
    return Table(objects, is_open, np.array([int(state["cursor"]) for state in states]))


def check_state(state: Any) -> None:
    if not isinstance(state, Mapping):
        raise ValueError(f"load_state takes what save_state gave, got {type(state).__name__}")
    missing = [key for key in STATE if key not in state]
    if missing:
        raise ValueError(f"load_state takes what save_state gave; this has no {missing[0]!r}")
    if np.shape(state["objects"]) != (CELLS,) or np.shape(state["is_open"]) != (CELLS,) or not 0 <= int(state["cursor"]) < CELLS:
        raise ValueError("load_state takes what save_state gave; this is no table of 16 cards")


def check_options(options: Any) -> int | None:
    """The cell to start at, if `reset` was told one."""
    given = check_reset_options(options, ("start",))
    if given.get("start") is None:
        return None
    pose = np.asarray(given["start"])
    if pose.shape not in ((2,), (5,)) or pose.dtype.kind not in "fiu":
        raise ValueError(f"start must be a pose of 2 or 5 numbers, got {given['start']!r}")
    return cards.cell_of(pose)


def is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
