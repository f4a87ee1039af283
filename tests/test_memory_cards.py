"""`MemoryCards-v0` keeps its rules, its pictures tell all cards apart, its walkers do what the paper says, and tile recall counts tiles."""

import tracemalloc
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

import wmgym
from wmgym import settings
from wmgym.agents.collect import CollectArgs, collect, record
from wmgym.data.episode import list_episodes, load_episode
from wmgym.envs.memory_cards import MemoryCardsEnv
from wmgym.envs.memory_cards import table as cards
from wmgym.envs.memory_cards.table import BACK, BLANK, KINDS, OBJECTS, Table
from wmgym.geometry import compose
from wmgym.metrics.tiles import tile_error, tile_recall
from wmgym.settings.memory_cards import ACTIONS as CARDS_ACTIONS
from wmgym.settings.memory_cards import zig_zag

UP, DOWN, LEFT, RIGHT, TOGGLE = range(5)
assert wmgym.__version__


def made(seed: int = 0, **keywords: Any) -> MemoryCardsEnv:
    env = MemoryCardsEnv(**keywords)
    env.reset(seed=seed)
    return env


def tile(frame: np.ndarray, row: int, column: int) -> np.ndarray:
    return frame[row * 12 : row * 12 + 12, column * 12 : column * 12 + 12]


# ---- rules ----


def test_every_object_lies_on_two_cards_or_on_one_and_half_are_blank() -> None:
    pairs = made().save_state()["objects"]
    assert np.bincount(pairs, minlength=OBJECTS + 1).tolist() == [2] * 8 + [0]
    blanks = made(deck="blanks").save_state()["objects"]
    assert np.bincount(blanks, minlength=OBJECTS + 1).tolist() == [1] * 8 + [8]
    assert np.flatnonzero(np.bincount(blanks))[-1] == BLANK


def test_a_guesser_who_knows_the_deck_is_right_once_in_eight() -> None:
    """The paper's 13 %: the default deck. Over many layouts each object lies on each card equally often."""
    env, counts = MemoryCardsEnv(), np.zeros((16, 8))
    for seed in range(2000):
        env.reset(seed=seed)
        counts[np.arange(16), env.save_state()["objects"]] += 1
    assert np.abs(counts / 2000 - 1 / 8).max() < 5 * np.sqrt(1 / 8 * 7 / 8 / 2000)


@pytest.mark.parametrize(("cover", "share"), [("all", 0.0), ("none", 1.0), ("random", 0.5)])
def test_cards_lie_covered_at_first_as_asked(cover: str, share: float) -> None:
    is_open = np.stack([made(seed, cover=cover).save_state()["is_open"] for seed in range(200)])
    assert is_open.mean() == pytest.approx(share, abs=0.05 if cover == "random" else 0)


def test_a_toggle_turns_the_card_under_the_cursor_and_nothing_else() -> None:
    env = made(cursor=False)
    before = env._shown(env._running())[0]
    for action in (RIGHT, DOWN):
        env.step(action)
    frame = env.step(TOGGLE)[0]
    changed = (frame != before).any(-1)
    assert changed[12:24, 12:24].any()
    changed[12:24, 12:24] = False
    assert not changed.any()
    np.testing.assert_array_equal(env.step(TOGGLE)[0], before)


def test_objects_stay_where_they_are_for_an_episode() -> None:
    env = made(seed=4)
    objects, rng = env.save_state()["objects"], np.random.default_rng(0)
    for _ in range(100):
        env.step(int(rng.integers(5)))
        np.testing.assert_array_equal(env.save_state()["objects"], objects)


@pytest.mark.parametrize("cell", range(16))
@pytest.mark.parametrize("action", range(5))
def test_the_kinematics_foretell_the_pose_except_at_the_edge_of_the_table(cell: int, action: int) -> None:
    """Two ways agree: what the world model integrates, and what the env does."""
    start = np.array([cell % 4, cell // 4, 0, 0, 0], np.float32)
    env = MemoryCardsEnv()
    _, info = env.reset(seed=0, options={"start": start})
    np.testing.assert_array_equal(info["pose"], start)
    pose = env.step(action)[-1]["pose"]
    expected = compose(torch.from_numpy(start), settings.get("memory_cards").kinematics.motion(torch.tensor(action))).numpy()
    np.testing.assert_array_equal(pose, np.clip(expected, 0, 3))
    assert pose.dtype == np.float32 and not pose[2:].any()


def test_up_on_the_screen_is_up_for_the_pose() -> None:
    env = MemoryCardsEnv()
    frame, info = env.reset(seed=0, options={"start": [0, 0]})  # the bottom left
    assert info["pose"].tolist() == [0, 0, 0, 0, 0]
    ring = cards.tiles(12)[KINDS + BACK]
    np.testing.assert_array_equal(tile(frame, 3, 0), ring)
    frame, _, _, _, info = env.step(UP)
    assert info["pose"].tolist() == [0, 1, 0, 0, 0]
    np.testing.assert_array_equal(tile(frame, 2, 0), ring)


def test_an_episode_has_250_steps_and_no_reward() -> None:
    env = made()
    ends = [env.step(TOGGLE)[1:4] for _ in range(250)]
    assert ends[:-1] == [(0.0, False, False)] * 249 and ends[-1] == (0.0, False, True)


def test_a_state_is_gone_on_from_bit_for_bit_in_another_env() -> None:
    env = made(seed=3, horizon=30)
    for action in zig_zag()[:20]:
        env.step(action)
    state, other = env.save_state(), made(seed=9)
    other.load_state(state)
    for action in [*zig_zag()[20:30]]:
        a, b = env.step(action), other.step(action)
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:4] == b[1:4]
    assert a[3]
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])
    assert env.save_state()["objects"].tolist() == other.save_state()["objects"].tolist()


