"""`wmgym eval revisit`: mirrored turns, marks of judges, landmarks that change while unseen, and a program that resumes."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from mazes import needs_maze
from tiny import tiny_checkpoint

import wmgym
from wmgym import cli, settings
from wmgym.agents import scenes
from wmgym.agents.collect import record
from wmgym.agents.paths import OPENING, PATH, motions_of
from wmgym.agents.scenes import VARIANTS, Scene, find_scene, way_there_and_back
from wmgym.benchmarks import landmarks, loopmem, mirror, vision_judges
from wmgym.benchmarks.judges import ExactJudge, Verdict, agreement
from wmgym.benchmarks.loopmem import motion_columns
from wmgym.benchmarks.rollout import Dream, Walk
from wmgym.benchmarks.vision_judges import KEY, UrlJudge, find_judge, parse_verdict
from wmgym.data import mind
from wmgym.experiments import revisit as program
from wmgym.experiments.revisit import RevisitArgs, evaluate
from wmgym.experiments.support import rows
from wmgym.experiments.support.landmark_scenes import landmark_env

MOVES = settings.get("minecraft").kinematics
FIRST = 100_000_000  # of the worlds of these tests


# -- the block world can be built in ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> Iterator[gym.Env]:
    env = gym.make("Minecraft-v0", task="free", size=32, render_mode="rgb_array", disable_env_checker=True)
    yield env
    env.close()


def test_a_block_is_seen_felt_saved_and_gone_after_reset(world: gym.Env) -> None:
    env: Any = world.unwrapped
    pose = world.reset(seed=FIRST)[1]["pose"]
    before = env.render()
    x, y, z = (math.floor(v) for v in pose[:3])
    around = [(dx, dy) for dx in range(-2, 3) for dy in range(-2, 3) if max(abs(dx), abs(dy)) == 2]
    wall = {(x + dx, y + dy, z + dz): "pink" for dx, dy in around for dz in range(3)}
    env.build(wall)
    assert env.solid((x + 2, y, z), (x + 3, y + 1, z + 3)).all() and (env.render() != before).mean() > 0.5
    state = env.save_state()
    built = env.render()
    env.build(dict.fromkeys(wall, "air"))
    assert not env.solid((x + 2, y, z), (x + 3, y + 1, z + 3)).any()
    world.reset(seed=FIRST)
    np.testing.assert_array_equal(env.render(), before)
    env.load_state(state)
    np.testing.assert_array_equal(env.render(), built)
    for blocks, words in (
        ({(x, y, z): "pink"}, "where the body stands"),
        ({(x, y, 900): "pink"}, "within the world"),
        ({(x + 3, y, z): "cheese"}, "unknown block 'cheese'"),
    ):
        with pytest.raises(ValueError, match=words):
            env.build(blocks)
    np.testing.assert_array_equal(env.render(), built)


def test_a_world_that_was_built_in_is_saved_to_a_file(world: gym.Env, tmp_path: Path) -> None:
    env: Any = world.unwrapped
    x, y, z = (math.floor(v) for v in world.reset(seed=FIRST)[1]["pose"][:3])
    env.build({(x + 2, y, z + 1): "pink", (x, y + 2, z): "navy"})
    built = env.render()
    wmgym.save_state_file(env.save_state(), tmp_path / "built.safetensors")
    world.reset(seed=FIRST + 1)
    env.load_state(wmgym.load_state_file(tmp_path / "built.safetensors", world))
    np.testing.assert_array_equal(env.render(), built)


@pytest.fixture(scope="module")
def scene(world: gym.Env) -> Scene:
    return find_scene(world, itertools.count(FIRST), motions_of("minecraft"), math.radians(45), 6)


def test_a_landmark_is_in_view_then_out_of_view_then_in_the_same_view_again(scene: Scene) -> None:
    way, out = way_there_and_back(motions_of("minecraft"), math.radians(45), 6)
    assert (out, way) == (3, [7] * 3 + [0] * 6 + [6] * 3) and scene.out == out
    assert scene.frames.shape == (len(VARIANTS), OPENING + len(way), 32, 32, 3)
    np.testing.assert_array_equal(scene.frames[:, -1], scene.frames[:, OPENING - 1])
    hidden = scene.frames[:, OPENING + out : OPENING + out + 6]
    assert (hidden != hidden[:1]).mean() < 0.1  # which one stands there cannot be seen, apart from its shadow
    assert scene.masks.mean((1, 2)).min() >= scenes.LEAST
    for frames, mask in zip(scene.frames, scene.masks, strict=True):
        assert np.abs(frames[-1].astype(int) - scene.empty).mean(-1)[mask].mean() >= scenes.CONTRAST


# -- marks ------------------------------------------------------------------------------------------------------------------------------


def test_the_rubric_is_the_papers() -> None:
    assert Verdict(5, 5, 5, 5).score == Verdict(5, 5, 5, 5).gated == 100
    assert Verdict(5, 0, 0, 0).score == pytest.approx(45) and Verdict(0, 5, 0, 0).score == pytest.approx(25)
    assert Verdict(0, 0, 5, 0).score == pytest.approx(20) and Verdict(0, 0, 0, 5).score == pytest.approx(10)
    assert Verdict(0, 0, 5, 5).score == pytest.approx(30) and Verdict(0, 0, 5, 5).gated == 0
    assert Verdict(5, 2, 5, 5).gated == 10 and Verdict(0, 1, 5, 5).gated == pytest.approx(5)  # 5 of 25 for a presence of 1
    assert Verdict(0, 3, 5, 5).gated == Verdict(0, 3, 5, 5).score == pytest.approx(45)
    with pytest.raises(ValueError, match="presence must be a mark from 0 to 5, got 7"):
        Verdict(0, 7, 0, 0)


def test_the_exact_judge_gives_the_true_future_100_and_an_empty_right_scene_30_at_most(scene: Scene) -> None:
    judge, noise = ExactJudge(), np.random.default_rng(0)
    for variant in range(len(VARIANTS)):
        case = scene.case(0, variant)
        assert judge.judge(case.after, case).score == pytest.approx(100)
        empty = judge.judge(case.empty, case)
        assert empty.presence == empty.appearance == 0 and empty.view == 5 and empty.scene > 4
        assert 28 <= empty.score <= 30 and empty.gated == 0
        assert judge.judge(noise.integers(0, 256, case.after.shape, np.uint8), case).score < 20
        other = np.where(case.mask[..., None], 255 - case.after, case.after)  # the same shape in another colour
        wrong = judge.judge(other, case)
        assert wrong.presence > 4 and wrong.appearance < 2.5 and wrong.score < judge.judge(case.after, case).score - 20
        turned = judge.judge(case.walk.frames[OPENING + scene.out], case)
        assert turned.view == 0 and turned.presence < 2.5 and turned.gated <= 10


def test_a_blurred_landmark_scores_between_none_and_the_true_one(scene: Scene) -> None:
    case = scene.case(0, 0)
    half = ((case.after.astype(int) + case.empty) // 2).astype(np.uint8)
    marks = ExactJudge().judge(half, case)
    assert 2 < marks.appearance < 3 and 45 < marks.score < 90


def test_judges_that_agree_differ_by_nothing_and_rank_alike() -> None:
    scores = [10.0, 40.0, 80.0, 30.0]
    (line,) = agreement({"a": scores, "b": [s + 5 for s in scores]}, [0, 0, 1, 1])
    assert line["judges"] == "a - b" and line["difference"] == line["difference_low"] == -5 and line["spearman"] == "1.00"
    (line,) = agreement({"a": scores, "b": [-s for s in scores]}, [0, 0, 1, 1])
    assert line["spearman"] == "-1.00"


# -- models as judges -------------------------------------------------------------------------------------------------------------------

MARKS = '{"appearance": 4, "presence": 5, "view": 3, "scene": 2}'


def test_marks_are_read_from_an_answer() -> None:
    assert parse_verdict(MARKS) == Verdict(4, 5, 3, 2)
    assert parse_verdict(f'First {{"appearance": 0}}. Then\n```json\n{MARKS}\n```') == Verdict(4, 5, 3, 2)
    for wrong in ("", "5 5 5 5", '{"appearance": 4}', MARKS.replace("4", "9"), MARKS.replace("4", '"x"'), MARKS.replace("4", "null")):
        with pytest.raises(ValueError, match="no marks from 0 to 5 for appearance, presence, view, scene in the answer"):
            parse_verdict(wrong)


class StandIn(HTTPServer):
    """A server that answers as it is told, and keeps what it was asked."""

    def __init__(self, answer: Callable[[int], tuple[int, str]]) -> None:
        self.asked: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
                status, words = answer(len(server.asked))
                content = json.dumps({"choices": [{"message": {"content": words}}]}).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[int], tuple[int, str]]], StandIn]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers: list[StandIn] = []

    def start(answer: Callable[[int], tuple[int, str]]) -> StandIn:
        servers.append(StandIn(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_model_at_an_address_is_shown_both_views(serve: Any, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    server = serve(lambda n: (200, MARKS))
    judge = find_judge(f"{server.address}/=org/model")
    case = scene.case(0, 0)
    assert judge.judge(case.empty, case) == Verdict(4, 5, 3, 2)
    (asked,) = server.asked
    assert (asked["path"], asked["model"], asked["key"]) == ("/v1/chat/completions", "org/model", "Bearer secret")
    *pictures, text = asked["messages"][0]["content"]
    assert len(pictures) == 2 and pictures[0] != pictures[1] and "first picture" in text["text"]
    assert all(each["image_url"]["url"].startswith("data:image/png;base64,") for each in pictures)
    assert judge.name == "org/model" and "/" not in judge.identity and "secret" not in judge.identity


@pytest.mark.parametrize(
    ("answer", "error", "words", "times"),
    [
        (lambda n: (200, "It looks fine."), ValueError, r"the judge 'm' at http.*/v1 gave no marks in 3 answers: .*'It looks fine.'", 3),
        (lambda n: (401, "no"), ConnectionError, r"refused: 401 Unauthorized; is its key in WMGYM_JUDGE_KEY\?", 1),
        (lambda n: (503, "no"), ConnectionError, r"refused: 503", 3),
        (lambda n: (302, "no"), ConnectionError, r"refused: 302", 1),  # the key goes nowhere else
    ],
)
def test_a_judge_that_gives_no_marks_is_named(serve: Any, scene: Scene, answer: Any, error: type, words: str, times: int) -> None:
    server = serve(answer)
    case = scene.case(0, 0)
    with pytest.raises(error, match=words):
        UrlJudge(server.address, "m", pause=0.001).judge(case.after, case)
    assert len(server.asked) == times


def test_a_busy_server_and_a_slip_of_the_tongue_are_forgiven(serve: Any, scene: Scene) -> None:
    server = serve(lambda n: {1: (429, ""), 2: (200, "Hm.")}.get(n, (200, MARKS)))
    case = scene.case(0, 0)
    assert UrlJudge(server.address, "m", pause=0.001).judge(case.after, case) == Verdict(4, 5, 3, 2)
    assert len(server.asked) == 3


def test_an_answer_that_is_no_completion_and_a_dead_address_are_errors(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    case = scene.case(0, 0)
    with pytest.raises(ConnectionError, match=r"the judge at http://127.0.0.1:9/v1 cannot be reached: .*refused"):
        UrlJudge("http://127.0.0.1:9/v1", "m", pause=0.001).judge(case.after, case)
    monkeypatch.setattr(UrlJudge, "_send", lambda self, request: b'{"error": "?"}')
    with pytest.raises(ValueError, match="the answer of http://x/v1 is not a chat completion"):
        UrlJudge("http://x/v1", "m").judge(case.after, case)


def test_a_local_judge_is_asked_by_its_chat_template(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    asked: list[Any] = []

    class Processor:
        def apply_chat_template(self, chat: Any, **how: Any) -> Any:
            asked.append(chat)
            return transformers.BatchFeature({"input_ids": torch.zeros(1, 7, dtype=torch.int64)})

        def batch_decode(self, tokens: Any, **how: Any) -> list[str]:
            assert tokens.shape == (1, 2)  # only what is new
            return [MARKS]

    class Model(torch.nn.Module):
        def generate(self, input_ids: Any, **how: Any) -> Any:
            return torch.zeros(1, input_ids.shape[1] + 2, dtype=torch.int64)

    def loaded(made: Any) -> Callable[..., Any]:
        def load(folder: str, local_files_only: bool, **how: Any) -> Any:
            assert local_files_only and how.get("use_safetensors", True)
            return made

        return load

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", loaded(Processor()))
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", loaded(Model()))
    (tmp_path / "eye").mkdir()
    (tmp_path / "eye" / "config.json").write_text("{}")
    judge = find_judge(str(tmp_path / "eye"), "cpu")
    case = scene.case(0, 0)
    assert judge.name == "eye" and judge.judge(case.after, case) == Verdict(4, 5, 3, 2)
    first, second, text = asked[0][0]["content"]
    assert first["image"].size == second["image"].size and min(first["image"].size) >= vision_judges.SIDE and text["type"] == "text"


@pytest.mark.parametrize("text", ["", "model", "http://localhost:8000/v1", "http://localhost/v1=", "ftp://x=y", "file:///etc/passwd=m"])
def test_unknown_judges_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a judge"):
        find_judge(text)


# -- mirrored turns, and MIND's folders -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def turned() -> Walk:
    """A turn of 6 steps and back over a random panorama."""
    strip = np.random.default_rng(0).integers(0, 256, (16, 16 + 7 * 4, 3), np.uint8)
    actions = [0] * 16 + [6] * 6 + [7] * 6
    steps = np.cumsum([{6: 1, 7: -1}.get(a, 0) for a in actions])
    poses = np.zeros((len(actions), 5), np.float32)
    poses[:, 3] = steps * math.radians(15)
    return Walk(np.stack([strip[:, 4 * k : 4 * k + 16] for k in steps]), np.array(actions), poses, 16, 0)


def test_mirrored_truth_agrees_with_itself_and_a_frozen_film_is_invalid(turned: Walk) -> None:
    truth = mirror.score(turned.frames[16:], turned)
    assert truth["mirror_psnr"] == 60 and truth["mirror_ssim"] == pytest.approx(1) and truth["psnr"] == 60
    frozen = mirror.score(np.repeat(turned.frames[15:16], 12, 0), turned)
    assert frozen["mirror_psnr"] == 60 and frozen["motion"] == 0 and frozen["psnr"] < 30
    onward = turned.frames[16:].copy()
    onward[6:] = onward[6:][::-1]  # comes back in the wrong order
    assert mirror.score(onward, turned)["mirror_psnr"] < 30
    table = mirror.summarise({"mirror-90": {"truth": [truth] * 2, "frozen": [frozen] * 2}}, [("truth", "frozen")])
    assert [row["valid"] for row in table["return"]] == ["yes", "no: stands still"]
    assert table["return_differences"][0]["mirror_psnr"] == 0 and table["return_differences"][0]["psnr"] > 30
    with pytest.raises(ValueError, match="an even number of further frames, got 12 frames"):
        mirror.mirrored(turned.frames[:12])


@pytest.mark.parametrize("degrees", [90, 360])
def test_a_turn_out_and_back_in_the_true_world_mirrors_itself(world: gym.Env, degrees: int) -> None:
    walk = loopmem.walk_of(record(world, f"path-mirror-{degrees}", FIRST, np.random.default_rng(0), 1000), PATH)
    assert walk.leg == 2 * degrees // 15
    scores = mirror.score(walk.frames[walk.split :], walk)
    assert scores["mirror_psnr"] == 60 and scores["motion"] == scores["truth_motion"] > 1
    assert mirror.is_walked(walk, 1e-3, 1e-3) and mirror.is_out_and_back(mirror.sample_of(walk.frames[walk.split :], walk, MOVES, ""))


@needs_maze
def test_memory_maze_has_mirrored_turns_but_no_landmarks() -> None:
    env = gym.make("MemoryMaze-9x9-v0", task="free", size=16, disable_env_checker=True)
    walk = loopmem.walk_of(record(env, "path-mirror-180", FIRST, np.random.default_rng(0), 1000), PATH)
    env.close()
    motions = motions_of("memory_maze")
    assert walk.leg == 20 and mirror.is_walked(walk, motions.tolerances[0], motions.turn / 2) and not mirror.is_walked(walk, 0.3, 0.1)
    assert mirror.score(walk.frames[walk.split :], walk)["mirror_psnr"] > 20
    with pytest.raises(ValueError, match="MemoryMaze-9x9-v0 does not; use --branches replay return"):
        landmark_env("memory_maze", 16, "{}")


def test_minds_folders_come_back_as_they_were_written(turned: Walk, tmp_path: Path) -> None:
    sample = mirror.sample_of(turned.frames[16:], turned, MOVES, "a turn")
    mind.write_sample(tmp_path / "model" / "one", sample, 5)
    content = json.loads((tmp_path / "model" / "one" / "action.json").read_text())
    assert (content["mark_time"], content["total_time"]) == (16, 28)
    assert [content["data"][t]["lr"] for t in (0, 16, 27)] == [0, 1, 2] and content["data"][21]["actor_rpy"]["z"] == pytest.approx(90)
    (folder,) = mind.find_samples(tmp_path)
    back = mind.read_sample(folder)
    np.testing.assert_array_equal(back.frames, turned.frames)
    np.testing.assert_array_equal(back.keys, sample.keys)
    np.testing.assert_allclose(back.poses, turned.poses, atol=1e-6)
    assert (back.mark_time, back.caption) == (16, "a turn") and mirror.is_out_and_back(back)
    scores = mirror.score_sample(back)
    assert scores["mirror_psnr"] == 60 and scores["leg"] == 12 and scores["motion"] > 1
    with pytest.raises(ValueError, match="followed by their opposites"):
        mirror.score_sample(replace(back, mark_time=18))


def test_keys_follow_from_motions_and_are_taken_back_by_their_opposites() -> None:
    import torch

    keys = mind.keys_of(MOVES.motion(torch.arange(10)).numpy())
    assert keys.tolist() == [
        [0, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0],
        [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 1, 0], [0, 0, 2, 0],
    ]  # fmt: skip
    assert mind.is_mirrored(keys[[1, 6, 7, 2]]) and not mind.is_mirrored(keys[[1, 6, 2, 7]])
    assert not mind.is_mirrored(keys[[1, 2, 1]]) and not mind.is_mirrored(keys[:0])


def test_what_is_not_minds_is_refused(turned: Walk, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no sample of MIND"):
        mind.find_samples(tmp_path)
    sample = mirror.sample_of(turned.frames[16:], turned, MOVES, "")
    mind.write_sample(tmp_path, sample, 5)
    file = tmp_path / "action.json"
    content = json.loads(file.read_text())
    for change, words in (
        ({"mark_time": None}, "action.json is not MIND's"),
        ({"data": content["data"][:-1]}, "28 frames, 27 rows of keys"),
        ({"data": [{**row, "ws": 3} for row in content["data"]]}, "must be 0, 1 or 2"),
    ):
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=words):
            mind.read_sample(tmp_path)


# -- change while unseen ----------------------------------------------------------------------------------------------------------------


def test_who_remembers_shows_the_old_landmark(scene: Scene) -> None:
    cases = [scene.case(0, variant) for variant in range(len(VARIANTS))]
    grey = np.full_like(cases[0].empty, 127)
    for case in cases:
        assert [landmarks.shows(frame, case) for frame in (case.after, case.changed, case.empty)] == ["old", "new", "nothing"]
    assert landmarks.shows(grey, cases[0]) == "neither"
    legs = {
        "remembers": [case.walk.frames[OPENING:] for case in cases],
        "forgets": [np.concatenate([case.walk.frames[OPENING:-1], case.empty[None]]) for case in cases],
        "frozen": [np.repeat(case.before[None], case.walk.leg, 0) for case in cases],
    }
    views = {row: [landmarks.view_of(leg, case) for leg, case in zip(here, cases, strict=True)] for row, here in legs.items()}
    frames = {row: [landmarks.frame_of(view) for view in here] for row, here in views.items()}
    np.testing.assert_array_equal(frames["remembers"][3], cases[3].after)  # as it was stored
    shown = {row: [landmarks.shows(frame, case) for frame, case in zip(here, cases, strict=True)] for row, here in frames.items()}
    remembers, forgets, frozen = landmarks.summarise_changes(views, shown)["change"]
    assert remembers["shows_old"] == 1 and remembers["shows_old_low"] == pytest.approx(8 / (8 + 1.96**2), abs=1e-3)  # Wilson
    assert forgets["shows_old"] == 0 and forgets["shows_nothing"] == "1.00" and forgets["valid"] == "yes"
    assert frozen["shows_old"] == 1 and frozen["valid"] == "no: stands still"
    assert motion_columns(views["remembers"])["motion"] == "1.00"


# -- the program ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RevisitArgs:
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # walks are collected in this process
    return RevisitArgs(
        (f"{tiny_checkpoint(tmp_path)}=none,worldpack",), windows=1, context=6, steps=4, turns=(90,), walks=1, scenes=2, variants=2, wait=4,
        device="cpu", dtype="float32", out=tmp_path / "out",
    )  # fmt: skip


def as_read(report: dict[str, Any]) -> Any:
    return json.loads(json.dumps({name: value for name, value in report.items() if name != "out"}))


class Killed(BaseException): ...


def test_the_program_makes_its_tables_and_resumes_after_a_kill(small: RevisitArgs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = evaluate(replace(small, write_mind=True), progress=False)
    names = ["truth", "frozen", "worldpack-none", "worldpack-worldpack", "untrained"]
    assert all([row["row"] for row in whole[branch]] == names for branch in ("replay", "return", "landmark", "change"))
    assert [row["valid"] for row in whole["return"]][:2] == ["yes", "no: stands still"]
    truth = whole["landmark"][0]
    assert truth["score"] == truth["gated"] == pytest.approx(100) and truth["views"] == 4
    assert whole["return"][0]["mirror_psnr"] == 60 and whole["replay"][0]["psnr"] == 60
    assert [row["shows_old"] for row in whole["change"]][:2] == [0, 1] and whole["change"][0]["shows_new"] == 1
    assert whole["landmark_differences"][0]["difference"] == "worldpack-worldpack - worldpack-none"
    page = (small.out / "table.md").read_text()
    assert all(f"## {title}" in page for title in ("Replay", "In-domain return", "Open-domain return", "Change while unseen"))
    assert (small.out / "strips.png").exists() and not list((small.out / "paths" / "mirror-90").glob("*.tmp"))

    monkeypatch.setattr(program, "plot_strips", lambda *_: None)  # drawn once is enough
    real, made = rows.dream_legs, []

    def dies(world: Any, walks: Any, *rest: Any) -> list[Dream]:
        if len(made) == 4:
            raise Killed
        made.append(len(walks))
        return real(world, walks, *rest)

    again = replace(small, out=tmp_path / "again", mind=small.out / "mind")
    monkeypatch.setattr(rows, "dream_legs", dies)
    with pytest.raises(Killed):
        evaluate(again, progress=False)
    assert not (again.out / "result.json").exists()
    monkeypatch.setattr(rows, "dream_legs", lambda *a: made.append(0) or real(*a))
    resumed = evaluate(again, progress=False)
    assert len(made) == 9  # three rows of three groups, each once
    recorded = resumed.pop("return_recorded")
    assert as_read(resumed) == as_read(whole)
    expected = {row["row"]: pytest.approx(row["mirror_psnr"]) for row in whole["return"]}
    assert {row["model"]: row["mirror_psnr"] for row in recorded} == expected


def test_a_judge_that_fails_loses_no_finished_case(small: RevisitArgs, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_judges.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(program, "plot_strips", lambda *_: None)
    server = serve(lambda n: (200, MARKS) if n != 7 and n not in range(8, 10) else (200, "Sorry."))
    args = replace(small, branches=("landmark",), scenes=1, untrained=False, judges=("exact", f"{server.address}=eye"))
    with pytest.raises(ValueError, match=r"the judge 'eye' at http.* gave no marks in 3 answers.*verdicts are kept in"):
        evaluate(args, progress=False)
    verdicts = args.out / "cells" / "verdicts"
    assert sum(1 for _ in verdicts.glob("eye-*/*/*.json")) == 6 and sum(1 for _ in verdicts.glob("exact/*/*.json")) == 8
    report = evaluate(args, progress=False)
    assert len(server.asked) == 9 + 2  # only what was missing
    eye = [row for row in report["landmark"] if row["judge"] == "eye"]
    assert [row["score"] for row in eye] == 4 * [pytest.approx(Verdict(4, 5, 3, 2).score)]
    assert [row["of"] for row in report["agreement"]] == ["score", "gated"] and report["agreement"][0]["judges"] == "exact - eye"
    alone = evaluate(replace(args, branches=("change",)), progress=False)  # the same dreams
    assert "landmark" not in alone and alone["change"][0]["views"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"branches": ("replay", "turn")}, "branches must be of replay, return, landmark, change, got turn"),
        ({"judges": ()}, "judges must name at least one"),
        ({"judges": ("exact", "exact")}, "none twice"),
        ({"variants": 9}, "variants must be from 1 to 8, got 9"),
        ({"branches": ("replay",), "write_mind": True}, "belong to the branch return"),
        ({"scenes": 0}, "scenes must be positive"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RevisitArgs(**changes)


def test_bad_input_is_refused_before_any_work(small: RevisitArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changes, words in (
        ({"judges": ("nobody",)}, "a judge is exact"),
        ({"mind": tmp_path / "none"}, "holds no sample of MIND"),
        ({"env_kwargs": '{"size": 4}'}, "size"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(replace(small, **changes), progress=False)
    assert not small.out.exists()
    assert cli.main(["eval", "revisit", "--judges", "nobody", "--worlds", small.worlds[0], "--out", str(small.out)]) == 1
    assert capsys.readouterr().err.startswith("error: a judge is exact, URL=MODEL")
