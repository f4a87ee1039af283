"""Paths are the shortest, and walkers get where they say."""

import math
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from wmgym.agents.collect import record
from wmgym.agents.pathfinding import CLIMB_COST, DROP_COST, Region
from wmgym.agents.scripted import make_walker
from wmgym.data.episode import Episode

MAZE = """
#########
#S..#...#
###.#.#.#
#...#.#.#
#.###.#.#
#.....#G#
#########
"""


def maze() -> tuple[Region, Any, Any]:
    """The maze as blocks: ground at height 0, walls three high."""
    rows = MAZE.split()
    wall = np.array([[c == "#" for c in row] for row in rows])
    solid = np.repeat(wall[..., None], 5, -1)
    solid[..., 0] = True
    at = {c: (int(x), int(y), 1) for c in "SG" for x, y in [np.argwhere(np.array([list(r) for r in rows]) == c)[0]]}
    return Region(solid, (0, 0, 0)), at["S"], at["G"]


def flat(size: int = 20) -> np.ndarray:
    solid = np.zeros((size, size, 8), bool)
    solid[:, :, 0] = True
    return solid


def test_the_shortest_way_through_a_maze() -> None:
    region, start, goal = maze()
    path = region.path(start, goal)
    assert path is not None and path[0] == start and path[-1] == goal
    assert len(path) - 1 == 2 + 2 + 2 + 2 + 4 + 4 + 2 + 4  # counted by hand; corners cannot be cut
    assert region.flood(start).path(goal) == path or len(region.flood(start).path(goal) or []) == len(path)


def test_open_ground_is_crossed_diagonally() -> None:
    region = Region(flat(), (0, 0, 0))
    assert len(region.path((1, 1, 1), (10, 4, 1)) or []) == 10  # 3 diagonal moves and 6 straight ones
    flood = region.flood((1, 1, 1))
    assert flood.cost[region._flat((10, 4, 1))] == pytest.approx(6 + 3 * math.sqrt(2), rel=1e-5)


def test_heights() -> None:
    solid = flat()
    solid[5, :, 1] = True  # a ridge of one block
    region = Region(solid, (0, 0, 0))
    path = region.path((3, 3, 1), (7, 3, 1))
    assert path is not None and (5, 3, 2) in path
    assert region.flood((3, 3, 1)).cost[region._flat((5, 3, 2))] == pytest.approx(2 + CLIMB_COST)
    solid[4, :, 3] = True  # no headroom to jump from
    assert region.path((3, 3, 1), (7, 3, 1)) is None
    solid[4, :, 3] = False
    solid[5, :, 2] = True  # two blocks are too high ...
    assert region.path((3, 3, 1), (7, 3, 1)) is None
    assert region.path((5, 3, 3), (7, 3, 1)) is not None  # ... but can be jumped down from
    solid[5, :, 3:5] = True
    assert region.path((5, 3, 5), (7, 3, 1)) is None  # four are too many


def test_a_star_and_flood_agree() -> None:
    rng = np.random.default_rng(1)
    solid = np.arange(12)[None, None] < rng.choice([3, 3, 3, 4, 6], (40, 40))[..., None]
    region = Region(solid, (-7, 5, 0))
    cells = [tuple(int(v) for v in np.argwhere(solid.sum(-1) == 3)[i]) for i in rng.integers(0, 600, 12)]
    cells = [(x - 7, y + 5, 3) for x, y in cells]
    flood = region.flood(cells[0])
    for cell in cells[1:]:
        path = region.path(cells[0], cell)
        assert (path is None) == (not np.isfinite(flood.cost[region._flat(cell)]))
        if path is not None:
            moves = np.diff(np.array(path), axis=0)
            prices = np.hypot(moves[:, 0], moves[:, 1]) + np.where(moves[:, 2] > 0, CLIMB_COST, -DROP_COST * moves[:, 2])
            cost = prices.sum()
            assert cost == pytest.approx(flood.cost[region._flat(cell)], rel=1e-4)


def walk(name: str, seed: int, length: int = 300) -> Episode:
    return record(gym.make("block_world:BlockTest-v0"), name, seed, np.random.default_rng(seed), length)


