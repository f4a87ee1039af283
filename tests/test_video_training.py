"""Training of the video network: windows of true frames, conditions as dreams have them, a loss that sees what a cache would hold."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import assert_same, collect, tensors
from torch import Tensor

from wmgym import settings
from wmgym.checkpoint import load, read_file
from wmgym.data.latents import Latents
from wmgym.geometry import relative_pose
from wmgym.memory.coverage import CoverageConfig
from wmgym.nets.video_dit import SIZES, VideoDiT, VideoDiTConfig
from wmgym.systems.video import build, preset
from wmgym.train import run, video
from wmgym.train.loop import draw
from wmgym.train.run import random_latents
from wmgym.train.video import TrainArgs, train
from wmgym.train.video_loss import VideoLossConfig, flow_loss, make_batch
from wmgym.train.windows import WindowConfig, Windows, draw_windows

CHUNK, WINDOW = 4, 4
MOVES = settings.get("minecraft").kinematics
COVERAGE = CoverageConfig(MOVES.field_of_view, MOVES.aspect)
SMALL = {"width": 32, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def data() -> Latents:
    """Walks whose poses are those of the kinematics, of unequal length."""
    full = random_latents(MOVES, (3, 4, 4), episodes=6, frames=120)
    return replace(full, lengths=torch.tensor([120, 16, 15, 40, 90, 120]))


def windows(data: Latents, size: int = 400, step: int = 0, **changes: Any) -> tuple[Windows, WindowConfig]:
    config = WindowConfig(CHUNK, WINDOW, **{"most_old": 2, **changes})
    return draw_windows(data, draw(7, step, "cpu"), size, config, COVERAGE), config


# -- windows ----------------------------------------------------------------------------------------------------------------------------


def test_windows_without_gaps_are_contiguous_and_uniform_over_places(data: Latents) -> None:
    drawn, config = windows(data, 6000, gaps=0.0, short_openings=0.0)
    assert (drawn.times.diff(dim=1) == 1).all() and drawn.valid.all()
    assert (drawn.times >= 0).all() and (drawn.times[:, -1] < data.lengths[drawn.rows]).all()
    places = (data.lengths - config.frames + 1).clamp(min=0)
    assert places[2] == 0 and not (drawn.rows == 2).any()
    share = torch.bincount(drawn.rows, minlength=6) / 6000
    torch.testing.assert_close(share, places / places.sum(), atol=0.02, rtol=0)
    assert {0, int(places[0]) - 1} <= set(drawn.times[drawn.rows == 0, 0].tolist())  # the first place and the last


def test_old_chunks_are_whole_earlier_and_in_the_order_of_time(data: Latents) -> None:
    drawn, config = windows(data, gaps=1.0, short_openings=0.0)
    chunks = drawn.times.unflatten(1, (WINDOW, CHUNK))
    assert (chunks.diff(dim=2) == 1).all()  # no gap inside a chunk
    starts = chunks[..., 0]
    assert (starts >= 0).all() and (drawn.times[:, -1] < data.lengths[drawn.rows]).all()
    assert (starts.diff(dim=1) >= 0).all()
    kept = starts[:, config.most_old :]
    assert (kept.diff(dim=1) == CHUNK).all()  # what is not replaced is contiguous
    assert (starts[:, config.most_old - 1] + CHUNK <= kept[:, 0]).all()  # and what is replaced ends before it
    gapped = (starts.diff(dim=1) > CHUNK).any(1)
    assert 0.5 < gapped.float().mean() < 1  # some windows begin too early in an episode to have older chunks


def test_useful_old_chunks_show_more_of_the_last_view_than_chance() -> None:
    """A camera that turns on the spot, a full turn in 24 frames: half of the old chunks are chosen for what they show."""
    frames = 240
    yaw = torch.remainder(torch.arange(frames) * math.tau / 24 + math.pi, math.tau) - math.pi
    poses = torch.zeros(1, frames, 5)
    poses[0, :, 3] = yaw
    blank, still = torch.zeros(1, frames, 3, 4, 4, dtype=torch.float16), torch.zeros(1, frames, dtype=torch.int64)
    turning = Latents(blank, poses, still, torch.tensor([frames]))
    drawn, _ = windows(turning, 600, gaps=1.0, most_old=1, short_openings=0.0)
    chunks = drawn.times.unflatten(1, (WINDOW, CHUNK))
    old = (chunks[:, 1, 0] - chunks[:, 0, 0]) > CHUNK
    apart = yaw[chunks[old, 0, 2]] - yaw[chunks[old, -1, 2]]
    near = (torch.remainder(apart + math.pi, math.tau) - math.pi).abs() < math.radians(30)
    assert near.float().mean() > 0.4  # 1/6 by chance, two thirds if half are chosen


def test_some_windows_begin_within_a_chunk(data: Latents) -> None:
    drawn, _ = windows(data, 4000, short_openings=0.5)
    held = drawn.valid.sum(1)
    assert drawn.valid[:, CHUNK - 1 :].all()  # only the first chunk lacks frames, and never its last
    assert set(held.tolist()) == {CHUNK * WINDOW - lacks for lacks in range(CHUNK)}
    assert 0.45 < (held < CHUNK * WINDOW).float().mean() < 0.55


def test_windows_depend_on_seed_and_step_alone(data: Latents) -> None:
    (a, _), (b, _), (c, _) = windows(data), windows(data), windows(data, step=1)
    assert torch.equal(a.times, b.times) and torch.equal(a.rows, b.rows) and torch.equal(a.valid, b.valid)
    assert not torch.equal(a.times, c.times)


def test_windows_that_do_not_fit_are_refused(data: Latents) -> None:
    with pytest.raises(ValueError, match=r"no episode has the 16 frames of a window: collect longer ones"):
        windows(replace(data, lengths=torch.full((6,), 15)))
    with pytest.raises(ValueError, match=r"gaps and short_openings are shares in \[0, 1\], got 2 and 0.1"):
        WindowConfig(CHUNK, WINDOW, gaps=2)
    with pytest.raises(ValueError, match="most_old must be below the window's 4 chunks, got 4"):
        WindowConfig(CHUNK, WINDOW, most_old=4)


# -- conditions -------------------------------------------------------------------------------------------------------------------------


def batch_of(data: Latents, seed: int = 0, gaps: float = 0.5, **loss: Any) -> tuple[Any, Windows]:
    drawn, _ = windows(data, 64, gaps=gaps)
    return make_batch(data, drawn, MOVES, CHUNK, torch.Generator().manual_seed(seed), VideoLossConfig(**loss)), drawn


def test_expected_poses_are_true_ones_where_the_kinematics_are_right(data: Latents) -> None:
    batch, drawn = batch_of(data, drifting=0.0)
    rows = drawn.rows[:, None]
    torch.testing.assert_close(batch.clean.poses, data.poses[rows, drawn.times])
    torch.testing.assert_close(batch.expected.poses[..., :3], batch.clean.poses[..., :3], atol=1e-4, rtol=0)
    assert relative_pose(batch.expected.poses, batch.clean.poses)[..., 3:].abs().max() < 1e-4
    torch.testing.assert_close(batch.latents, data.latents[rows, drawn.times].float())


def test_poses_drift_from_chunk_to_chunk_and_both_streams_drift_alike(data: Latents) -> None:
    batch, drawn = batch_of(data, drifting=1.0, drift=0.3, turn_drift=0.0)
    shift = batch.clean.poses - data.poses[drawn.rows[:, None], drawn.times]
    chunks = shift.unflatten(1, (WINDOW, CHUNK))
    torch.testing.assert_close(chunks, chunks[:, :, :1].expand_as(chunks))  # one error per chunk
    steps = chunks[:, :, 0].diff(dim=1)[..., :2]
    uncertain = MOVES.mask("cpu").bool()
    assert (chunks[..., ~uncertain] == 0).all()  # what the kinematics know does not drift
    if uncertain[0]:
        assert 0.2 < float(steps.std()) < 0.4
    torch.testing.assert_close(batch.expected.poses[..., :3], batch.clean.poses[..., :3], atol=1e-4, rtol=0)


def test_a_correction_shows_only_in_clean_poses(data: Latents) -> None:
    """A collision: frames stand still though the action walked. The noisy chunk is made where the walk was expected to lead."""
    still = replace(data, poses=data.poses[:, :1].expand_as(data.poses).contiguous(), actions=torch.ones_like(data.actions))
    drawn, _ = windows(still, 16, gaps=0.0, short_openings=0.0)
    batch = make_batch(still, drawn, MOVES, CHUNK, torch.Generator(), VideoLossConfig(drifting=0.0))
    assert (batch.clean.egomotion == 0).all() and (batch.clean.poses.diff(dim=1) == 0).all()
    ahead = relative_pose(batch.expected.poses, batch.clean.poses)[..., 0].unflatten(1, (WINDOW, CHUNK))
    step = float(MOVES.motion(torch.tensor([1]))[0, 0])
    inner = ahead[:, 1:]  # the first chunk of an episode has nothing before it
    torch.testing.assert_close(inner, (step * torch.arange(1, CHUNK + 1)).expand_as(inner), atol=1e-4, rtol=1e-4)


# -- loss -------------------------------------------------------------------------------------------------------------------------------


def sizes(**changes: Any) -> VideoDiTConfig:
    return replace(preset("MICRO", chunk=CHUNK, window=WINDOW, patch=1, **{**SMALL, **changes}).net, latent_shape=(3, 4, 4))


def net_of(**changes: Any) -> VideoDiT:
    torch.manual_seed(0)
    net = VideoDiT(sizes(**changes))
    for weight in net.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.05)
    return net


def loss_of(net: VideoDiT, batch: Any, seed: int = 3, **changes: Any) -> Tensor:
    return flow_loss(net, batch, torch.Generator().manual_seed(seed), VideoLossConfig(**changes))


def test_frames_that_do_not_exist_and_hidden_pasts_change_nothing(data: Latents) -> None:
    net = net_of()
    batch, _ = batch_of(data)
    assert not batch.valid.all()
    other = replace(batch, latents=torch.where(batch.valid[..., None, None, None], batch.latents, 9.0))
    torch.testing.assert_close(loss_of(net, other), loss_of(net, batch))


def test_the_past_matters_only_where_it_is_shown(data: Latents) -> None:
    """Another latent in the first chunk: with the past absent, only that chunk's own loss changes."""
    net = net_of()
    batch, _ = batch_of(data, gaps=0.0)
    batch = replace(batch, valid=torch.ones_like(batch.valid))

    def later(latents: Tensor, **changes: Any) -> Tensor:
        """Gradient of the loss with respect to the first chunk's clean latents beyond its own target."""
        latents = latents.clone().requires_grad_()
        detached = replace(batch, latents=latents)
        loss_of(net, detached, **changes).backward()
        assert latents.grad is not None
        return latents.grad[:, :CHUNK]

    hidden = later(batch.latents, forced=0.0, absent=1.0, drowned=0.0)
    drowned = later(batch.latents, forced=0.0, absent=0.0, drowned=1.0)
    shown = later(batch.latents, forced=0.0, absent=0.0, drowned=0.0)
    torch.testing.assert_close(hidden, drowned, atol=1e-3, rtol=0.2)  # pure noise tells nothing of the latents
    assert not torch.allclose(hidden, shown, atol=1e-6)


