"""Checkpoints come back bit for bit, damaged ones say what is wrong in one error, and nothing good is lost while writing."""

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from wmgym import checkpoint, rng
from wmgym.checkpoint import checksum, combined, digests_of, from_dict, load, load_world, resolve, save, to_dict
from wmgym.core import Clip
from wmgym.memory.retrieval import RetrievalConfig
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.cdit import CDiTConfig
from wmgym.systems.worldpack import WorldPackConfig, build
from wmgym.world_model import SamplerConfig, WorldModel

CODER = AutoencoderConfig(widths=(8, 8), factor=4, channels=3, frame_size=16)
CONFIG = WorldPackConfig(
    memory="packing",
    memory_budget=30,
    pose_source="actions",
    autoencoder=CODER,
    net=CDiTConfig(latent_shape=CODER.latent_shape, width=16, depth=1, heads=2, pose_condition="frame"),
    retrieval=RetrievalConfig(sigma_s=2.5),
    sampler=SamplerConfig("heun", 3, 1.5),
)


def make(config: WorldPackConfig = CONFIG) -> WorldModel:
    """A model none of whose numbers is a default."""
    model = build(config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(0.3 * torch.randn_like(tensor) + 0.1)
    return model.eval().requires_grad_(False)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def rewritten(path: Path, tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None, **header: str) -> Path:
    """The same file with other tensors or another header, and the checksums that fit them unless they are given."""
    with safe_open(str(path), "pt") as file:
        held, told = {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata())  # noqa: SIM118
    held = tensors(held) if tensors else held
    digests = digests_of(held)
    told |= {"sha256": combined(digests), **header}
    save_file(held, path, metadata={**told, "checksum": header.get("checksum", checksum(digests, told))})
    return path


def as_written_by_0_1(path: Path) -> Path:
    """The same file as version 0.1.0 wrote it: format wmgym-1, without a checksum."""
    with safe_open(str(path), "pt") as file:
        held, told = {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata())  # noqa: SIM118
    del told["checksum"]
    save_file(held, path, metadata={**told, "format": "wmgym-1"})
    return path


def extent(path: Path, tensor: str) -> tuple[int, int]:
    """Where the bytes of a tensor begin and end in a safetensors file."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8:start])[tensor]["data_offsets"]
    return start + begin, start + end


def fails(path: Path, *words: str) -> None:
    """Loading raises one ValueError that names the file and says these words."""
    with pytest.raises(ValueError) as raised:
        load(path)
    message = str(raised.value)
    assert str(path.with_suffix("")) in message, message
    for word in words:
        assert word in message, message


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "world.safetensors", make(), CONFIG)[0]


# -- round trips ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_bytes", [None, 300_000])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, max_bytes: int | None) -> None:
    model = make()
    files = save(tmp_path / "world.safetensors", model, CONFIG, max_bytes=max_bytes, notes={"steps": 7, "words": ["a", "b"]})
    assert sorted(os.listdir(tmp_path)) == sorted(f.name for f in files)
    assert (len(files) > 2) == (max_bytes is not None)
    assert max_bytes is None or all(f.stat().st_size <= max_bytes for f in files)
    loaded = load(tmp_path / "world.safetensors")
    assert_same(loaded.model.state_dict(), model.state_dict())
    assert loaded.config == CONFIG and loaded.notes == {"steps": 7, "words": ["a", "b"]}
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())


def test_a_loaded_world_dreams_as_the_saved_one(tmp_path: Path) -> None:
    model = make()
    save(tmp_path / "world.safetensors", model, CONFIG)
    loaded = load(tmp_path / "world.safetensors").model
    pixels = torch.randint(0, 256, (1, 5, 16, 16, 3), dtype=torch.uint8)
    seen = Clip(pixels, torch.ones(1, 5, dtype=torch.int64), torch.randn(1, 5, 5), torch.ones(1, 5, dtype=torch.bool))
    for a, b in zip(_dream(model, seen), _dream(loaded, seen), strict=True):
        assert torch.equal(a, b)


def _dream(model: WorldModel, seen: Clip) -> list[Tensor]:
    state, shown = model.start(seen, rng.make_keys([3])), []
    for action in (1, 6, 1):
        state, frames = model.step(state, torch.tensor([[action]]))
        shown += [frames.pixels, frames.poses]
    return shown


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    model = make()
    (whole,) = save(tmp_path / "whole.safetensors", model, CONFIG)
    (half,) = save(tmp_path / "half.safetensors", model, CONFIG, dtype=torch.bfloat16)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    loaded = load(half).model
    assert_same(loaded.state_dict(), {k: v.bfloat16().float() for k, v in model.state_dict().items()})
    (again,) = save(tmp_path / "again.safetensors", loaded, CONFIG, dtype=torch.bfloat16)
    assert_same(load(again).model.state_dict(), loaded.state_dict())


@pytest.mark.parametrize(("before", "after"), [(None, 300_000), (300_000, None), (300_000, 600_000), (600_000, 300_000)])
def test_saving_again_in_other_pieces_replaces_what_was_there(tmp_path: Path, before: int | None, after: int | None) -> None:
    save(tmp_path / "world.safetensors", make(), CONFIG, max_bytes=before)
    keep = save(tmp_path / "world-two.safetensors", make(), CONFIG)[0]
    model = make()
    files = save(tmp_path / "world.safetensors", model, CONFIG, max_bytes=after)
    assert set(tmp_path.iterdir()) == {*files, keep}
    assert_same(load(tmp_path / "world.safetensors").model.state_dict(), model.state_dict())


def test_configs_survive_json() -> None:
    assert from_dict(WorldPackConfig, json.loads(json.dumps(to_dict(CONFIG)))) == CONFIG
    older = to_dict(CONFIG)
    del older["net"]["rope_share"]  # as written before the field existed
    assert from_dict(WorldPackConfig, older) == replace(CONFIG, net=replace(CONFIG.net, rope_share=CDiTConfig().rope_share))


# -- damage ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 200, 20_000, -1])
def test_a_file_cut_short_is_named(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    fails(saved, "not a complete safetensors file")


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    fails(path, "format is None")
    save_file({"w": torch.zeros(3)}, path, metadata={"format": "pt"})
    fails(path, "'pt'", "wmgym-1", "wmgym-2")
    path.write_bytes(pickle.dumps({"w": 1}))
    fails(path, "not a complete safetensors file")
    path.unlink()
    fails(path, "no such checkpoint")


def test_other_tensors_than_the_config_asks_for_are_named(saved: Path) -> None:
    good = saved.read_bytes()
    name = "net.final.bias"
    rewritten(saved, lambda held: {**held, name: torch.zeros(5)})
    fails(saved, name, "(5,)", "(3,)")
    saved.write_bytes(good)
    rewritten(saved, lambda held: {k: v for k, v in held.items() if k != name})
    fails(saved, "1 tensors are missing", name)
    saved.write_bytes(good)
    rewritten(saved, lambda held: {**held, "net.tail": torch.zeros(1)})
    fails(saved, "does not have", "net.tail")


def test_a_config_of_another_network_is_a_wrong_shape(saved: Path) -> None:
    wider = replace(CONFIG, net=replace(CONFIG.net, width=32))
    rewritten(saved, config=json.dumps(to_dict(wider)))
    fails(saved, "has shape", "the config needs")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"system": "crystal-ball"}, ["crystal-ball"]),
        ({"colour": "red"}, ["WorldPackConfig", "'colour'"]),
        ({"net": {**to_dict(CONFIG.net), "wings": 2}}, ["CDiTConfig", "'wings'"]),
        ({"net": {**to_dict(CONFIG.net), "depth": "deep"}}, ["str"]),
        ({"net": {**to_dict(CONFIG.net), "patch": 0}}, ["ZeroDivision"]),
        ({"net": 3}, []),
        ({"memory": "elephant"}, ["'elephant'"]),
        ({"setting": "mars"}, ["'mars'"]),
    ],
)
def test_configs_that_make_no_sense_are_named(saved: Path, change: dict[str, Any], words: list[str]) -> None:
    rewritten(saved, config=json.dumps({**to_dict(CONFIG), **change}))
    fails(saved, *words)


def test_headers_that_make_no_sense_are_named(saved: Path) -> None:
    for header in ({"config": "{"}, {"config": "[]"}, {"notes": "{"}):
        good = saved.read_bytes()
        rewritten(saved, **header)
        fails(saved, "not a wmgym checkpoint")
        saved.write_bytes(good)


def test_parts_must_all_be_there_and_of_one_save(tmp_path: Path) -> None:
    path = tmp_path / "world.safetensors"
    files = save(path, make(), CONFIG, max_bytes=300_000, notes={"run": 1})
    others = save(tmp_path / "other" / "world.safetensors", make(), CONFIG, max_bytes=300_000, notes={"run": 2})
    good = files[1].read_bytes()
    files[1].unlink()
    fails(path, f"{len(files) - 1} of {len(files)} parts found")
    files[1].write_bytes(others[1].read_bytes())
    fails(path, files[1].name, "another save")
    files[1].write_bytes(good[:-5])
    fails(path, files[1].name, "not a complete")
    files[1].write_bytes(good)
    load(path)
    fails(files[0], "missing")  # one part alone is not a checkpoint


# -- checksums ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net.final.bias", "autoencoder.mean", "motion_head.pair.exit.2.weight"])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_named(saved: Path, name: str, bit: int) -> None:
    """In the first, a middle and the last byte of a tensor."""
    good = saved.read_bytes()
    begin, end = extent(saved, name)
    for place in (begin, (begin + end) // 2, end - 1):
        content = bytearray(good)
        content[place] ^= 1 << bit
        saved.write_bytes(content)
        fails(saved, "damaged", "checksum")
        with pytest.raises(ValueError, match=rf"{saved.name}: damaged"):
            load_world(str(saved), device="cpu")
    saved.write_bytes(good)
    load(saved)


def test_a_zeroed_page_is_named(saved: Path) -> None:
    """A file system may leave zeros where a block of a file was lost."""
    page = 4096
    good = saved.read_bytes()
    _, first = min(extent(saved, name) for name in make().state_dict())
    for place in range(page * (first // page + 1), len(good) - page, 8 * page):
        saved.write_bytes(good[:place] + bytes(page) + good[place + page :])
        fails(saved, "damaged", "checksum")


def test_the_damaged_part_of_several_is_named(tmp_path: Path) -> None:
    files = save(tmp_path / "world.safetensors", make(), CONFIG, max_bytes=300_000)
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    files[1].write_bytes(content)
    fails(tmp_path / "world.safetensors", f"{files[1]}: damaged")


@pytest.mark.parametrize("max_bytes", [None, 300_000])
def test_a_file_without_a_checksum_loads_with_a_warning(tmp_path: Path, max_bytes: int | None) -> None:
    path, model = tmp_path / "world.safetensors", make()
    files = save(path, model, CONFIG, max_bytes=max_bytes)
    weights = load(path).model.provenance.weights
    for file in files:
        as_written_by_0_1(file)
    with pytest.warns(UserWarning, match="world.* was written by wmgym 0.1 without a checksum") as warned:
        loaded = load(path)
    assert len(warned) == len(files)
    assert_same(loaded.model.state_dict(), model.state_dict())
    assert loaded.config == CONFIG and loaded.model.provenance.weights == weights


def test_a_file_of_today_without_its_checksum_is_refused(saved: Path) -> None:
    """Only files of 0.1.0 may lack it."""
    with safe_open(str(as_written_by_0_1(saved)), "pt") as file:
        held, told = {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata())  # noqa: SIM118
    save_file(held, saved, metadata={**told, "format": "wmgym-2"})
    fails(saved, "damaged", "checksum")


def test_config_fields_that_were_renamed_are_read(saved: Path) -> None:
    """0.1.0 called the setting `world`."""
    old = to_dict(CONFIG)
    old["world"] = old.pop("setting")
    rewritten(saved, config=json.dumps(old))
    assert load(saved).config == CONFIG
    assert load_world(str(saved), device="cpu").provenance.setting == "minecraft"
    with pytest.warns(UserWarning, match="without a checksum"):
        assert load(as_written_by_0_1(saved)).config == CONFIG
    rewritten(saved, format="wmgym-2", config=json.dumps({**old, "world": "mars"}))
    fails(saved, "'mars'")


def test_the_hash_of_weights_does_not_depend_on_files_notes_or_settings(tmp_path: Path) -> None:
    model = make()
    found = set()
    for name, max_bytes in (("whole", None), ("halves", 600_000), ("parts", 300_000)):
        save(tmp_path / f"{name}.safetensors", model, CONFIG, max_bytes=max_bytes, notes={"name": name})
        found.add(load(tmp_path / f"{name}.safetensors").model.provenance.weights)
    save(tmp_path / "other.safetensors", model, replace(CONFIG, memory="none", memory_budget=99))
    found.add(load(tmp_path / "other.safetensors").model.provenance.weights)
    (weights,) = found
    assert re.fullmatch("[0-9a-f]{64}", weights)
    model.net.final.bias[0] += 1e-3
    save(tmp_path / "whole.safetensors", model, CONFIG)
    assert load(tmp_path / "whole.safetensors").model.provenance.weights != weights
    assert load_world(str(tmp_path / "other.safetensors"), device="cpu", memory="worldpack").provenance.weights == weights


# -- deltas ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def delta(saved: Path) -> Path:
    """A delta on `saved` whose last layer differs."""
    return write_delta(saved, saved.with_name("delta.safetensors"))


def write_delta(base: Path, path: Path) -> Path:
    model = load(base).model
    model.net.final.bias += 1
    (file,) = save(path, model, CONFIG, base=base.stem, notes={"kind": "delta"})
    return file


@pytest.mark.parametrize("max_bytes", [None, 300_000])
def test_a_delta_stores_only_what_differs_and_loads_on_its_base(tmp_path: Path, max_bytes: int | None) -> None:
    base = tmp_path / "world.safetensors"
    save(base, make(), CONFIG, max_bytes=max_bytes)
    delta = write_delta(base, tmp_path / "delta.safetensors")
    with safe_open(str(delta), "pt") as file:
        assert list(file.keys()) == ["net.final.bias"]
        assert json.loads(file.metadata()["base"]) == {"name": "world", "sha256": load(base).model.provenance.weights}
    below, loaded = load(base).model.state_dict(), load(delta)
    assert_same(loaded.model.state_dict(), {**below, "net.final.bias": below["net.final.bias"] + 1})
    assert loaded.config == CONFIG and loaded.notes == {"kind": "delta"}
    assert loaded.model.provenance.weights not in (load(base).model.provenance.weights, "")
    assert_same(load_world(str(delta), device="cpu").state_dict(), loaded.model.state_dict())


def test_a_delta_is_found_beside_its_base_or_on_a_bundled_one(saved: Path, delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(delta).model.state_dict()
    elsewhere = delta.parent / "elsewhere"
    elsewhere.mkdir()
    moved = delta.rename(elsewhere / delta.name)
    with pytest.raises(ValueError, match=r"checkpoint must be .* got 'world'"):
        load(moved)
    monkeypatch.setattr(checkpoint, "BUNDLED", saved.parent)
    assert_same(load(moved).model.state_dict(), expected)


def test_a_delta_is_refused_on_another_base(saved: Path, delta: Path) -> None:
    before = load(saved).model.provenance.weights
    save(saved, make(), CONFIG)
    after = load(saved).model.provenance.weights
    fails(delta, "'world'", before[:16], after[:16])
    assert before != after


def test_damage_in_a_delta_or_in_its_base_is_named(saved: Path, delta: Path) -> None:
    for file in (delta, saved):
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(ValueError, match=rf"{file.name}: damaged"):
            load(delta)
        file.write_bytes(good)
    for header in ("{", "[]", "{}", '{"name": "world"}'):
        good = delta.read_bytes()
        rewritten(delta, base=header)
        fails(delta)
        delta.write_bytes(good)


# -- writing --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_there_survives_a_write_that_fails(saved: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(tensors: Any, name: str, **_: Any) -> None:
        Path(name).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(type(error)) as raised:
        save(saved, make(), CONFIG)
    if isinstance(error, OSError):
        assert f"no space left to write {saved}; earlier files are unharmed" in str(raised.value)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def test_a_write_in_parts_that_fails_leaves_the_whole_file_in_charge(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(saved).model.state_dict()
    write, count = checkpoint.save_file, []

    def second_fails(tensors: Any, name: str, **keywords: Any) -> None:
        count.append(name)
        if len(count) == 2:
            raise OSError(28, "No space left on device")
        write(tensors, name, **keywords)

    monkeypatch.setattr(checkpoint, "save_file", second_fails)
    with pytest.raises(OSError, match=r"no space left to write .*world-00002-of-.*; earlier files are unharmed"):
        save(saved, make(), CONFIG, max_bytes=300_000)
    assert_same(load(saved).model.state_dict(), before)


def test_a_checkpoint_is_called_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"world\.pt"):
        save(tmp_path / "world.pt", make(), CONFIG)


# -- worlds by name -------------------------------------------------------------------------------------------------------------------


def test_views_of_a_checkpoint_share_its_weights(saved: Path) -> None:
    one = load_world(str(saved))
    other = load_world(str(saved), memory="worldpack", memory_budget=40, denoise_steps=7, pose_source="learned")
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert a.data_ptr() == b.data_ptr(), name
    (memory,), (other_memory,) = one.settings.memories, other.settings.memories
    assert (memory.budget, memory.num_retrieved, one.settings.sampler, one.settings.pose_source) == (30, 0, CONFIG.sampler, "actions")
    assert (other_memory.budget, other_memory.num_retrieved, other.settings.pose_source) == (40, 8, "learned")
    assert other.settings.sampler == SamplerConfig("heun", 7, 1.5)
    assert other_memory.retrieval == CONFIG.retrieval
    assert (one.provenance.memory, other.provenance.memory) == ("packing", "worldpack")
    assert one.provenance.weights == other.provenance.weights == load(saved).model.provenance.weights


def test_other_precisions_have_weights_of_their_own(saved: Path) -> None:
    whole, half = load_world(str(saved), device="cpu"), load_world(str(saved), device="cpu", dtype="bfloat16")
    assert {p.dtype for p in whole.parameters()} == {torch.float32} and {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(whole.net.final.weight.bfloat16(), half.net.final.weight)


def test_a_file_that_was_replaced_is_read_anew(saved: Path) -> None:
    load_world(str(saved), device="cpu")
    model = make()
    save(saved, model, CONFIG)
    os.utime(saved, ns=(1, 10**18))
    assert_same(load_world(str(saved), device="cpu").state_dict(), model.state_dict())


def test_a_checkpoint_may_be_named_by_its_folder(saved: Path) -> None:
    path = saved.rename(saved.with_name("model.safetensors"))
    assert resolve(str(path.parent)) == resolve(str(path)) == path
    assert load_world(str(path.parent), device="cpu").settings.memories[0].budget == 30


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"device": "abacus"}, "device.*'abacus'"),
        ({"dtype": "int8"}, "dtype.*'int8'"),
        ({"memory": "elephant"}, "memory.*worldpack.*'elephant'"),
        ({"memory_budget": 3}, "memory_budget.*3"),
        ({"denoise_steps": 0}, "denoise_steps.*0"),
        ({"pose_source": "stars"}, "pose_source.*'stars'"),
    ],
)
def test_wrong_settings_are_named(saved: Path, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_world(str(saved), **keywords)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_a_gpu_that_is_not_there_is_named(saved: Path) -> None:
    with pytest.raises(ValueError, match="'cuda'"):
        load_world(str(saved), device="cuda")


@pytest.mark.parametrize("name", ["no-such-world", "missing.safetensors", "somewhere/else"])
def test_unknown_names_say_what_is_allowed(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        resolve(name)
