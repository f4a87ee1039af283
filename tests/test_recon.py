"""Planning on RECON: what is fed, searched, ranked and measured is what the protocol says; the program runs from files to a table."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from drives import TOY, path, write_processed, write_released
from torch import Tensor

import wmgym
from wmgym import rng
from wmgym.agents import policy as policies
from wmgym.agents.cem import CEMConfig, Gaussian, straight_line_prior
from wmgym.agents.objectives import make_objective
from wmgym.agents.policy import PolicyConfig, along, fit_policy
from wmgym.agents.proposals import DreamConfig, View, actions_along, line_paths, plan_line, rank
from wmgym.benchmarks import recon as protocol
from wmgym.benchmarks.recon import Problem, far_frames, hops, judge_path, problem_of, stops
from wmgym.checkpoint import load, load_world, save
from wmgym.core import Clip, Footprint, Frames, Retrieval, WorldState
from wmgym.data import recon
from wmgym.data.latents import Latents
from wmgym.data.recon import Task, Trajectory
from wmgym.experiments.recon import ReconArgs, evaluate
from wmgym.geometry import compose
from wmgym.kinematics import Displacement
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.cdit import SIZES, CDiTConfig
from wmgym.systems.worldpack import WorldPackConfig, build
from wmgym.train import loop
from wmgym.train.worldpack import TrainArgs, draw_batch, train
from wmgym.world_model import WorldModel

pytest.importorskip("h5py")
MOVES = TOY.displacement
SIZE = 16


def look(poses: Tensor) -> Tensor:
    """What one sees at poses [..., 5]: uint8 [..., SIZE, SIZE, 3], smooth and never the same twice."""
    v, u = torch.meshgrid(torch.linspace(0, 1, SIZE), torch.linspace(0, 1, SIZE), indexing="ij")
    x, y, _, yaw, _ = (p[..., None, None] for p in poses.unbind(-1))
    waves = [torch.sin(3 * u + 0.4 * x), torch.sin(3 * v + 0.4 * y), torch.cos(2 * u + yaw + 0 * x)]
    return (127.5 + 120 * torch.stack(torch.broadcast_tensors(*waves), -1)).round().to(torch.uint8)


class TrueWorld(WorldModel):
    """The truth as the model: shows what is seen at the pose that the actions lead to."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.kinematics, self.chunk, self.frame_shape = MOVES, 1, (SIZE, SIZE, 3)
        self.strides: list[int] = []

    device = torch.device("cpu")  # type: ignore[assignment]

    def start(self, context: Clip, keys: Tensor) -> WorldState:
        rows = len(keys)
        nothing = torch.zeros(rows, dtype=torch.int64)
        nowhere = Retrieval(nothing[:, None][:, :0], torch.zeros(rows, 0))
        latents, poses = torch.zeros(rows, 1, 1, 1, 1), context.poses[:, -1]
        return WorldState(latents, poses, nothing, keys, poses, (), nowhere, Footprint(nothing, nothing))

    def step(self, state: WorldState, actions: Tensor, stride: int = 1) -> tuple[WorldState, Frames]:
        self.strides.append(stride)
        poses = compose(state.poses, MOVES.motion(actions[:, 0]))
        return replace(state, poses=poses, times=state.times + stride), Frames(look(poses)[:, None], poses[:, None])


