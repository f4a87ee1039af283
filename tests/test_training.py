"""Training resumes bit for bit, stops at the first bad number with the batch at hand, and refuses what it cannot use."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wmgym.checkpoint import load, read_file, write_tensors
from wmgym.data.episode import Episode, Metadata, list_episodes, load_episode, save_episode
from wmgym.data.latents import Latents, encode
from wmgym.files import LOCK
from wmgym.nets.autoencoder import Autoencoder, AutoencoderConfig
from wmgym.nets.cdit import SIZES, CDiT
from wmgym.nets.heads import HeadConfig, MotionHead, RewardHead
from wmgym.systems.worldpack import build, preset
from wmgym.train import held_out, loop, rehearsal, run, worldpack
from wmgym.train.loop import Average, LoopConfig, draw, fit
from wmgym.train.run import half_precision
from wmgym.train.worldpack import TrainArgs, train


def collect(folder: Path, episodes: int = 3, length: int = 9, size: tuple[int, int] = (16, 16), seed: int = 0) -> Path:
    """Episodes of stripes that move: small, and not all alike."""
    rng = np.random.default_rng(seed)
    for n in range(episodes):
        poses = np.zeros((length, 5), np.float32)
        poses[:, :2] = rng.normal(size=(length, 2)).cumsum(0)
        across = np.arange(size[1])[None, None, :, None] + poses[:, :1, None, None] * 3
        frames = np.broadcast_to(127 + 100 * np.sin(across * np.array([0.5, 0.9, 1.3])), (length, *size, 3))
        episode = Episode(
            frames.astype(np.uint8),
            rng.integers(0, 10, length),
            poses,
            np.zeros(length, np.float32),
            np.zeros(length, bool),
            np.zeros(length, bool),
            Metadata(env_id="test", seed=n, walker="random"),
        )
        save_episode(folder / f"{n:03d}.safetensors", episode)
    return folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(SIZES, "TINY", {"width": 32, "depth": 1, "heads": 2})
    monkeypatch.setattr(run, "_writer", lambda out: None)  # TensorBoard takes longer to import than all this
    return collect(tmp_path / "data")


def arguments(data: Path, out: Path, **changes: Any) -> TrainArgs:
    few = {"steps": 6, "batch": 3, "autoencoder_steps": 3, "autoencoder_batch": 4, "save_every": 6, "rehearse_every": 2}
    return TrainArgs((data,), out, **{**few, "modes": "none:1,worldpack:1", **changes})


def tensors(path: Path) -> dict[str, Tensor]:
    return read_file(path)[0]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and len(a) > 0
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


# -- the whole command ----------------------------------------------------------------------------------------------------------------


def test_a_killed_run_continues_as_if_it_had_not_been(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the autoencoder learns, while frames are encoded, while the network learns and while it is measured."""
    train(arguments(data, tmp_path / "whole"), progress=False)
    out = arguments(data, tmp_path / "killed", save_every=2)

    def killed(module: ModuleType, where: str, at: int) -> None:
        with monkeypatch.context() as patch:
            real, calls = getattr(module, where), []

            def once(*arguments: Any, **keywords: Any) -> Any:
                calls.append(1)
                if len(calls) == at:
                    raise KeyboardInterrupt
                return real(*arguments, **keywords)

            patch.setattr(module, where, once)
            with pytest.raises(KeyboardInterrupt):
                train(out, progress=False)

    killed(run, "half_precision", 2)  # the autoencoder's second step
    assert not (out.out / "autoencoder.safetensors").exists()
    killed(run, "encode", 1)
    assert not (out.out / "latents.safetensors").exists()
    killed(worldpack, "next_batch", 4)  # the network's fourth step, after a save at the second
    assert read_file(out.out / "net-state.safetensors")[1]["step"] == "2"
    killed(held_out, "_mean_psnr", 1)  # the measuring after the save at the fourth
    assert read_file(out.out / "net-state.safetensors")[1]["step"] == "4"
    train(out, progress=False)
    for name in ("autoencoder", "latents", "net-state", "model"):
        assert_same(tensors(tmp_path / "killed" / f"{name}.safetensors"), tensors(tmp_path / "whole" / f"{name}.safetensors"))
    assert {path.name for path in out.out.glob(".*")} == {LOCK, f"{LOCK}.json"}  # no temporary file is left

    before = tensors(out.out / "model.safetensors")
    report = train(out, progress=False)  # finished already: nothing changes
    assert_same(tensors(out.out / "model.safetensors"), before)

    loaded = load(report["checkpoint"])
    notes = loaded.notes
    assert loaded.config.net.width == 32 and loaded.model.frame_shape == (16, 16, 3)
    assert notes["frames"] == 18 and "--steps 6" in notes["command"]
    assert {"none_next", "none_dream", "worldpack_next", "worldpack_dream", "autoencoder", "copy"} <= notes.keys()
    assert all(math.isfinite(notes[k]) for k in ("none_dream", "autoencoder"))
    assert json.loads((out.out / "result.json").read_text()) == json.loads(json.dumps(report))