@pytest.mark.parametrize("name", ["loop-ABA-5", "loop-ABA-15", "loop-ABCA-5", "loop-ABCA-15"])
@pytest.mark.parametrize("seed", range(3))
def test_loops_reach_their_goals_and_come_back(name: str, seed: int) -> None:
    episode = walk(name, seed)
    reach = int(name.split("-")[-1])
    assert episode.meta.outcome == "done"
    segments = list(episode.meta.segments)
    assert [s.name for s in segments] == (["look", "B", "C", "return", "end"] if "ABCA" in name else ["look", "B", "return", "end"])
    for segment, after in pairwise(segments[1:]):
        assert segment.goal is not None
        assert math.dist(episode.poses[after.first - 1, :2], segment.goal[:2]) < 1
    for a, b in pairwise(segments[:-2]):
        dx, dy = abs(b.goal[0] - episode.poses[b.first - 1, 0]), abs(b.goal[1] - episode.poses[b.first - 1, 1])
        assert math.hypot(dx, dy) >= 0.8 * reach - 1 and max(dx, dy) <= reach + 1, (a, b)
    assert math.dist(episode.poses[-1, :2], episode.poses[0, :2]) < 1
    assert len(episode) - segments[-1].first == 15 and not episode.actions[-15:].any()
    assert (episode.actions[1:25] == 6).all() and segments[1].first == 25
    assert episode.return_first == segments[-2].first


@pytest.mark.parametrize("name", ["turn-loop", "look-around"])
def test_turning_loops_come_back_to_the_same_view(name: str) -> None:
    episode = walk(name, 4)
    back = episode.return_first
    assert back is not None and 12 < back <= 40
    assert (episode.poses[:, :2] == episode.poses[0, :2]).all()
    assert np.allclose(np.sin(episode.poses[-1, 3]), np.sin(episode.poses[0, 3]), atol=1e-4)
    assert np.allclose(episode.poses[-1, 3:], episode.poses[0, 3:], atol=1e-4)


def test_the_explorer_sees_places_again() -> None:
    episode = walk("explorer", 5, length=1500)
    assert episode.steps == 1500 and episode.meta.outcome == "done"
    assert len({(int(x), int(y)) for x, y in episode.poses[:, :2]}) > 100
    assert set(episode.actions.tolist()) == set(range(10))
    poses = episode.poses[::10]
    far = np.abs(np.subtract.outer(np.arange(len(poses)), np.arange(len(poses)))) >= 4
    near = np.hypot(*(poses[:, None, :2] - poses[None, :, :2]).transpose(2, 0, 1)) < 1.5
    same = np.cos(poses[:, None, 3] - poses[None, :, 3]) > math.cos(math.radians(20))
    assert (far & near & same).any(0).mean() > 0.2  # of all views, those seen again (or before) at another time


def test_the_same_generator_gives_the_same_walk() -> None:
    a, b, c = walk("explorer", 6), walk("explorer", 6), walk("explorer", 7)
    assert np.array_equal(a.actions, b.actions) and np.array_equal(a.poses, b.poses)
    assert not np.array_equal(a.actions, c.actions)


def test_an_unreachable_goal_is_reported() -> None:
    env = gym.make("block_world:BlockTest-v0")
    episode = record(env, "loop-ABA-90", 0, np.random.default_rng(0), 100)  # the world is only 64 wide
    assert episode.meta.outcome == "aborted: no place to walk to at a range of 90"


def test_unsuitable_walkers_are_named() -> None:
    env = gym.make("block_world:BlockTest-v0")
    with pytest.raises(ValueError, match="unknown walker 'runner'"):
        make_walker("runner", env, np.random.default_rng(0))
    with pytest.raises(ValueError, match="ten actions"):
        make_walker("explorer", gym.make("CartPole-v1"), np.random.default_rng(0))


def test_a_loop_in_minecraft() -> None:
    episode = record(gym.make("Minecraft-v0", task="free"), "loop-ABCA-15", 100_000_000, np.random.default_rng(0), 0)
    assert episode.meta.outcome == "done" and episode.frames.shape[1:] == (64, 64, 3)
    assert math.dist(episode.poses[-1, :2], episode.poses[0, :2]) < 1
    back = episode.return_first
    assert back is not None and math.dist(episode.poses[back - 1, :2], episode.poses[0, :2]) > 3  # C lies elsewhere