@dataclass(frozen=True)
class Seen(Trajectory):
    """A drive through the true world."""

    def frames(self, index: Any, size: int) -> np.ndarray:
        return look(torch.from_numpy(self.poses[np.asarray(index)])).numpy().repeat(size // SIZE, 1).repeat(size // SIZE, 2)


def drive(seed: int = 0, length: int = 80) -> Trajectory:
    return Seen(f"drive-{seed}", path(length, seed), Path())


def problems(count: int = 3, goal: int = 8) -> list[Problem]:
    return [problem_of(drive(i), Task(f"drive-{i}", 11, goal), MOVES, SIZE, 6) for i in range(count)]


# -- what is fed ------------------------------------------------------------------------------------------------------------------------


def test_a_problem_holds_what_was_seen_and_what_came() -> None:
    problem = problem_of(drive(), Task("drive-0", 11, 8), MOVES, SIZE, 6)
    poses = torch.from_numpy(drive().poses)
    assert np.array_equal(problem.poses, drive().poses[6:12]) and np.array_equal(problem.goal, look(poses[19]).numpy())
    back = compose(poses[11].expand(8, 5), torch.from_numpy(problem.future))
    assert torch.allclose(back[:, :3], poses[12:20, :3], atol=1e-4)
    led = compose(torch.from_numpy(problem.poses[:-1]), MOVES.motion(torch.from_numpy(problem.actions[1:])))
    assert torch.allclose(led[:, :3], torch.from_numpy(problem.poses[1:, :3]), atol=1e-4)  # frame t is seen after action t
    with pytest.raises(ValueError, match="has 80 frames, the task at 75 needs the one 8 later"):
        problem_of(drive(), Task("drive-0", 75, 8), MOVES, SIZE, 6)


@pytest.mark.parametrize("evaluation", protocol.ISOLATED)
def test_frames_far_ahead_are_those_of_the_true_poses(evaluation: str) -> None:
    """Told the true displacements, the true world shows the true frames, by one jump or step after step."""
    asked, world = problems(goal=32), TrueWorld()
    frames = far_frames(world, asked, evaluation, (1, 2, 4, 8), [0, 1, 2])
    for problem, shown in zip(asked, frames, strict=True):
        there = compose(torch.from_numpy(problem.poses[-1]).expand(32, 5), torch.from_numpy(problem.future))[[3, 7, 15, 31]]
        assert np.abs(shown.astype(int) - look(there).numpy()).max() <= 1
    assert world.strides == {"time": [4, 8, 16, 32], "rollout_1fps": [4] * 8, "rollout_4fps": [1] * 32}[evaluation]


def test_the_released_slip_loses_the_offset_after_the_first_hop_and_only_by_its_switch() -> None:
    """Straight ahead by one spacing a step: -1/15 each time; the released code feeds +4/15 from the second step on."""
    future = np.zeros((1, 8, 5), np.float32)
    future[0, :, 0] = 0.5 * np.arange(1, 9)
    right = hops(future, range(1, 9), MOVES)
    slipped = hops(future, range(1, 9), MOVES, as_released=True)
    assert right[0, :, 0].tolist() == pytest.approx([-1 / 15] * 8, abs=1e-6)
    assert slipped[0, :, 0].tolist() == pytest.approx([-1 / 15, *[4 / 15] * 7], abs=1e-6)
    assert torch.equal(right[..., 1:], torch.zeros(1, 8, 2)) and torch.equal(slipped[..., 1:], torch.zeros(1, 8, 2))


def test_rates_that_do_not_fit_are_refused() -> None:
    assert stops("time", (1, 2), 4) == [[4], [8]] and stops("rollout_1fps", (1, 2), 4) == [[4, 8]]
    with pytest.raises(ValueError, match=r"rollout_4fps needs data at a multiple of 4 frames per second, these have 3"):
        stops("rollout_4fps", (1,), 3.0)
    with pytest.raises(ValueError, match="evaluation must be one of"):
        stops("rollout_2fps", (1,), 4)


# -- paths ------------------------------------------------------------------------------------------------------------------------------


def test_lines_go_where_they_say() -> None:
    sample = MOVES.action(torch.tensor([0.3, -0.4, 0, math.pi / 4, 0]))  # half a metre a step, down to the right; then an eighth of a turn
    found = line_paths(sample[None], 8, MOVES)[0]
    assert torch.allclose(found[:, :2], torch.arange(1, 9)[:, None] * torch.tensor([0.3, -0.4]), atol=1e-5)
    heading = math.atan2(-0.4, 0.3)
    assert found[:, 3].tolist() == pytest.approx([heading] * 7 + [heading + math.pi / 4], abs=1e-5)


def test_following_a_path_leads_along_it() -> None:
    paths = torch.stack([torch.from_numpy(p.future) for p in problems()])
    actions = actions_along(paths, MOVES)
    pose = torch.zeros(3, 5)
    for t in range(8):
        pose = compose(pose, MOVES.motion(actions[:, t]))
        assert torch.allclose(pose, paths[:, t], atol=1e-4)


def test_released_lines_tell_every_step_in_the_frame_of_the_start() -> None:
    sample = torch.tensor([[-0.1, 0.2, 0.05]])
    lines = line_paths(sample, 8, MOVES)
    released = actions_along(lines, MOVES, as_released=True)[0]
    assert torch.allclose(released[:, :2], sample[:, :2].expand(8, 2), atol=1e-5)
    own = actions_along(lines, MOVES)[0]
    assert torch.allclose(own[:, 2], released[:, 2], atol=1e-6)  # turns are the same
    assert torch.allclose(own[0], released[0], atol=1e-5)  # and so is the first step
    assert own[1:, 1].abs().max() < 1e-5 < own[0, 1].abs()  # then one looks along the line


# -- planning ---------------------------------------------------------------------------------------------------------------------------


def to_line() -> list[Problem]:
    """Problems whose truth is a straight line."""
    out = []
    for i, (dx, dy) in enumerate([(0.5, 0.1), (0.6, -0.2), (0.4, 0.0)]):
        poses = np.zeros((20, 5), np.float32)
        poses[:, 0], poses[:, 1] = dx * np.arange(20) + i, dy * np.arange(20)
        out.append(problem_of(Seen(f"line-{i}", poses, Path()), Task(f"line-{i}", 11, 8), MOVES, SIZE, 6))
    return out


def planned(asked: list[Problem], seeds: list[int], samples: int = 300) -> Tensor:
    world = TrueWorld()
    state = protocol.opened(world, asked, seeds)
    aim = make_objective("ssim", goal_frames=np.stack([p.goal for p in asked]))
    prior = Gaussian(torch.tensor([[-0.1, 0.0, 0.0]]), torch.tensor([[0.08, 0.1, 0.1]]))
    config = CEMConfig(samples=samples, elites=10, iterations=4, min_std=1e-3, with_mean=False, answer="mean")
    return plan_line(world, state, aim, prior, config, 8, DreamConfig()).paths


def test_planning_with_the_truth_as_the_model_finds_the_line_that_was_driven() -> None:
    asked = to_line()
    for found, problem in zip(planned(asked, [0, 1, 2]), asked, strict=True):
        row = judge_path(found.numpy(), problem, MOVES.spacing)
        assert row["ate_spacings"] < 0.2 and row["ate_m"] == pytest.approx(0.5 * row["ate_spacings"], rel=1e-3)


def test_a_task_is_planned_alike_in_any_batch() -> None:
    asked = to_line()
    together = planned(asked, [7, 8, 9], samples=40)
    assert torch.allclose(together[1], planned(asked[1:2], [8], samples=40)[0], atol=1e-6)


def test_ranking_takes_the_proposal_that_was_driven() -> None:
    asked, world = problems(), TrueWorld()
    truth = torch.stack([torch.from_numpy(p.future) for p in asked])
    wrong = truth[:, None] + torch.randn(3, 15, 1, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1, 0, 0.3, 0])
    proposals = torch.cat([wrong[:, :6], truth[:, None], wrong[:, 6:]], 1)
    state = protocol.opened(world, asked, [0, 1, 2])
    aim = make_objective("ssim", goal_frames=np.stack([p.goal for p in asked]))
    for at_once in (512, 4):
        chosen = rank(world, state, aim, proposals, DreamConfig(2, at_once))
        assert torch.equal(chosen.paths, truth)
        assert np.abs(chosen.frames.numpy().astype(int) - np.stack([p.goal for p in asked])).max() <= 1


