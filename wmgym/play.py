"""`wmgym play ID`: act in a dream or a ground truth with the keyboard."""

from dataclasses import dataclass
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import tyro

from wmgym.extras import need
from wmgym.registration import row_of

UNSEEN = ("offscreen", "dummy")  # drivers that SDL chooses where there is no display


@dataclass(frozen=True)
class PlayArgs:
    """Act in a dream or a ground truth with the keyboard, in a window.

    Needs an id and a display. Prints the keys, and opens a window until it is closed or Escape is pressed. Loading takes a few seconds;
    `wmgym bench model` measures the time of a dreamed step. Options that are not given keep the id's values.
    """

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]  # as `wmgym list` prints it
    seed: int | None = None  # of the world and the noise
    task: str | None = None  # task of the env
    checkpoint: str | None = None  # dreams only: bundled name, path, or hub name
    data: str | None = None  # dreams of RECON only: folder of drives
    memory: str | None = None  # dreams only: how the weights remember
    denoise_steps: int | None = None  # dreams only: sampler steps per frame
    device: str | None = None  # dreams only: auto, cpu, cuda
    backend: str | None = None  # ground truths only: the engine
    zoom: float = 8.0  # side in the window of a pixel of the frame
    wait: bool = False  # step only when a key is pressed


def play(args: PlayArgs) -> None:
    """Open the window. It stays open until it is closed or Escape is pressed."""
    keywords = make_keywords(args)
    check_window()
    from gymnasium.utils.play import play as play_in_window

    env = gym.make(row_of(args.id).id, render_mode="rgb_array", **keywords)
    keys = env.unwrapped.get_keys_to_action()  # type: ignore[attr-defined]  # part of the contract of every id
    meanings = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    print("keys:", ", ".join(f"{_key_name(key)} = {_in_words(action, meanings)}" for key, action in keys.items()))
    noop = keys.pop((), 0)
    try:
        play_in_window(env, zoom=args.zoom, keys_to_action=keys, seed=args.seed, noop=noop, wait_on_player=args.wait)
    finally:
        env.close()


def make_keywords(args: PlayArgs) -> dict[str, Any]:
    """Keywords for `gym.make`. An option of the other kind of id raises ValueError."""
    row = row_of(args.id)
    imagined = "memory" in row.kwargs
    foreign = ("backend",) if imagined else ("checkpoint", "data", "memory", "denoise_steps", "device")
    for name in foreign:
        if getattr(args, name) is not None:
            kind = "a dream" if imagined else "a ground truth"
            raise ValueError(f"{row.id} is {kind} and has no option --{name.replace('_', '-')}")
    names = ("task", "checkpoint", "data", "memory", "denoise_steps", "device", "backend")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def check_window() -> str:
    """SDL's video driver for windows. ImportError without pygame; OSError without a display."""
    need("play", "wmgym play needs")
    import pygame

    remedy = "use a machine with a screen, or ssh -X; `wmgym demo` writes films instead"
    try:
        pygame.display.init()
    except pygame.error as error:
        raise OSError(f"wmgym play cannot open a window ({error}): {remedy}") from error
    driver = pygame.display.get_driver()
    if driver in UNSEEN:
        pygame.display.quit()
        raise OSError(f"wmgym play needs a display; without one SDL draws to no window (driver {driver!r}): {remedy}")
    return driver


def _in_words(action: Any, meanings: list[str]) -> str:
    """A discrete action as its name, a continuous one as its numbers."""
    if np.ndim(action) == 0:
        return meanings[action]
    return " ".join(f"{name} {value:.2f}" for name, value in zip(meanings, action, strict=True))


def _key_name(key: Any) -> str:
    parts = [chr(part) if isinstance(part, int) else str(part) for part in (key if isinstance(key, tuple) else (key,))]
    return "+".join("space" if part == " " else part for part in parts) or "nothing"
