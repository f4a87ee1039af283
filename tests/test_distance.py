"""A learned distance in steps: its bins and pairs are what they say, it learns the distances of a line, its file is for one autoencoder."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_reward import bordered
from tiny import CODER, tiny_checkpoint

from wmgym.agents.objectives import Futures, make_objective
from wmgym.checkpoint import load, load_world, read_file, write_tensors
from wmgym.cli import main
from wmgym.data.latents import Latents
from wmgym.metrics.statistics import rank_correlation
from wmgym.nets.distance import DistanceConfig, StepDistance
from wmgym.train import distance
from wmgym.train.distance import FILE, DistanceArgs, draw_pairs, fit_distance, load_distance, save

SMALL = DistanceConfig(CODER.latent_shape, most=8, width=8)


def args(data: Path, checkpoint: str, out: Path, **changes: Any) -> DistanceArgs:
    return DistanceArgs((data,), checkpoint, out, **{"most": 8, "width": 8, "steps": 12, "batch": 16, "save_every": 4, **changes})


def test_bins_grow_with_the_distance_and_cover_all_steps() -> None:
    assert DistanceConfig(most=32).starts == (0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32)
    assert DistanceConfig(most=2).starts == (0, 1, 2)
    values = StepDistance(SMALL).values
    assert values[:4].tolist() == pytest.approx([math.log(1 + n) for n in range(4)])
    assert float(values[4]) == pytest.approx((math.log(5) + math.log(6)) / 2) and float(values[-1]) == pytest.approx(math.log(17))


def test_rank_correlation_is_that_of_ranks() -> None:
    assert rank_correlation([1, 2, 3, 50], [0, 0.1, 7, 7.5]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(math.sqrt(0.9))  # ranks 1, 2.5, 2.5, 4
    assert math.isnan(rank_correlation([1, 1], [1, 2]))
    with pytest.raises(ValueError, match="same length, at least 2, got 1 and 2"):
        rank_correlation([1], [1, 2])


def test_pairs_lie_in_their_bins_and_all_frames_are_drawn() -> None:
    lengths, starts = np.array([30, 1, 9, 12]), SMALL.starts
    (rows, times), (rows_after, times_after), bins = draw_pairs(lengths, starts, np.random.default_rng(0), 20_000)
    assert (times >= 0).all() and (times < lengths[rows]).all() and (times_after >= 0).all() and (times_after < lengths[rows_after]).all()
    gaps, more = times_after - times, len(starts) - 1
    near = bins < more
    assert (rows == rows_after)[near].all() and (np.searchsorted(starts, gaps[near], side="right") - 1 == bins[near]).all()
    far = ~near & (rows == rows_after)
    assert (gaps[far] >= starts[-1]).all() and far.sum() / (~near).sum() == pytest.approx(0.5, abs=0.03)
    assert np.bincount(bins) / len(bins) == pytest.approx(np.full(more + 1, 1 / (more + 1)), abs=0.01)
    drawn = set(zip(rows[bins == 0].tolist(), times[bins == 0].tolist(), strict=True))
    first, second, again = draw_pairs(lengths, starts, np.random.default_rng(0), 20_000, reversible=True)
    ahead = (second[1] - first[1])[(bins > 0) & near]
    assert (again == bins).all() and (ahead < 0).mean() == pytest.approx(0.5, abs=0.02)
    assert (np.sort(abs(ahead)) == np.sort(gaps[(bins > 0) & near])).all()  # the same pairs, half of them in reverse order
    assert drawn == {(row, time) for row, length in enumerate(lengths) for time in range(length)}


def walks(worlds: int = 4, places: int = 16) -> Latents:
    """A bright column at the walker's place, in the colour of its world. Each world is walked along once in both directions."""
    films = torch.zeros(2 * worlds, places, 2, 2, places)
    for world in range(worlds):
        angle = torch.tensor(2 * math.pi * world / worlds)
        for time in range(places):
            for row, place in ((2 * world, time), (2 * world + 1, places - 1 - time)):
                films[row, time, :, :, place] = 2 * torch.stack([angle.cos(), angle.sin()])[:, None]
    count = films.shape[:2]
    return Latents(films, torch.zeros(*count, 5), torch.zeros(count, dtype=torch.int64), torch.full(count[:1], places))


