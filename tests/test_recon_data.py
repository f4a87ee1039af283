"""RECON on disk: both layouts say the same, actions lead where the drive went, and a pickle can do nothing but hold data."""

import collections
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from drives import TOY, path, picture, write_processed, write_released

from wmgym.agents.collect import CollectArgs, collect
from wmgym.agents.robot import resample
from wmgym.data import recon
from wmgym.data.episode import load_episode
from wmgym.data.recon import DATASETS, Task, list_trajectories, make_split, read_dataset, read_split, read_trajectory
from wmgym.data.unpickle import load_plain
from wmgym.geometry import compose
from wmgym.kinematics import Displacement
from wmgym.settings.minecraft import WALK

h5py = pytest.importorskip("h5py")

# -- pickles ----------------------------------------------------------------------------------------------------------------------------

ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    np.array([1.5, -2], ">f4"),
    np.zeros((0, 2)),
    np.array(True),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_come_back_whatever_the_protocol(tmp_path: Path, protocol: int) -> None:
    held = {"position": ARRAYS[0], "others": ARRAYS[1:], "split": [("a", 3, 8, 8), ("ü", np.int64(11), 8, None)], "pi": np.float32(math.pi)}
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(held, protocol))
    read = load_plain(tmp_path / "data.pkl")
    assert read["split"] == [("a", 3, 8, 8), ("ü", 11, 8, None)] and read["pi"] == pytest.approx(math.pi)
    for found, array in zip([read["position"], *read["others"]], ARRAYS, strict=True):
        assert found.shape == array.shape and found.dtype == array.dtype.newbyteorder("=") and (found == array).all()


class Command:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def deep_call(protocol: int) -> bytes:
    """Reaches for a name inside an allowed module."""
    return b"\x80\x04\x8c\x05numpy\x8c\x0actypeslib\x93." if protocol else b"cnumpy\nctypeslib.load_library\n."


@pytest.mark.parametrize(
    "evil",
    [
        pickle.dumps(Command(os.system, "touch attacked")),
        pickle.dumps({"position": np.zeros((3, 2)), "yaw": Command(eval, "open('attacked', 'w')")}),
        pickle.dumps([Command(getattr, [], "append")]),
        pickle.dumps(Command(bytes, 10**6)),
        pickle.dumps(Command(np.save, "attacked", np.zeros(1))),
        pickle.dumps(np.array([Command(os.system, "touch attacked")], object)),
        pickle.dumps(np.array(["text"])),
        pickle.dumps(collections.OrderedDict(a=1)),
        pickle.dumps(np.dtype([("a", "f8")])),
        pickle.dumps(np.float64),
        deep_call(0),
        deep_call(4),
        b"cnumpy.core.multiarray\nscalar\n(dV__defaults__\nI1\nsb0].",
        b"cnumpy\nndarray\n(dVvalue\nI1\nsb0].",
        b"cposix\nsystem\n(S'touch attacked'\ntR.",
        b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",
        b"",
        b"not a pickle",
        pickle.dumps(list(range(100)))[:50],
    ],
)
def test_a_pickle_that_names_anything_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "traj_data.pkl").write_bytes(evil)
    with pytest.raises(ValueError, match=r"traj_data\.pkl is not a pickle of plain data"):
        load_plain("traj_data.pkl")
    assert [file.name for file in tmp_path.iterdir()] == ["traj_data.pkl"]


def test_a_pickle_that_holds_itself_or_is_too_deep_is_refused(tmp_path: Path) -> None:
    itself: list[Any] = []
    itself.append(itself)
    (tmp_path / "itself.pkl").write_bytes(pickle.dumps(itself))
    (tmp_path / "deep.pkl").write_bytes(b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".")
    for name in ("itself.pkl", "deep.pkl"):
        with pytest.raises(ValueError, match="nested too deeply, or contains itself"):
            load_plain(tmp_path / name)


@pytest.mark.parametrize("kind", [b"\x90", b"\x91"], ids=["set", "frozenset"])
def test_a_set_is_looked_into(tmp_path: Path, kind: bytes) -> None:
    whole = b"\x80\x04" + (b"(K\x01K\x02\x91." if kind == b"\x91" else b"\x8f(K\x01K\x02\x90.")
    (tmp_path / "data.pkl").write_bytes(whole)
    assert load_plain(tmp_path / "data.pkl") == {1, 2}
    function = b"c_codecs\nencode\n"
    (tmp_path / "data.pkl").write_bytes(b"\x80\x04" + (b"(" + function + b"\x91." if kind == b"\x91" else b"\x8f(" + function + b"\x90."))
    with pytest.raises(ValueError, match="it contains a _Function"):
        load_plain(tmp_path / "data.pkl")


# -- reading ----------------------------------------------------------------------------------------------------------------------------