def test_a_run_in_the_same_folder_must_be_the_same_run(data: Path, tmp_path: Path) -> None:
    args = arguments(data, tmp_path / "run", pixels=True, steps=2)
    train(args, progress=False)
    for name, value in (("batch", 4), ("seed", 1), ("pixels", False), ("rate", 0.5)):
        with pytest.raises(ValueError, match=rf"{name}={getattr(args, name)!r}.*{value!r}"):
            train(replace(args, **{name: value}), progress=False)
    train(replace(args, steps=3), progress=False)  # but it may go on for longer
    assert read_file(args.out / "net-state.safetensors")[1]["step"] == "3"


def test_another_models_autoencoder_or_weights_can_be_taken(data: Path, tmp_path: Path) -> None:
    first = train(arguments(data, tmp_path / "first", steps=1), progress=False)["checkpoint"]
    second = train(arguments(data, tmp_path / "second", steps=1, seed=5, autoencoder=first), progress=False)["checkpoint"]
    a, b = tensors(Path(first)), tensors(Path(second))
    assert all(torch.equal(a[k], b[k]) for k in a if k.startswith("autoencoder."))
    assert not torch.equal(a["net.position"], b["net.position"])
    with pytest.raises(ValueError, match=r"model\.safetensors has other shapes"):
        train(arguments(data, tmp_path / "third", latent_channels=5, autoencoder=first), progress=False)


