"""An unknown keyword is a `TypeError` in every id, one and many lanes: wrappers such as TorchRL's try keywords and take them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from tiny import tiny_checkpoint

IDS = ["Minecraft-v0", "MemoryCards-v0", "MemoryMaze-9x9-v0", "WorldPack-Minecraft-v0", "NWM-Minecraft-v0"]


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_an_unknown_keyword_is_a_type_error(id: str, make: Any, tmp_path: Path) -> None:
    checkpoint = {} if "twin" not in gym.spec(id).kwargs else {"checkpoint": tiny_checkpoint(tmp_path)}
    with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'"):
        make(id, frameskip=1, **checkpoint)


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_minecraft_names_the_keywords_that_there_are(make: Any) -> None:
    with pytest.raises(TypeError, match=r"argument 'foo'; it takes .*task, backend, size.*, and of its backends world, .*python"):
        make("Minecraft-v0", foo=1)


def test_an_option_of_another_backend_is_a_wrong_value() -> None:
    with pytest.raises(ValueError, match="backend 'voxel' has no option 'world'"):
        gym.make("Minecraft-v0", world="here")
