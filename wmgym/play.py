"""`wmgym play ID`: walk in a truth or in a dream with the keyboard, in a window."""

import importlib.util
from dataclasses import dataclass
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import tyro

from wmgym.registration import row_of


@dataclass(frozen=True)
class PlayArgs:
    """Walk in a truth or in a dream with the keyboard. Options that are not given keep the id's own values."""

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]  # as `wmgym list` shows it
    seed: int | None = None  # which world, and which noise
    task: str | None = None
    checkpoint: str | None = None  # dreams only: bundled name, path, or hub name
    data: str | None = None  # dreams of RECON only: folder of drives
    memory: str | None = None  # dreams only
    denoise_steps: int | None = None  # dreams only
    device: str | None = None  # dreams only
    backend: str | None = None  # ground truths only
    zoom: float = 8.0  # window pixels per pixel
    wait: bool = False  # time stands still until a key is pressed


def play(args: PlayArgs) -> None:
    """Open the window; it stays until it is closed or Escape is pressed."""
    keywords = make_keywords(args)
    if importlib.util.find_spec("pygame") is None:
        raise ImportError("wmgym play needs pygame: pip install 'wmgym[play]'")
    _check_display()
    from gymnasium.utils.play import play as play_in_window

    env = gym.make(row_of(args.id).id, render_mode="rgb_array", **keywords)
    keys = env.unwrapped.get_keys_to_action()  # type: ignore[attr-defined]  # each id has one, by contract
    meanings = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    print("keys:", ", ".join(f"{_key_name(key)} = {_in_words(action, meanings)}" for key, action in keys.items()))
    noop = keys.pop((), 0)
    try:
        play_in_window(env, zoom=args.zoom, keys_to_action=keys, seed=args.seed, noop=noop, wait_on_player=args.wait)
    finally:
        env.close()


def make_keywords(args: PlayArgs) -> dict[str, Any]:
    """What `gym.make` is given. An option that the id does not know raises ValueError."""
    row = row_of(args.id)
    imagined = "memory" in row.kwargs
    foreign = ("backend",) if imagined else ("checkpoint", "data", "memory", "denoise_steps", "device")
    for name in foreign:
        if getattr(args, name) is not None:
            kind = "a dream" if imagined else "a ground truth"
            raise ValueError(f"--{name.replace('_', '-')} means nothing for {row.id}, which is {kind}")
    names = ("task", "checkpoint", "data", "memory", "denoise_steps", "device", "backend")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _check_display() -> None:
    import pygame

    try:
        pygame.display.init()
    except pygame.error as error:
        raise OSError(f"wmgym play cannot open a window here: {error}") from error


def _in_words(action: Any, meanings: list[str]) -> str:
    """An action by its name, or a continuous one by its numbers."""
    if np.ndim(action) == 0:
        return meanings[action]
    return " ".join(f"{name} {value:.2f}" for name, value in zip(meanings, action, strict=True))


def _key_name(key: Any) -> str:
    keys = key if isinstance(key, tuple) else (key,)
    return "+".join(chr(part) if isinstance(part, int) else str(part) for part in keys) or "nothing"