def test_branches_are_the_env_and_leave_it_alone() -> None:
    env = made(seed=3)
    env.step(TOGGLE)
    before = env.save_state()
    branches = env.branch(3)
    frames = branches.step(np.array([TOGGLE, RIGHT, DOWN]))[0]
    assert env.save_state()["is_open"].tolist() == before["is_open"].tolist()
    for lane, action in enumerate((TOGGLE, RIGHT, DOWN)):
        env.load_state(before)
        np.testing.assert_array_equal(env.step(action)[0], frames[lane])


def test_ten_thousand_steps_leave_nothing_behind() -> None:
    vec, rng = gym.make_vec("MemoryCards-v0", num_envs=2), np.random.default_rng(0)
    vec.reset(seed=0)

    def walk(steps: int) -> None:
        for actions in rng.integers(5, size=(steps, 2)):
            vec.step(actions)

    tracemalloc.start()
    walk(1000)
    before, _ = tracemalloc.get_traced_memory()
    walk(10_000)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 20_000  # three frames


# ---- pictures ----


@pytest.mark.parametrize("side", [12, 16])
def test_no_two_tiles_look_alike(side: int) -> None:
    """Whatever is mistaken for something else is far beyond the threshold of tile recall, 2e-5, also without the cursor's margin."""
    pictures = torch.from_numpy(cards.tiles(side)[:KINDS])
    for one in range(KINDS):
        for other in range(one):
            error = tile_error(pictures[one][None], pictures[other][None], grid=1, margin=1)
            assert float(error) > 0.02, (one, other)


def test_a_frame_is_its_tiles() -> None:
    rng = np.random.default_rng(0)
    objects, is_open, cursor = rng.integers(0, 9, (5, 16)), rng.random((5, 16)) < 0.5, rng.integers(16, size=5)
    frames, pictures = cards.draw(Table(objects, is_open, cursor), 48), cards.tiles(12)
    assert frames.shape == (5, 48, 48, 3) and frames.dtype == np.uint8 and frames.flags.writeable
    for lane in range(5):
        for cell in range(16):
            kind = (objects[lane, cell] if is_open[lane, cell] else BACK) + KINDS * (cursor[lane] == cell)
            np.testing.assert_array_equal(tile(frames[lane], *divmod(cell, 4)), pictures[kind])


def test_frames_and_pictures_to_look_at_have_the_sizes_asked_for() -> None:
    env = made(size=64, render_size=128, render_mode="rgb_array")
    assert env.reset(seed=0)[0].shape == (64, 64, 3)
    picture = env.render()
    assert picture is not None and picture.shape == (128, 128, 3)


# ---- walkers ----


def test_a_zig_zag_turns_every_card_once_line_by_line() -> None:
    down, up = zig_zag(), zig_zag(back=True)
    assert len(down) == len(up) == 31 and down.count(TOGGLE) == up.count(TOGGLE) == 16
    env = made(seed=1)
    order = []
    for action in down:
        pose = env.step(action)[-1]["pose"]
        if action == TOGGLE:
            order.append((3 - int(pose[1]), int(pose[0])))
    assert order == [(row, column if row % 2 == 0 else 3 - column) for row in range(4) for column in range(4)]
    assert env.save_state()["is_open"].all()
    for action in up:
        env.step(action)
    assert not env.save_state()["is_open"].any() and env.save_state()["cursor"] == 0


@pytest.mark.parametrize("cover", ["all", "none"])
def test_the_zig_zag_walker_covers_and_uncovers_in_turn(cover: str) -> None:
    env = gym.make("MemoryCards-v0", cover=cover, cursor=False)
    episode = record(env, "zig-zag", 5, np.random.default_rng(0), 250)
    assert len(episode) == 251 and episode.meta.outcome == "done"
    passes = [segment.first for segment in episode.meta.segments if segment.name in ("down", "up")]
    assert passes[:3] == [1, 32, 63] and len(passes) == 9
    np.testing.assert_array_equal(episode.frames[0], episode.frames[62])
    np.testing.assert_array_equal(episode.frames[31], episode.frames[93])
    assert (episode.frames[0] != episode.frames[31]).any()