def test_weights_of_one_world_can_start_another(data: Path, tmp_path: Path) -> None:
    """All is taken but what the actions shape: ten rows of one embedding do not fit into six."""
    first = train(arguments(data, tmp_path / "first", steps=1), progress=False)["checkpoint"]
    config = load(first).config
    model = build(replace(config, setting="memory_maze", net=replace(config.net, num_actions=6)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run.warm_start(model, arguments(data, tmp_path / "second", setting="memory_maze", init=first))
    after, other = model.state_dict(), tensors(Path(first))
    fresh = {k for k in after if torch.equal(after[k], before[k]) and not torch.equal(after[k], other.get(k, after[k][:0]))}
    assert fresh == {"net.action_embed.weight", "motion_head.pair.action.weight"}
    wider = build(replace(config, net=replace(config.net, width=2 * config.net.width)))
    with pytest.raises(ValueError, match=r"other shapes than this model: net\.blocks\.0\..* does not fit; choose its --size"):
        run.warm_start(wider, arguments(data, tmp_path / "third", init=first))


def test_a_seed_gives_the_first_weights_that_it_gave_in_0_1() -> None:
    """Parts draw their weights in this order: what a published command trains must not depend on the version."""
    coder = AutoencoderConfig(frame_size=16, widths=(8, 8), factor=4)
    config = replace(preset(autoencoder=coder), outcomes=((0.0, False), (1.0, False)))
    heads = HeadConfig(config.net.latent_shape, config.net.num_actions)
    torch.manual_seed(4)
    parts = {"autoencoder": Autoencoder(config.autoencoder), "net": CDiT(config.net)}
    parts |= {"motion_head": MotionHead(heads), "reward_head": RewardHead(heads, config.outcomes)}
    torch.manual_seed(4)
    model = build(config)
    wanted = {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}
    assert_same(dict(model.state_dict()), wanted)


def test_data_that_cannot_be_learnt_from_is_named_before_any_work(data: Path, tmp_path: Path) -> None:
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            train(arguments(folder, tmp_path / "out"), progress=False)
        assert not (tmp_path / "out").exists()

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "wmgym collect")
    refused(tmp_path / "missing", "wmgym collect")
    refused(collect(tmp_path / "wide", size=(16, 24)), r"000\.safetensors.*16 x 24")
    refused(collect(tmp_path / "short", length=1), "short.*nothing to learn")
    collect(tmp_path / "mixed", episodes=4)
    collect(tmp_path / "mixed", episodes=1, size=(32, 32)).joinpath("000.safetensors").rename(tmp_path / "mixed" / "007.safetensors")
    refused(collect(tmp_path / "mixed"), r"007\.safetensors.*32 x 32, expected 16 x 16")
    broken = tmp_path / "mixed" / "007.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    refused(tmp_path / "mixed", r"007\.safetensors")


# -- the loop -------------------------------------------------------------------------------------------------------------------------


class Line(nn.Module):
    """Two weights for two optimisers, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(20, 20))
        self.vector = nn.Parameter(torch.randn(20))
        self.register_buffer("counter", torch.zeros(()))

    def loss(self, randomness: loop.Draw) -> Tensor:
        self.counter += 1
        x = torch.randn(8, 20, generator=randomness.torch) * float(randomness.numpy.uniform(0.5, 2))
        return (x @ self.matrix + self.vector - x.flip(1)).square().mean()


def fit_line(out: Path, config: LoopConfig, spoil: Any = None) -> tuple[Line, Average]:
    torch.manual_seed(3)
    line, step = Line(), [0]
    optimisers: dict[str, torch.optim.Optimizer] = {
        "muon": torch.optim.Muon([line.matrix], lr=0.02),
        "adam": torch.optim.AdamW([line.vector], 0.01),
    }

    def losses(randomness: loop.Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        loss = line.loss(randomness)
        step[0] += 1
        return {"total": spoil(step[0], loss) if spoil else loss}, {"x": torch.full((2,), float(step[0]))}

    out.mkdir(exist_ok=True)
    return line, fit(line, optimisers, losses, config, out, name="line", progress=False)


def killed_at(step: int) -> Any:
    def spoil(now: int, loss: Tensor) -> Tensor:
        if now == step:
            raise KeyboardInterrupt
        return loss

    return spoil


@pytest.mark.parametrize("kills", [[8], [3, 5], [6, 1, 4, 2]])
def test_the_state_file_holds_all_that_matters(tmp_path: Path, kills: list[int]) -> None:
    config = LoopConfig(12, warmup=4, save_every=2)
    whole, _ = fit_line(tmp_path / "whole", config)
    for kill in kills:
        with pytest.raises(KeyboardInterrupt):
            fit_line(tmp_path / "killed", config, killed_at(kill))
    resumed, _ = fit_line(tmp_path / "killed", config)
    assert_same(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert_same(tensors(tmp_path / "killed" / "line-state.safetensors"), tensors(tmp_path / "whole" / "line-state.safetensors"))


def test_saving_and_measuring_do_not_disturb(tmp_path: Path) -> None:
    often, _ = fit_line(tmp_path / "often", LoopConfig(6, save_every=1, log_every=1))
    seldom, _ = fit_line(tmp_path / "seldom", LoopConfig(6))
    assert_same(dict(often.state_dict()), dict(seldom.state_dict()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_the_batch_saved(tmp_path: Path, bad: float) -> None:
    config = LoopConfig(9, save_every=2)
    with pytest.raises(ValueError, match=r"loss became (nan|inf) at step 4; .*line-bad-batch.*line-state"):
        fit_line(tmp_path, config, lambda step, loss: loss * bad if step == 5 else loss)
    held, header = read_file(tmp_path / "line-bad-batch.safetensors")
    assert held["x"].tolist() == [5, 5] and header["step"] == "4"
    state = tensors(tmp_path / "line-state.safetensors")
    assert all(torch.isfinite(v).all() for v in state.values())
    resumed, _ = fit_line(tmp_path, config)
    whole, _ = fit_line(tmp_path / "whole", config)
    assert torch.equal(resumed.matrix, whole.matrix)


def test_a_gradient_that_is_no_number_stops_before_it_spoils_the_weights(tmp_path: Path) -> None:
    """sqrt at 0 has a finite value and an infinite slope: the next save would hold no number at all."""
    config = LoopConfig(9, save_every=1)
    with pytest.raises(ValueError, match="gradient became nan at step 4"):
        fit_line(tmp_path, config, lambda step, loss: loss + (0 * loss).sqrt() if step == 5 else loss)
    assert all(torch.isfinite(v).all() for v in tensors(tmp_path / "line-state.safetensors").values())


def test_a_full_disk_leaves_the_last_state_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoopConfig(8, save_every=2)
    count = []

    def full(path: Path, *rest: Any) -> None:
        count.append(path)
        if len(count) == 3:
            raise OSError(28, f"cannot write {path}: No space left on device")
        write_tensors(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_tensors", full)
        with pytest.raises(OSError, match="No space left"):
            fit_line(tmp_path / "full", config)
    resumed, _ = fit_line(tmp_path / "full", config)
    whole, _ = fit_line(tmp_path / "whole", config)
    assert torch.equal(resumed.matrix, whole.matrix)


def test_a_state_of_another_model_or_no_state_at_all_is_named(tmp_path: Path) -> None:
    path = tmp_path / "line-state.safetensors"
    write_tensors(path, {"module/other": torch.zeros(3)}, {"step": "1"})
    with pytest.raises(ValueError, match=r"line-state\.safetensors belongs to another model"):
        fit_line(tmp_path, LoopConfig(3))
    path.write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"line-state\.safetensors: not a complete"):
        fit_line(tmp_path, LoopConfig(3))


def test_the_average_of_the_weights(tmp_path: Path) -> None:
    """Step n (from 0) keeps min(ema, (n + 1) / (n + 10)) of the average; the module ends with it."""
    torch.manual_seed(3)
    line = Line()
    average = Average(line, 0.3)
    expected = line.vector.detach().double()
    for n in range(12):
        with torch.no_grad():
            line.vector += torch.randn(20)
        average.update(line, n)
        keep = min(0.3, (n + 1) / (n + 10))
        expected = keep * expected + (1 - keep) * line.vector.detach().double()
        assert torch.allclose(average.parameters["vector"].double(), expected, atol=1e-5)
    assert [min(0.3, (n + 1) / (n + 10)) for n in (0, 1, 2, 3)] == pytest.approx([0.1, 2 / 11, 0.25, 0.3])
    average.copy_to(line)
    assert torch.equal(line.vector, average.parameters["vector"])
    fitted, kept = fit_line(tmp_path, LoopConfig(5, save_every=2))
    state = tensors(tmp_path / "line-state.safetensors")
    assert torch.equal(fitted.matrix, kept.parameters["matrix"]) and torch.equal(state["average/matrix"], fitted.matrix)
    assert not torch.equal(state["module/matrix"], fitted.matrix)


def test_learning_rates_rise_stay_and_fall() -> None:
    config = LoopConfig(1000, warmup=100, decay=0.4)
    assert config.rate(0) == pytest.approx(0.01) and config.rate(49) == pytest.approx(0.5)
    assert {config.rate(step) for step in range(99, 601)} == {1.0}
    assert config.rate(800) == pytest.approx(0.5) and config.rate(999) == pytest.approx(1 / 400)
    with pytest.raises(ValueError, match="got 0"):
        LoopConfig(0)


def test_optimisers_are_given_their_share_of_the_rate(tmp_path: Path) -> None:
    """Plain descent on a slope of 1: the way covered is the sum of the rates."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    config = LoopConfig(20, warmup=5, decay=0.5, ema=0.0)
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    fit(module, {"sgd": optimiser}, lambda _: ({"total": -module.weight.sum()}, {}), config, tmp_path, name="slope", progress=False)
    assert float(module.weight.detach()) == pytest.approx(0.1 * sum(config.rate(step) for step in range(20)))


def test_a_steps_randomness_depends_on_seed_and_step_alone() -> None:
    def numbers(seed: int, step: int) -> list[float]:
        randomness = draw(seed, step, "cpu")
        return [*randomness.numpy.normal(size=3).tolist(), *torch.randn(3, generator=randomness.torch).tolist()]

    torch.manual_seed(7)
    first = numbers(0, 5)
    torch.manual_seed(8)
    assert numbers(0, 5) == first
    assert len({tuple(numbers(seed, step)) for seed in range(4) for step in range(4)}) == 16


# -- data -----------------------------------------------------------------------------------------------------------------------------


def test_every_frame_with_a_past_is_equally_likely() -> None:
    lengths = torch.tensor([5, 1, 3, 9])
    data = Latents(torch.zeros(4, 9, 1), torch.zeros(4, 9, 5), torch.zeros(4, 9, dtype=torch.int64), lengths)
    for chunk in (1, 2):
        rows, first = data.draw(np.random.default_rng(0), 28_000, chunk)
        found, counts = torch.stack([rows, first], 1).unique(dim=0, return_counts=True)
        room = [(row, t) for row, length in enumerate(lengths.tolist()) for t in range(1, length - chunk + 1)]
        assert [tuple(pair) for pair in found.tolist()] == room
        expected = 28_000 / len(room)
        assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()
    with pytest.raises(ValueError, match="longer than 9"):
        data.draw(np.random.default_rng(0), 1, 9)


def test_latents_lie_where_their_episode_and_frame_are(tmp_path: Path) -> None:
    folders = collect(tmp_path / "a", episodes=2, length=4), collect(tmp_path / "b", episodes=1, length=7)
    paths = [path for folder in folders for path in list_episodes(folder)]

    def brightness(frames: Tensor) -> Tensor:
        return frames.float().mean((1, 2))[:, :, None, None] / 255

    data = encode(paths, brightness, 16, progress=False)
    assert data.lengths.tolist() == [4, 4, 7] and data.latents.shape == (3, 7, 3, 1, 1) and data.latents.dtype == torch.float16
    for row, path in enumerate(paths):
        episode = load_episode(path)
        n = len(episode)
        assert torch.equal(data.latents[row, :n], brightness(torch.from_numpy(episode.frames)).half())
        assert torch.equal(data.poses[row, :n], torch.from_numpy(episode.poses))
        assert data.actions[row, :n].tolist() == episode.actions.tolist()
        assert not data.latents[row, n:].any()
    with pytest.raises(ValueError, match=r"000\.safetensors: frames are 16 x 16, the model needs 32"):
        encode(paths, brightness, 32, progress=False)


def test_normalised_latents_have_unit_scale_and_are_read_back_as_they_were(data: Path, tmp_path: Path) -> None:
    args = arguments(data, tmp_path / "run", steps=1)
    train(args, progress=False)
    held = tensors(args.out / "latents.safetensors")
    there = torch.arange(held["latents"].shape[1]) < held["lengths"][:, None]
    sample = held["latents"][there][::7].float()  # what the statistics are taken from
    assert torch.allclose(sample.mean((0, 2, 3)), torch.zeros(12), atol=2e-3)
    assert torch.allclose(sample.std((0, 2, 3)), torch.ones(12), atol=2e-3)
    model = load(args.out / "model.safetensors").model
    assert torch.equal(model.autoencoder.mean, held["mean"]) and torch.equal(model.autoencoder.std, held["std"])


@pytest.mark.parametrize("native", [True, False])
def test_half_precision_is_used_where_the_processor_has_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    with half_precision(torch.device("cpu")):
        product = torch.randn(4, 4) @ torch.randn(4, 4)
    assert product.dtype == (torch.bfloat16 if native else torch.float32)
    assert (torch.randn(4, 4) @ torch.randn(4, 4)).dtype == torch.float32


def test_revisits_are_drawn_more_often_and_are_views_seen_long_before() -> None:
    """Two episodes in one block: one always looks the same way from the same place, one never looks the same way twice."""
    length = 40
    poses = torch.zeros(2, length, 5)
    poses[1, :, 0] = 1000.0 * torch.arange(length)
    data = Latents(torch.zeros(2, length, 1, 1, 1), poses, torch.zeros(2, length, dtype=torch.int64), torch.tensor([length, length]))

    def share(revisits: float) -> tuple[float, Tensor]:
        batches = [worldpack.draw_batch(data, draw(0, step, "cpu"), 64, revisits) for step in range(60)]
        still = torch.cat([b.poses[:, 0, 0] == 0 for b in batches])
        return float(still.float().mean()), torch.cat([b.times[:, 0] for b in batches])[still]

    plain, _ = share(0.0)
    chosen, times = share(1.0)
    assert plain == pytest.approx(0.5, abs=0.03)
    assert chosen > 0.9  # of three draws the best is nearly always of the first episode
    assert float((times > rehearsal.LONG_PAST).float().mean()) > 0.85
    batch = worldpack.draw_batch(data, draw(0, 1, "cpu"), 64, 0.5)
    assert batch.times.shape == (64, 1)
    assert torch.equal(batch.memories[0].times.values.amax(1), batch.times[:, 0] - 1)  # the past of each row is its own