def test_a_cost_that_is_no_number_is_not_chosen() -> None:
    asked, world = problems(1), TrueWorld()
    truth = torch.from_numpy(asked[0].future)
    proposals = torch.stack([truth + 0.1, truth, truth + 0.2])[None]
    state = protocol.opened(world, asked, [0])
    assert torch.equal(rank(world, state, lambda futures: torch.tensor([[math.nan, 2.0, 1.0]]), proposals).paths[0], proposals[0, 2])
    assert torch.equal(rank(world, state, lambda futures: torch.full((1, 3), math.nan), proposals).paths[0], proposals[0, 0])


def test_dreams_and_candidates_share_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    plain = rng.noise
    monkeypatch.setattr(rng, "noise", lambda keys, shape: (drawn.append(keys), plain(keys, shape))[1])
    dreamed: list[Tensor] = []

    class Listening(TrueWorld):
        def step(self, state: WorldState, actions: Tensor, stride: int = 1) -> tuple[WorldState, Frames]:
            dreamed.append(state.keys)
            return super().step(state, actions, stride)

    asked, world = to_line(), Listening()
    state = protocol.opened(world, asked, [0, 1, 2])
    prior = Gaussian(torch.tensor([[-0.1, 0.0, 0.0]]), torch.tensor([[0.08, 0.1, 0.1]]))
    aim = make_objective("ssim", goal_frames=np.stack([p.goal for p in asked]))
    plan_line(world, state, aim, prior, CEMConfig(samples=4, elites=2, iterations=2), 2, DreamConfig(repeats=3))
    candidates, dreams = ({tuple(key.tolist()) for keys in kind for key in keys} for kind in (drawn, dreamed))
    assert len(candidates) == 6 and len(dreams) == 9 and not candidates & dreams


def test_errors_of_a_shifted_path_are_the_shift() -> None:
    problem = problems(1)[0]
    row = judge_path(problem.future + np.array([0.3, 0.4, 0, 0.2, 0], np.float32), problem, 0.25)
    assert (row["ate_m"], row["ate_spacings"]) == pytest.approx((0.5, 2.0), rel=1e-4)
    assert row["rpe_m"] == pytest.approx(0, abs=1e-5) and row["final_yaw_rad"] == pytest.approx(0.2, abs=1e-4)


def test_the_prior_of_straight_drives_is_their_step() -> None:
    poses = np.zeros((30, 5), np.float32)
    poses[:, 0], poses[:, 3] = 0.5 * np.cos(0.3) * np.arange(30), 0.3
    poses[:, 1] = 0.5 * np.sin(0.3) * np.arange(30)
    straight = Trajectory("straight", poses, Path())
    still = Trajectory("still", np.zeros((30, 5), np.float32), Path())
    prior = straight_line_prior(*recon.straight_lines([straight, still], MOVES, 8))
    assert prior.mean[0].tolist() == pytest.approx([-1 / 15, 0, 0], abs=1e-5) and prior.std.abs().max() < 1e-4
    with pytest.raises(ValueError, match="no trajectory moves"):
        recon.straight_lines([still], MOVES, 8)