def test_both_layouts_hold_the_same_drives(tmp_path: Path) -> None:
    released, processed = write_released(tmp_path / "a"), write_processed(tmp_path / "b")
    for one, other in zip(list_trajectories(released), list_trajectories(processed), strict=True):
        a, b = read_trajectory(one), read_trajectory(other)
        assert a.name == b.name and np.array_equal(a.poses, b.poses)
        assert np.array_equal(a.frames([0, 7, 29], 16), b.frames([0, 7, 29], 16))


def test_frames_show_what_was_written_and_in_its_colours(tmp_path: Path) -> None:
    drive = read_trajectory(list_trajectories(write_released(tmp_path))[1])
    truth = np.stack([cv2.resize(picture(pose), (24, 24), interpolation=cv2.INTER_LINEAR) for pose in path(30, 1)[[4, 9]]])
    assert np.abs(drive.frames([4, 9], 24).astype(int) - truth).mean() < 4


@pytest.mark.parametrize(("high", "wide"), [(24, 32), (24, 64), (64, 24), (30, 30)])
def test_the_middle_is_kept_at_4_to_3(tmp_path: Path, high: int, wide: int) -> None:
    """A picture whose middle part of 4:3 is white and whose border is black comes out white."""
    image = np.zeros((high, wide, 3), np.uint8)
    tall, broad = min(high, round(wide * 3 / 4)), min(wide, round(high * 4 / 3))
    top, left = (high - tall) // 2, (wide - broad) // 2
    image[top : top + tall, left : left + broad] = 255
    assert broad / tall == pytest.approx(4 / 3, rel=0.03)
    recon.write_hdf5(tmp_path / "a.hdf5", [image], np.zeros((1, 5), np.float32), 4.0, quality=100)
    assert read_trajectory(tmp_path / "a.hdf5").frames([0], 16).mean() > 235  # a JPEG blurs the edge


def test_actions_lead_along_the_drive(tmp_path: Path) -> None:
    """Integrating the decoded actions from the first pose gives every later pose."""
    moves = TOY.displacement
    episode = recon.to_episode(read_trajectory(list_trajectories(write_released(tmp_path))[0]), moves, 16)
    pose = torch.from_numpy(episode.poses[0])
    assert episode.actions[0] == pytest.approx([-1 / 3, 0, 0])
    for action, there in zip(torch.from_numpy(episode.actions[1:]), torch.from_numpy(episode.poses[1:]), strict=True):
        pose = compose(pose, moves.motion(action))
        assert torch.allclose(pose[:3], there[:3], atol=1e-4)
        assert torch.allclose(pose[3].cos(), there[3].cos(), atol=1e-4)
    assert np.abs(episode.actions[1:, :2]).max() < 1


def test_a_displacement_over_many_steps_is_normalised_like_any_other() -> None:
    moves = Displacement(spacing=0.25)
    sixteen_metres = moves.action(torch.tensor([16.0, -4, 0, -math.pi / 2, 0]))
    assert sixteen_metres.tolist() == pytest.approx([2 * (64 + 2.5) / 7.5 - 1, 2 * (-16 + 4) / 8 - 1, -0.5])


def test_spacing_and_statistics_belong_to_the_dataset(tmp_path: Path) -> None:
    spacings = {name: dataset.displacement.spacing for name, dataset in DATASETS.items()}
    assert spacings == {"recon": 0.25, "scand": 0.38, "tartan_drive": 0.72, "go_stanford": 0.12, "sacson": 0.255}
    assert read_dataset(write_released(tmp_path)) == TOY
    assert read_dataset(tmp_path / "nowhere", "scand") == DATASETS["scand"]
    with pytest.raises(ValueError, match=r"dataset must be one of .*'mars'"):
        read_dataset(tmp_path / "nowhere", "mars")
    (tmp_path / "dataset.json").write_text('{"name": "toy", "displacement": {"spacing": -1}}')
    with pytest.raises(ValueError, match="does not describe a dataset"):
        read_dataset(tmp_path)


