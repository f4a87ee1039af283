"""`MemoryCards-v0`: a memory test with cards on a 4 x 4 table that are turned one at a time (CoME, appendix C.1 and D.1).

Actions: up, down, left and right move a cursor; toggle turns the card under it. The layout is fixed for an episode. The reward is 0. An
episode has 250 steps. The pose is the cursor's cell: x is the column from the left, y the row from the bottom.

A keyword covers each point that the paper leaves open:

deck     "pairs" (default): eight objects on two cards each. A guess that knows the deck but not the layout is right with probability
         1/8, which matches the paper's chance level of 13 %. "blanks": eight cards have one object each and eight are blank; the
         guess "blank" is right half of the time.
cover    which cards are face down at first: "all" (default), "none", or "random" (each card independently). The paper's test sequences
         start with "all" or "none"; it does not describe its training sequences.
cursor   True (default): the cursor is drawn as a ring in the margin of its tile. The paper does not mention a cursor.

The cursor starts at the top left, or at `reset(options={"start": pose})`. It stops at the edge of the table.
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

from wmgym.envs.checks import check_not_over, check_reset_options, check_state_keys
from wmgym.envs.memory_cards import table as cards
from wmgym.envs.memory_cards.table import CELLS, COVERS, DECKS, SIDE, Table
from wmgym.settings import memory_cards as setting
from wmgym.vectors import check_actions, load_generator

if TYPE_CHECKING:
    from wmgym.envs.memory_cards.vector_env import MemoryCardsVectorEnv

STATE = ("horizon", "elapsed", "objects", "is_open", "cursor", "np_random", "seed")


@dataclass(frozen=True)
class Rules:
    """The settings of an env, checked."""

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
        """The observation: uint8 [N, size, size, 3]."""
        return cards.draw(table, self.size, self.cursor)

    def render(self, table: Table) -> NDArray[np.uint8]:
        """The result of `render()`: uint8 [N, render_size, render_size, 3]."""
        return cards.draw(table, self.render_size or self.size, self.cursor)

    def open(self, rng: np.random.Generator, start: int | None) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
        """Deal the table of a new episode: objects [16], which cards are face up [16], the cursor's cell."""
        return (*cards.deal(rng, self.deck, self.cover), start or 0)


class MemoryCardsEnv(gym.Env):
    """One table of cards. `info["pose"]` is the cursor's cell.

    deck, cover, cursor: see the top of this file.
    size, render_size: sides in pixels of the frames observed and rendered, multiples of 4 from 16 to 2048.
    horizon: steps after which an episode is truncated; default 250.
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
        """Deal the cards anew. `options`: `start` (the cursor's pose)."""
        start = check_options(options)
        super().reset(seed=seed)
        objects, is_open, cursor = self.rules.open(self.np_random, start)
        self._table, self._elapsed = Table(objects[None], is_open[None], np.array([cursor])), 0
        return self._shown(self._table)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One action. After the end of an episode it raises `ResetNeeded`."""
        before = self._running()
        check_not_over(self._elapsed >= self.horizon)
        self._table = cards.move(before, check_actions(action, self.action_space)[None])
        self._elapsed += 1
        frame, info = self._shown(self._table)
        return frame, 0.0, False, self._elapsed >= self.horizon, info

    def render(self) -> NDArray[np.uint8] | None:
        table = self._running()
        return self.rules.render(table)[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._table = None

    def save_state(self) -> dict[str, Any]:
        """Everything that this and the following episodes depend on, as a value."""
        return state_of(self._running(), 0, self.horizon, self._elapsed, self.np_random, self._np_random_seed)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a value of `save_state`, bit for bit. ValueError if it is not one."""
        check_state(state)
        self.horizon, self._elapsed = int(state["horizon"]), int(state["elapsed"])
        self._table = table_of([state])
        self._np_random, self._np_random_seed = load_generator(state["np_random"]), state["seed"]

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> MemoryCardsVectorEnv:
        """n futures of the present state, as a vector env that never resets by itself. This env is untouched.

        Branches keep this env's generator, or get new ones from `seeds`: either one number, to which the branch's index is added, or one
        number per branch. An episode draws no random numbers, so the seeds matter only for a later reset.
        """
        from wmgym.envs.memory_cards.vector_env import branched  # here, because that file imports this one

        return branched(self.rules, [self.save_state()], np.array([self._elapsed >= self.horizon]), n, seeds, "numpy")

    def get_action_meanings(self) -> list[str]:
        """What each action does, in words."""
        return list(setting.ACTIONS)

    def get_keys_to_action(self) -> dict[tuple[str, ...], int]:
        """The keys of `gymnasium.utils.play`."""
        return dict(setting.SETTING.keys)

    def _running(self) -> Table:
        if self._table is None:
            raise gym.error.ResetNeeded("reset() must be called first")
        return self._table

    def _shown(self, table: Table) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        return self.rules.draw(table)[0], {"pose": cards.poses(table)[0]}


# shared with the vector env


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
    """The tables of saved states, as copies."""
    objects, is_open = (np.stack([np.array(state[name]) for state in states]) for name in ("objects", "is_open"))
    return Table(objects, is_open, np.array([int(state["cursor"]) for state in states]))


def check_state(state: Any) -> None:
    check_state_keys(state, STATE)
    if np.shape(state["objects"]) != (CELLS,) or np.shape(state["is_open"]) != (CELLS,) or not 0 <= int(state["cursor"]) < CELLS:
        raise ValueError("load_state needs what save_state gave; this state is not of a table of 16 cards")


def check_options(options: Any) -> int | None:
    """The cursor's first cell in the options of `reset`; None if it is not given."""
    given = check_reset_options(options, ("start",))
    if given.get("start") is None:
        return None
    pose = np.asarray(given["start"])
    if pose.shape not in ((2,), (5,)) or pose.dtype.kind not in "fiu":
        raise ValueError(f"start must be a pose of 2 or 5 numbers, got {given['start']!r}")
    return cards.cell_of(pose)


def is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