# -- the policy -------------------------------------------------------------------------------------------------------------------------


def test_the_policy_learns_where_one_drives_and_its_first_proposal_is_the_likeliest(tmp_path: Path) -> None:
    """On drives it was fitted to, it halves the error of standing still; proposals differ by row keys alone."""
    config = PolicyConfig(size=SIZE, steps=60, batch=32, width=64)
    drives = [drive(i) for i in range(6)]
    policy = fit_policy(drives, MOVES.spacing, config, tmp_path, progress=False)
    asked = problems(6)
    view = View(np.stack([p.frames[-4:] for p in asked]), np.stack([p.goal for p in asked]), rng.make_keys([1, 2, 3, 4, 5, 6]))
    proposals = policy.propose(view, 16)
    truth = torch.stack([torch.from_numpy(p.future) for p in asked])[..., :2]
    error = (proposals[:, 0, :, :2] - truth).norm(dim=-1).mean()
    assert error < 0.5 * truth.norm(dim=-1).mean()
    assert torch.equal(policy.propose(view, 32)[:, 0], proposals[:, 0])
    alone = policy.propose(View(view.frames[2:3], view.goals[2:3], view.keys[2:3]), 16)
    assert torch.allclose(alone[0], proposals[2], atol=1e-4)
    again = fit_policy(drives, MOVES.spacing, config, tmp_path, progress=False)  # read, not fitted
    assert torch.equal(again.propose(view, 2), policy.propose(view, 2))
    doubled = View(view.frames.repeat(2, 2).repeat(2, 3), view.goals.repeat(2, 1).repeat(2, 2), view.keys)
    assert torch.equal(policy.propose(doubled, 2), policy.propose(view, 2))  # frames of any size are looked at in its own
    for other, spacing in ((replace(config, seed=1), MOVES.spacing), (config, 1.0)):
        with pytest.raises(ValueError, match=r"policy\.safetensors was fitted with .* use another folder"):
            fit_policy(drives, spacing, other, tmp_path, progress=False)


def test_the_policy_keeps_a_bounded_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "MOST_BYTES", 200 * SIZE * SIZE * 3)
    drives = policies._Drives([drive(0), drive(1, 200), drive(2), drive(3)], PolicyConfig(size=SIZE), progress=False)
    assert len(drives.frames) == 160 and np.array_equal(drives.poses[80:], drive(2).poses)
    larger = policies._Drives([drive(0, 40), drive(1, 40)], PolicyConfig(size=2 * SIZE), progress=False)
    assert len(larger.poses) == 40


def test_a_path_looks_where_it_goes() -> None:
    poses = along(torch.tensor([[1.0, 0], [1, 1], [0, 1]]))
    assert poses[:, 3].tolist() == pytest.approx([0, math.pi / 2, math.pi])


# -- from files to a table --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned nothing, with small frames."""
    torch.manual_seed(0)
    coder = AutoencoderConfig(kind="pixels", factor=8, frame_size=SIZE)
    net = CDiTConfig(coder.latent_shape, width=32, depth=1, heads=2, num_actions=0, action_size=3, aspect=4 / 3)
    config = WorldPackConfig(setting="recon", pose_source="actions", autoencoder=coder, net=net, displacement=MOVES, memory_budget=40)
    return save(tmp_path_factory.mktemp("weights") / "model.safetensors", build(config), config)[0]


def arguments(tmp_path: Path, checkpoint: Path, **changes: Any) -> ReconArgs:
    few = {"tasks": 3, "samples": 4, "elites": 2, "repeats": 2, "rank": (3,), "policy_steps": 3, "denoise_steps": 1, "seconds": (1, 2)}
    data = tmp_path / "drives"
    if not data.exists():
        write_released(data, count=6)
    return ReconArgs(data, (str(checkpoint),), out=tmp_path / "out", **{**few, **changes})  # type: ignore[arg-type]