def test_traj_names_choose(tmp_path: Path) -> None:
    write_processed(tmp_path)
    (tmp_path / "traj_names.txt").write_text("jackal_2\njackal_0\n")
    assert [p.name for p in list_trajectories(tmp_path)] == ["jackal_0", "jackal_2"]
    (tmp_path / "traj_names.txt").write_text("jackal_9\n")
    with pytest.raises(ValueError, match="'jackal_9' among them"):
        list_trajectories(tmp_path)


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no trajectories"):
        list_trajectories(tmp_path)
    (tmp_path / "a.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"a\.hdf5 is not a readable HDF5 file"):
        read_trajectory(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["jackal/position"] = np.zeros((3, 3))
    with pytest.raises(ValueError, match=r"b\.hdf5 lacks"):
        read_trajectory(tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "b.hdf5", "a") as file:
        file["jackal/yaw"] = np.array([0, np.nan, 0])
        file["images/rgb_left"] = np.array([b"x", b"y", b"z"])
    with pytest.raises(ValueError, match="must be finite"):
        read_trajectory(tmp_path / "b.hdf5")
    write_processed(tmp_path / "c", count=1)
    drive = read_trajectory(tmp_path / "c" / "jackal_0")
    with pytest.raises(ValueError, match=r"lacks the image 30\.jpg"):
        drive.frames([30], 16)
    (tmp_path / "c" / "jackal_0" / "3.jpg").write_bytes(b"no JPEG")
    with pytest.raises(ValueError, match=r"image 3 is not a readable JPEG"):
        drive.frames([3], 16)


def test_published_splits_are_read_and_our_own_look_like_them(tmp_path: Path) -> None:
    published = [("jackal_1", 3, 8, 8), ("jackal_1", 11, 8, 8)]
    (tmp_path / "navigation_eval.pkl").write_bytes(pickle.dumps(published))
    assert read_split(tmp_path / "navigation_eval.pkl") == [Task("jackal_1", 3, 8), Task("jackal_1", 11, 8)]
    drives = [read_trajectory(p) for p in list_trajectories(write_released(tmp_path))]
    tasks = make_split(drives, 100, 8, 4, seed=0)
    assert len(tasks) == len(set(tasks)) == 9 and {task.time for task in tasks} == {3, 11, 19}
    assert make_split(drives, 5, 8, 4, seed=0) == make_split(drives, 5, 8, 4, seed=0) != make_split(drives, 5, 8, 4, seed=1)
    with pytest.raises(ValueError, match="the longest has 30"):
        make_split(drives, 5, 64, 4, seed=0)


# -- writing ----------------------------------------------------------------------------------------------------------------------------


def test_resampling_a_straight_walk_keeps_its_speed_and_levels_the_camera() -> None:
    walk = np.zeros((11, 5), np.float32)
    walk[:, 0], walk[:, 3], walk[:, 4] = WALK * np.arange(11), np.linspace(3.0, 3.0 + 0.5, 11), 0.3
    walk[:, 3] = (walk[:, 3] + np.pi) % (2 * np.pi) - np.pi  # crosses the seam
    level = resample(walk)
    assert len(level) == 9  # 2 s at 4 Hz
    assert level[:, 0] == pytest.approx(4.317 / 4 * np.arange(9), rel=1e-5)
    assert np.unwrap(level[:, 3]) == pytest.approx(3.0 + 0.25 * np.arange(9) / 4, abs=1e-5)
    assert (level[:, 4] == 0).all() and (np.abs(level[:, 3]) <= np.pi).all()


def test_minecraft_walks_are_written_as_recon_was_released(tmp_path: Path) -> None:
    args = CollectArgs(walker="look-around", steps=40, out=tmp_path, format="recon", processes=1, seed=3, preview=True)
    report = collect(args, progress=False)
    file = list_trajectories(tmp_path)[0]
    with h5py.File(file) as held:
        assert held["images/rgb_left"].dtype.kind == "S" and bytes(held["images/rgb_left"][0])[:2] == b"\xff\xd8"
        assert held["jackal/position"].shape == (len(held["jackal/yaw"]), 3) and held.attrs["rate"] == 4
        first = cv2.imdecode(np.frombuffer(held["images/rgb_left"][0], np.uint8), cv2.IMREAD_COLOR)
        assert first.shape == (120, 160, 3)
    assert json.loads((tmp_path / "dataset.json").read_text())["displacement"]["spacing"] == pytest.approx(4.317 / 4)
    drive = read_trajectory(file)
    turn = drive.egomotion()[1:10, 3]
    assert turn == pytest.approx(np.full(9, math.radians(15) * 5 / 4), abs=1e-4)  # 15 degrees in 0.2 s, at 4 Hz
    again = collect(args, progress=False)
    assert report["episodes"] == again["reused_episodes"] == again["episodes"]
    before = file.read_bytes()
    file.write_bytes(before[: len(before) // 2])  # a damaged file is made again
    collect(args, progress=False)
    assert np.array_equal(read_trajectory(file).poses, drive.poses)


def test_drives_become_episodes_once(tmp_path: Path) -> None:
    folder = write_released(tmp_path / "raw", count=2)
    files = recon.convert(folder, tmp_path / "made", TOY, 16)
    stamps = [f.stat().st_mtime_ns for f in files]
    episode = load_episode(files[0])
    assert episode.frames.shape == (30, 16, 16, 3) and episode.actions.dtype == np.float32
    assert [f.stat().st_mtime_ns for f in recon.convert(folder, tmp_path / "made", TOY, 16)] == stamps