def test_the_random_walker_keeps_to_the_papers_chances() -> None:
    env = gym.make("MemoryCards-v0", horizon=20_000)
    episode = record(env, "cards-random", 5, np.random.default_rng(0), 20_000)
    shares = np.bincount(episode.actions[1:], minlength=5) / 20_000
    expected = np.array([0.15, 0.15, 0.15, 0.15, 0.4])
    assert np.abs(shares - expected).max() < 5 * np.sqrt(0.24 / 20_000)
    assert [CARDS_ACTIONS[i] for i in np.flatnonzero(expected == 0.4)] == ["toggle"]


def test_collecting_gives_episodes_of_251_frames(tmp_path: Path) -> None:
    args = CollectArgs("MemoryCards-v0", "cards-random:1,zig-zag:1", 750, tmp_path, processes=1)
    assert collect(args, progress=False)["episodes"] == 3
    for path in list_episodes(tmp_path):
        episode = load_episode(path)
        assert episode.frames.shape == (251, 48, 48, 3) and not episode.rewards.any() and episode.truncated[-1]
    with pytest.raises(ValueError, match="unknown walker 'zig-zag'; known in minecraft"):
        record(gym.make("Minecraft-v0", task="free"), "zig-zag", 0, np.random.default_rng(0), 10)
    with pytest.raises(ValueError, match="unknown walker 'turn-loop'; known in memory_cards"):
        record(gym.make("MemoryCards-v0"), "turn-loop", 0, np.random.default_rng(0), 10)


# ---- bad input ----


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"task": "navigate"}, "task must be one of 'free', got 'navigate'"),
        ({"deck": "tarot"}, "deck .*'tarot'"),
        ({"cover": "some"}, "cover .*'some'"),
        ({"cursor": "yes"}, "cursor .*'yes'"),
        ({"size": 50}, "size must be a multiple of 4 .*50"),
        ({"size": 8}, "size .*8"),
        ({"render_size": 49}, "render_size .*49"),
        ({"horizon": 0}, "horizon .*0"),
        ({"horizon": True}, "horizon .*True"),
        ({"render_mode": "human"}, "render_mode .*'human'"),
    ],
)
def test_a_wrong_keyword_is_one_clear_value_error(keywords: dict[str, Any], words: str) -> None:
    for make in (MemoryCardsEnv, lambda **given: gym.make_vec("MemoryCards-v0", num_envs=2, **given)):
        with pytest.raises(ValueError, match=words):
            make(**keywords)


@pytest.mark.parametrize("options", [{"start": [4, 0]}, {"start": [0.5, 0]}, {"start": "corner"}, {"goal": [1, 1]}, {"start": [0]}, 3])
def test_wrong_options_are_refused(options: Any) -> None:
    with pytest.raises(ValueError):
        MemoryCardsEnv().reset(options=options)


@pytest.mark.parametrize("action", [5, -1, 1.0, None, "up"])
def test_an_action_outside_the_space_is_refused_and_nothing_moves(action: Any) -> None:
    env = made()
    before = env._table
    with pytest.raises(ValueError, match="from 0 to 4"):
        env.step(action)
    assert env._table is before


def test_what_needs_an_episode_says_so() -> None:
    env = MemoryCardsEnv(render_mode="rgb_array")
    for call in (lambda: env.step(0), env.render, env.save_state, lambda: env.branch(2)):
        with pytest.raises(ResetNeeded):
            call()
    env.reset()
    with pytest.raises(ValueError, match="no 'cursor'"):
        env.load_state({key: value for key, value in env.save_state().items() if key != "cursor"})


# ---- tile recall ----


def test_tile_recall_is_the_share_of_tiles_below_the_threshold() -> None:
    """1 level of 255 on a third of the pixels is 5.1e-6, 2 levels on all is 6.2e-5, and one wrong tile is one sixteenth."""
    truth = torch.randint(3, 250, (2, 48, 48, 3), dtype=torch.uint8)
    guess = truth.clone()
    guess[0, 12:24, 24:36, 0] += 1
    guess[1, 12:24, 24:36] += 2
    error = tile_error(guess, truth)
    assert float(error[0, 1, 2]) == pytest.approx(1 / 255**2 / 3, rel=1e-5)
    assert float(error[1, 1, 2]) == pytest.approx(4 / 255**2, rel=1e-5)
    error[:, 1, 2] = 0
    assert not error.any()
    assert tile_recall(guess, truth).tolist() == [1.0, 15 / 16]


def test_the_margin_is_left_out_of_the_error() -> None:
    truth = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    guess = truth.clone()
    guess[0, [0, 3, 4, 7]] = 255
    guess[0, :, [0, 3, 4, 7]] = 255
    assert (tile_error(guess, truth, grid=2) == 0.75).all()
    assert not tile_error(guess, truth, grid=2, margin=1).any()


def test_what_cannot_be_cut_into_tiles_is_refused() -> None:
    frame = torch.zeros(1, 48, 48, 3, dtype=torch.uint8)
    for args in ((frame, frame[:, :47]), (frame, frame.float()), (frame, frame, 5), (frame, frame, 4, 6)):
        with pytest.raises(ValueError):
            tile_error(*args)