def test_the_program_runs_from_files_to_a_table_and_goes_on_where_it_was(tmp_path: Path, checkpoint: Path) -> None:
    args = arguments(tmp_path, checkpoint, evaluations=("planning", *protocol.ISOLATED))
    report = evaluate(args, progress=False)
    names = ["straight line", "line to the true goal", "GNM-like policy", "none", "none + policy x3", "worldpack", "worldpack + policy x3"]
    assert [row["system"] for row in report["planning"]] == names
    told = json.loads((args.out / "cells" / "planning-line-to-the-true-goal.json").read_text())["rows"]
    assert all(row["final_distance_m"] < 1e-4 and row["final_yaw_rad"] < 1e-4 for row in told)  # and straight, at one speed:
    assert all(np.allclose(np.diff(np.array(row["path"])[:, :2], axis=0), np.array(row["path"])[0, :2], atol=2e-3) for row in told)
    assert all(row["tasks"] == 3 and row["ate_m"] == pytest.approx(0.5 * row["ate_spacings"], rel=1e-4) for row in report["planning"])
    assert {(row["evaluation"], row["system"]) for row in report["frames"]} == {
        (evaluation, system) for evaluation in protocol.ISOLATED for system in ("copy", "none", "worldpack")
    }
    assert report["prior"] == "measured on drives without a task"
    made = {"args.json", "result.json", "table.md", "paths.png", "frames.png", "far.png"}
    assert made <= {file.name for file in args.out.iterdir()}
    assert json.loads((args.out / "result.json").read_text())["spacing_m"] == 0.5
    cell = args.out / "cells" / "planning-worldpack.json"
    held, stamp = json.loads(cell.read_text()), (args.out / "cells" / "planning-none.json").stat().st_mtime_ns
    whole = held["rows"]
    cell.write_text(json.dumps({**held, "rows": whole[:1]}))  # as if killed after the first task
    again = evaluate(replace(args, lanes=1), progress=False)
    assert (args.out / "cells" / "planning-none.json").stat().st_mtime_ns == stamp
    for row, other in zip(whole, json.loads(cell.read_text())["rows"], strict=True):
        assert np.allclose(row["path"], other["path"], atol=2e-3)
    assert again["planning"][0] == report["planning"][0]
    with pytest.raises(ValueError, match="was begun with samples=4, not 5"):
        evaluate(replace(args, samples=5), progress=False)


def test_rows_of_other_weights_are_neither_taken_nor_thrown_away(tmp_path: Path, checkpoint: Path) -> None:
    args = arguments(tmp_path, checkpoint, tasks=1, modes=("none",), rank=(), policy_steps=0)
    first = evaluate(args, progress=False)
    cell = args.out / "cells" / "planning-none.json"
    held = cell.read_bytes()
    moved, other = (str(tmp_path / name / "model.safetensors") for name in ("moved", "other"))
    loaded = load(checkpoint)
    save(moved, loaded.model, loaded.config)
    torch.nn.init.normal_(next(loaded.model.net.parameters()))
    save(other, loaded.model, loaded.config)
    assert evaluate(replace(args, checkpoint=(moved,)), progress=False)["planning"] == first["planning"] and cell.read_bytes() == held
    with pytest.raises(ValueError, match=r"planning-none\.json holds rows made with weights=.*checkpoint .*use another folder, or remove"):
        evaluate(replace(args, checkpoint=(other,)), progress=False)
    with pytest.raises(ValueError, match=r"holds rows made with dtype='float32'.* not 'bfloat16'"):
        evaluate(replace(args, dtype="bfloat16"), progress=False)
    with pytest.raises(ValueError, match=r"holds rows made with objective='latent'.* not 'ssim'"):
        evaluate(replace(args, objective="ssim"), progress=False)
    assert cell.read_bytes() == held
    cell.write_text(json.dumps(json.loads(held)["rows"]))
    with pytest.raises(ValueError, match="does not say what its rows were made with"):
        evaluate(args, progress=False)