def test_an_untrained_network_has_the_loss_of_the_velocity_itself(data: Latents) -> None:
    """Output zero: the mean square of noise - data, about 2 for latents of unit variance."""
    torch.manual_seed(0)
    net = VideoDiT(sizes())
    batch, _ = batch_of(data)
    assert float(loss_of(net, batch).detach()) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("wrong", [{"forced": 1.5}, {"forced": 0.9, "absent": 0.1, "drowned": 0.1}])
def test_shares_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"forced"):
        VideoLossConfig(**wrong)


# -- the whole command ------------------------------------------------------------------------------------------------------------------


def arguments(data: Path, out: Path, **changes: Any) -> TrainArgs:
    few = {"steps": 4, "batch": 2, "autoencoder_steps": 3, "autoencoder_batch": 4, "save_every": 4, "chunk": 2, "window": 3}
    return TrainArgs((data,), out, **{**few, "size": "MICRO", **changes})


@pytest.fixture
def episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(SIZES, "MICRO", {**SMALL, "patch": 1})
    monkeypatch.setattr(run, "_writer", lambda out: None)  # TensorBoard takes longer to import than all this
    return collect(tmp_path / "data", length=14)


def test_a_killed_run_continues_as_if_it_had_not_been(episodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = train(arguments(episodes, tmp_path / "whole"), progress=False)
    args = arguments(episodes, tmp_path / "killed", save_every=2)
    calls: list[int] = []

    def killed(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the last step, after a save at the second
            raise KeyboardInterrupt
        return draw_windows(*given)

    with monkeypatch.context() as patch:
        patch.setattr(video, "draw_windows", killed)
        with pytest.raises(KeyboardInterrupt):
            train(args, progress=False)
    assert read_file(args.out / "net-state.safetensors")[1]["step"] == "2"
    train(args, progress=False)
    for name in ("net-state", "model"):
        assert_same(tensors(tmp_path / "killed" / f"{name}.safetensors"), tensors(tmp_path / "whole" / f"{name}.safetensors"))
    loaded = load(report["checkpoint"])
    assert loaded.config.system == "video" and loaded.config.net.chunk == 2 and loaded.config.net.window == 3
    assert {"none_next", "none_dream", "autoencoder", "copy"} <= loaded.notes.keys()
    assert "wmgym train video" in loaded.notes["command"]


def test_pose_rotation_can_be_left_out(episodes: Path, tmp_path: Path) -> None:
    report = train(arguments(episodes, tmp_path / "plain", steps=1, pose_rotary=False), progress=False)
    assert load(report["checkpoint"]).config.net.pose_rotary is False


def test_fresh_weights_are_those_of_the_seed() -> None:
    torch.manual_seed(3)
    a = build(preset("MICRO", **SMALL)).state_dict()
    torch.manual_seed(3)
    assert_same(a, build(preset("MICRO", **SMALL)).state_dict())