def test_on_a_line_the_learned_distance_is_the_distance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, net = walks(), StepDistance(DistanceConfig((2, 2, 16), most=8, width=16))
    fit_distance(net, data, DistanceArgs((), "", tmp_path, most=8, width=16, steps=200, batch=64, save_every=200))
    line, starts = data.latents[0], net.config.starts
    a, b = (torch.arange(16).repeat_interleave(16), torch.arange(16).repeat(16))
    found, gap = net.log_steps(line[a], line[b]), (a - b).abs()
    means = torch.stack([found[(gap >= low) & (gap < high)].mean() for low, high in pairwise((*starts, 16))])
    assert bool((means[1:] > means[:-1]).all()), means
    torch.testing.assert_close(means, net.values, atol=0.25, rtol=0)
    assert float(found[gap == 1].max()) < float(found[gap >= 4].min())  # wherever and in whichever direction
    assert float(net.log_steps(data.latents[0], data.latents[2]).mean()) > float(found[gap == 2].mean())  # another world is further


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, checkpoint = bordered(tmp_path / "data"), tiny_checkpoint(tmp_path)
    whole = distance.train(args(data, checkpoint, tmp_path / "whole"), progress=False)
    calls, draw = [], distance.draw_pairs

    def killed(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return draw(*given)

    with monkeypatch.context() as patch:
        patch.setattr(distance, "draw_pairs", killed)
        with pytest.raises(KeyboardInterrupt):
            distance.train(args(data, checkpoint, tmp_path / "killed"), progress=False)
    resumed = distance.train(args(data, checkpoint, tmp_path / "killed"), progress=False)
    ours, theirs = (read_file(Path(report["distance"]))[0] for report in (resumed, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert resumed["rank_correlations"] == whole["rank_correlations"]
    assert [row["objective"] for row in whole["rank_correlations"]] == ["steps", "latent", "ssim"]
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["frames"] == 180  # three of four episodes
    tiny_checkpoint(tmp_path, seed=1)
    with pytest.raises(ValueError, match="was begun with autoencoder="):
        distance.train(args(data, checkpoint, tmp_path / "killed"), progress=False)


@pytest.mark.filterwarnings("ignore:dtype='float16' is slow")
def test_a_distance_belongs_to_its_autoencoder(tmp_path: Path) -> None:
    checkpoint, net, file = tiny_checkpoint(tmp_path), StepDistance(SMALL), tmp_path / FILE
    own = load(checkpoint).model.provenance.autoencoder
    save(file, net, own, {})
    again = load_distance(file, own)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items()) and again.config == SMALL
    assert load_world(checkpoint, dtype="float16").provenance.autoencoder == own  # a change of precision is none of autoencoder
    other = load(tiny_checkpoint(tmp_path, seed=1)).model.provenance.autoencoder
    with pytest.raises(ValueError, match=rf"SHA-256 {own[:16]}, this world has {other[:16]}: train a distance with its checkpoint"):
        load_distance(file, other)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_distance(file, own)
    file.write_bytes(content[:-9])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_distance(file, own)
    write_tensors(file, {"x": torch.zeros(2)})
    with pytest.raises(ValueError, match="is no distance"):
        load_distance(file, own)
    with pytest.raises(ValueError, match="no such file"):
        load_distance(tmp_path / "none", own)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"most": 1}, "most must be at least 2"),
        ({"width": 12}, "multiple of 8"),
        ({"steps": 0}, "steps must be positive"),
        ({"most": 60}, "no training episode has more than most=60 steps"),
    ],
)
def test_bad_options_are_named(changes: dict[str, int], match: str, tmp_path: Path) -> None:
    data, checkpoint = bordered(tmp_path / "data", episodes=2), tiny_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=match):
        distance.train(args(data, checkpoint, tmp_path / "out", **changes), progress=False)


def test_the_objective_has_a_cost_for_each_future_from_its_last_frame_to_its_own_goal(tmp_path: Path) -> None:
    world, generator = load(tiny_checkpoint(tmp_path)).model, torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = StepDistance(SMALL).eval()
    frames = torch.randint(0, 256, (2, 3, 16, 16, 3), generator=generator, dtype=torch.uint8)
    objective = make_objective("steps", goal_frames=frames[:, 0], encode=world.encode, distance=net)
    with torch.no_grad():
        cost = objective(Futures(frames, torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4)))
        latents = world.encode(frames)
        assert cost.shape == (2, 3) and cost.dtype == torch.float32
        assert float(cost[1, 2]) == pytest.approx(float(net.log_steps(latents[1, 2:], latents[1, :1])), rel=1e-5)
    with pytest.raises(ValueError, match="needs distance"):
        make_objective("steps", goal_frames=frames[:, 0], encode=world.encode)
    wrong = StepDistance(DistanceConfig((3, 2, 2), most=8, width=8))
    with pytest.raises(ValueError, match=r"reads latents \[3, 2, 2\], encode gives \[3, 4, 4\]"):
        make_objective("steps", goal_frames=frames[:, 0], encode=world.encode, distance=wrong)


def test_plans_are_made_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    save(tmp_path / FILE, StepDistance(SMALL), load(checkpoint).model.provenance.autoencoder, {})
    small = "--episodes 1 --max-steps 2 --horizon 2 --hold 2 --samples 4 --elites 2 --iterations 1 --no-film --task free --json".split()
    words = ["plan", "WorldPack-Minecraft-v0", "--checkpoint", checkpoint, *small, "--out", str(tmp_path / "plan"), "--objective", "steps"]
    assert main(words) == 1
    assert "--objective steps --distance FILE" in capsys.readouterr().err
    assert main([*words[:-1], "ssim", "--distance", str(tmp_path / FILE)]) == 1
    assert "no other objective does" in capsys.readouterr().err
    assert main([*words, "--distance", str(tmp_path / FILE)]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 3
    save(tmp_path / FILE, StepDistance(SMALL), load(checkpoint).model.provenance.autoencoder, {})  # other weights at the same path
    assert main([*words, "--distance", str(tmp_path / FILE)]) == 1
    assert "was begun with distance_weights=" in capsys.readouterr().err
    save(tmp_path / FILE, StepDistance(SMALL), "0" * 64, {})
    assert main([*words[:-1], "steps", "--distance", str(tmp_path / FILE)]) == 1
    assert "belongs to the autoencoder with SHA-256 0000" in capsys.readouterr().err