def test_auto_is_what_the_folder_was_begun_with(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with other weights, or a GPU, the rest of a table is made as its first rows were."""
    args = arguments(tmp_path, checkpoint, tasks=1, modes=("none",), rank=(), policy_steps=0, evaluations=("planning", "time"))
    args = replace(args, dtype="bfloat16")
    assert evaluate(args, progress=False)["objective"] == "latent"
    monkeypatch.setattr("wmgym.experiments.recon.program.lpips_available", lambda: True)
    monkeypatch.setattr("wmgym.experiments.recon.program.available", lambda: ("psnr", "ssim", "lpips"))
    report = evaluate(replace(args, dtype="auto", modes=("none", "worldpack")), progress=False)
    assert (report["objective"], report["frame_metrics"]) == ("latent", "psnr, ssim")
    told = [json.loads((args.out / "cells" / f"planning-{name}.json").read_text())["made_with"] for name in ("none", "worldpack")]
    assert told[0] == told[1] and told[1]["dtype"] == "bfloat16"


def test_the_same_weights_are_known_in_any_precision(tmp_path: Path, checkpoint: Path) -> None:
    whole, half = (load_world(str(checkpoint), device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert whole.provenance.weights == half.provenance.weights and (whole.dtype_name, half.dtype_name) == ("float32", "bfloat16")
    other = load(checkpoint)
    with torch.no_grad():
        next(other.model.net.parameters()).flatten()[0].add_(1)
    (file,) = save(tmp_path / "other.safetensors", other.model, other.config)
    assert load_world(str(file), device="cpu").provenance.weights != whole.provenance.weights


def test_one_task_gives_valid_json(tmp_path: Path) -> None:
    args = replace(arguments(tmp_path, tmp_path), checkpoint=(), tasks=1, policy_steps=0)
    evaluate(args, progress=False)
    told = json.loads((args.out / "result.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert told["planning"][0]["ate_m"] > 0 and told["planning"][0]["ate_m_low"] is None
    assert "nan" not in (args.out / "table.md").read_text()


def test_what_there_is_to_dream_is_said_before_and_counted_right(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path, checkpoint, evaluations=("planning", "time", "rollout_4fps"), modes=("none",), denoise_steps=2)
    dreamed: list[int] = []
    step = WorldModel.step
    monkeypatch.setattr(WorldModel, "step", lambda self, s, a, stride=1: (dreamed.append(len(a)), step(self, s, a, stride))[1])
    evaluate(args)
    said = capsys.readouterr().err
    plan, ranked, far = ((4 * 1 + 1) * 2 + 1) * 8, 3 * 2 * 8, 2 + 8  # candidates and their mean, twice; proposals; seconds 1 and 2
    frames = 3 * (plan + ranked + far)
    assert sum(dreamed) == frames
    first = next(line for line in said.splitlines() if line.startswith("recon: "))
    assert first == f"recon: 9 rows to make, {frames:,} frames to dream, {2 * frames:,} network evaluations"
    assert f"{3 * plan} of {3 * plan} frames" in said  # the bar counts frames, and knows how many there will be
    evaluate(args)
    assert "recon: 0 rows to make, 0 frames to dream, 0 network evaluations" in capsys.readouterr().err


def rows_of(values: list[float], drives: list[str]) -> list[dict[str, Any]]:
    return [{"trajectory": d, "time": i, **dict.fromkeys(protocol.PLAN_COLUMNS, v)} for i, (v, d) in enumerate(zip(values, drives))]


def test_intervals_rest_on_drives_and_differences_are_paired() -> None:
    easy_and_hard, drives = [1.0, 1, 1, 9, 9, 9], ["a", "a", "a", "b", "b", "b"]
    planning = {
        "straight line": rows_of(easy_and_hard, drives),
        "NWM": rows_of([v - 0.5 for v in easy_and_hard], drives),
        "WorldPack": rows_of([v - 0.75 for v in easy_and_hard], drives),
    }
    found = protocol.summarise(planning, {}, ("straight line", "copy", "NWM"))
    assert [(row["tasks"], row["drives"]) for row in found["planning"]] == [(6, 2)] * 3
    assert (found["planning"][0]["ate_m_low"], found["planning"][0]["ate_m_high"]) == (1, 9)  # two drives say very little
    gaps = {row["difference"]: (row["ate_m"], row["ate_m_low"], row["ate_m_high"]) for row in found["planning_differences"]}
    assert gaps == {"NWM - straight line": (-0.5,) * 3, "WorldPack - straight line": (-0.75,) * 3, "WorldPack - NWM": (-0.25,) * 3}
    assert "| WorldPack - NWM |" in protocol.markdown(found, "")


def test_a_metric_counts_only_where_all_rows_have_it() -> None:
    row = {"trajectory": "a", "time": 3, "seconds": [1, 2], "psnr": [20.0, 10.0]}
    other = {**row, "time": 11, "ssim": [0.5, 0.25], "lpips": [0.1, 0.2]}
    whole = {**row, "ssim": [1.0, 1.0]}
    found = protocol.summarise({}, {"time": {"copy": [whole, {**whole, "time": 11}], "NWM": [row, other]}}, ("copy",))
    assert [("ssim" in line, "lpips" in line) for line in found["frames"]] == [(True, False), (False, False)] * 2
    assert [line["psnr"] for line in found["frame_differences"]] == [0, 0] and "ssim" not in found["frame_differences"][0]
    assert "psnr | ssim |" in protocol.markdown(found, "")


def test_a_published_split_and_the_processed_layout_are_taken(tmp_path: Path) -> None:
    import pickle

    folder = write_processed(tmp_path / "drives", count=4)
    (folder / "navigation_eval.pkl").write_bytes(pickle.dumps([("jackal_1", 3, 8, 8), ("jackal_2", 11, 8, 8)]))
    report = evaluate(ReconArgs(folder, policy_steps=2, out=tmp_path / "out"), progress=False)
    rows = json.loads((tmp_path / "out" / "cells" / "planning-straight-line.json").read_text())["rows"]
    assert [(row["trajectory"], row["time"]) for row in rows] == [("jackal_1", 3), ("jackal_2", 11)]
    assert [row["system"] for row in report["planning"]] == ["straight line", "line to the true goal", "GNM-like policy"]
    with pytest.raises(ValueError, match="asks for a goal 8 steps ahead, horizon is 6"):
        evaluate(ReconArgs(folder, horizon=6, policy_steps=0, out=tmp_path / "other"), progress=False)


def test_frames_far_ahead_are_judged_on_the_drives_that_a_split_names(tmp_path: Path) -> None:
    """time.pkl and rollout.pkl name the tasks; without them navigation_eval.pkl names the drives."""
    import pickle

    folder = write_processed(tmp_path / "drives", count=4)
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "navigation_eval.pkl").write_bytes(pickle.dumps([("jackal_2", 3, 8, 8), ("jackal_2", 11, 8, 8)]))

    def tasks(evaluation: str, out: str, **changes: Any) -> list[tuple[str, int]]:
        few = {"policy_steps": 0, "seconds": (1, 2), "tasks": 3, **changes}
        report = evaluate(ReconArgs(folder, evaluations=(evaluation,), out=tmp_path / out, **few), progress=False)  # type: ignore[arg-type]
        rows = json.loads((tmp_path / out / "cells" / f"{evaluation.replace('_', '-')}-copy.json").read_text())["rows"]
        assert report["frames"][0]["tasks"] == len(rows)
        return [(row["trajectory"], row["time"]) for row in rows]

    assert len({drive for drive, _ in tasks("time", "spread", tasks=12)}) > 1
    assert {drive for drive, _ in tasks("time", "named", split=splits / "navigation_eval.pkl")} == {"jackal_2"}
    (splits / "time.pkl").write_bytes(pickle.dumps([("jackal_3", 5, -5, 24), ("jackal_0", 7, -7, 22)]))
    (splits / "rollout.pkl").write_bytes(pickle.dumps([("jackal_1", 4, -4, 25)]))
    assert tasks("time", "time", split=splits / "navigation_eval.pkl") == [("jackal_3", 5), ("jackal_0", 7)]
    assert tasks("rollout_4fps", "rollout", split=splits / "navigation_eval.pkl") == [("jackal_1", 4)]
    (folder / "rollout.pkl").write_bytes((splits / "rollout.pkl").read_bytes())
    assert tasks("rollout_1fps", "beside") == [("jackal_1", 4)]


def test_weights_for_other_displacements_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    args = arguments(tmp_path, checkpoint)
    recon.write_dataset(args.data, replace(TOY, displacement=Displacement(spacing=0.25)))
    with pytest.raises(ValueError, match=r"was made for .*spacing=0\.5.* say .*spacing=0\.25"):
        evaluate(args, progress=False)


def test_training_on_drives_gives_a_checkpoint_that_says_what_its_actions_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "TINY", {"width": 32, "depth": 1, "heads": 2})
    data = write_released(tmp_path / "drives", count=2, length=8)  # rehearsal dreams 96 stretches, as long as drives are
    few = {"steps": 2, "batch": 4, "rehearsal": 0.5, "rehearse_every": 1, "save_every": 2, "pixels": True, "furthest": 4}
    few |= {"modes": "none:1,worldpack:1"}
    args = TrainArgs((data,), tmp_path / "run", setting="recon", frame_size=16, device="cpu", **few)  # type: ignore[arg-type]
    report = train(args, progress=False)
    loaded = load(report["checkpoint"])
    model, config = loaded.model, loaded.config
    assert config.displacement == MOVES and model.kinematics == MOVES and model.motion_head is None and config.pose_source == "actions"
    state = model.start(clip(data), rng.make_keys([0]))
    one, other = (model.step(state, torch.tensor([[[x, 0.0, 0.0]]]))[0] for x in (-1 / 15, 0.2))
    assert torch.allclose(one.poses[0], compose(state.poses[0], torch.tensor([0.5, 0, 0, 0, 0])), atol=1e-5)
    assert not torch.equal(one.poses, other.poses)
    with pytest.raises(ValueError, match=r"actions must have shape \(1, 1, 3\), got \(1, 1\)"):
        model.step(state, torch.zeros(1, 1))


def test_jumps_are_told_the_whole_displacement_and_show_the_frame_there() -> None:
    """Every example's action leads from the pose before it to the pose of its target; about half are single steps."""
    drives = [path(30, seed) for seed in range(4)]
    poses = torch.from_numpy(np.stack(drives))
    marks = torch.arange(4 * 30).view(4, 30, 1, 1, 1).float()  # each frame's latent is its number
    actions = torch.from_numpy(np.stack([recon.to_actions(Trajectory("", p, Path()), MOVES) for p in drives]))
    data = Latents(marks, poses, actions, torch.full((4,), 30))
    batch = draw_batch(data, loop.draw(0, 0, "cpu"), 400, jumps=(MOVES, 16))
    row, number = batch.latents.flatten().long() // 30, batch.latents.flatten().long() % 30
    assert torch.equal(batch.times[:, 0], number) and torch.equal(batch.poses[:, 0], poses[row, number])
    assert torch.allclose(compose(batch.pose, MOVES.motion(batch.actions[:, 0]))[:, :3], batch.poses[:, 0, :3], atol=1e-4)
    strides = number - batch.before.flatten().long() % 30
    assert 0.4 < (strides == 1).float().mean() < 0.65 and 12 < strides.max() <= 16 and strides.min() == 1
    plain = draw_batch(data, loop.draw(0, 0, "cpu"), 50)
    assert torch.equal(plain.actions[:, 0], actions[plain.latents.flatten().long() // 30, plain.times[:, 0]])
    with pytest.raises(ValueError, match="furthest must be positive, and 1 but in setting 'recon'"):
        TrainArgs((Path(),), Path(), furthest=4)


def clip(data: Path) -> Clip:
    drive = recon.read_trajectory(recon.list_trajectories(data)[0])
    frames, actions = drive.frames(range(6), 16), recon.to_actions(drive, MOVES)[:6]
    return Clip(*(torch.from_numpy(x)[None] for x in (frames, actions, drive.poses[:6], np.ones(6, bool))))


def test_the_displacement_reaches_the_network(checkpoint: Path) -> None:
    """With open gates, another action gives another frame."""
    world = load_world(str(checkpoint), device="cpu")
    net = build(load(checkpoint).config).net
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.copy_(0.2 * torch.randn_like(tensor))
    world.net = net.eval().requires_grad_(False)
    frames = torch.randint(0, 256, (2, 5, SIZE, SIZE, 3), dtype=torch.uint8)
    there = torch.ones(2, 5, dtype=torch.bool)
    state = world.start(Clip(frames, torch.zeros(2, 5, 3), torch.zeros(2, 5, 5), there), rng.make_keys([3, 3]))
    shown = world.step(state, torch.tensor([[[-1 / 15, 0, 0]], [[-1 / 15, 0, 0.3]]]))[1].pixels
    again = world.step(state, torch.tensor([[[-1 / 15, 0, 0]], [[-1 / 15, 0, 0.3]]]))[1].pixels
    assert torch.equal(shown, again) and not torch.equal(shown[0], world.step(state, torch.tensor([[[0.4, 0, 0]]] * 2))[1].pixels[0])


# -- environments -----------------------------------------------------------------------------------------------------------------------

RECON_IDS = ("NWM-Recon-v0", "WorldPack-Recon-v0")


@pytest.mark.parametrize("id", RECON_IDS)
def test_recon_ids_need_weights_and_drives(tmp_path: Path, checkpoint: Path, id: str) -> None:
    with pytest.raises(ValueError, match="give checkpoint="):
        gym.make(id)
    with pytest.raises(ValueError, match="give data="):
        gym.make(id, checkpoint=str(checkpoint))
    with pytest.raises(ValueError, match="holds no trajectories"):
        gym.make(id, checkpoint=str(checkpoint), data=str(tmp_path))
    with pytest.raises(ValueError, match="has no twin"):
        wmgym.twin(id)
    write_released(tmp_path, dataset=None)  # taken for RECON itself: spacing 0.25
    with pytest.raises(ValueError, match=r"the checkpoint was made for .*spacing=0\.5.*spacing=0\.25"):
        gym.make(id, checkpoint=str(checkpoint), data=str(tmp_path))


@pytest.mark.parametrize("id", RECON_IDS)
def test_a_drive_goes_on_in_the_dream(tmp_path: Path, checkpoint: Path, id: str) -> None:
    keywords = {"checkpoint": str(checkpoint), "data": str(write_released(tmp_path)), "device": "cpu", "denoise_steps": 1}
    env = gym.make(id, **keywords)
    assert env.action_space == gym.spaces.Box(-1, 1, (3,), np.float32) and env.observation_space.shape == (SIZE, SIZE, 3)
    assert env.unwrapped.get_action_meanings() == ["forward", "left", "turn"]
    keys = env.unwrapped.get_keys_to_action()
    assert all(env.action_space.contains(action) for action in keys.values())
    seen, info = env.reset(seed=4)
    assert info["goal"].shape == (5,) and 0 < info["goal_distance"] < 8
    start = torch.from_numpy(info["pose"])
    _, _, _, _, info = env.step(keys[("a", "w")])
    default = Displacement(spacing=0.5).motion(torch.from_numpy(keys[("a", "w")]))
    assert default.tolist() == pytest.approx([0.5, 0, 0, math.radians(15), 0], abs=1e-5)
    assert info["pose"] == pytest.approx(compose(start, default).numpy(), abs=1e-5)
    with pytest.raises(ValueError, match="action must lie in"):
        env.step(np.array([2, 0, 0], np.float32))
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert np.array_equal(again.reset(seed=4)[0], seen)
    vec = gym.make_vec(id, num_envs=2, **keywords)
    frames, infos = vec.reset(seed=4)
    assert np.array_equal(frames[0], seen) and infos["pose"].shape == (2, 5)
    moved = vec.step(np.stack([keys[("w",)]] * 2))[0]
    assert moved.shape == (2, SIZE, SIZE, 3)
    branches = env.unwrapped.branch(3)
    assert branches.step(np.stack([keys[("w",)]] * 3))[0].shape == (3, SIZE, SIZE, 3)


def test_data_means_nothing_elsewhere() -> None:
    with pytest.raises(ValueError, match="setting 'minecraft' takes no data"):
        gym.make("WorldPack-Minecraft-v0", data="drives")
