"""What is compared: baselines, a policy, and each checkpoint with each memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from wmgym import systems
from wmgym.agents.policy import PolicyConfig
from wmgym.agents.proposals import moves_of
from wmgym.checkpoint import load_world
from wmgym.experiments.recon.args import PLANNING, ReconArgs
from wmgym.experiments.recon.pictures import plain
from wmgym.experiments.support.judged import system_of
from wmgym.kinematics import Displacement
from wmgym.systems import REFERENCE, System
from wmgym.world_model import WorldModel

LINE, TOLD, POLICY, COPY = "straight line", "line to the true goal", "GNM-like policy", "copy"


@dataclass(frozen=True)
class Method:
    """One row of the tables."""

    name: str
    checkpoint: str | None = None  # None: a baseline or the policy
    memory: str | None = None
    is_reference: bool = False  # the memory that others are compared with
    rank: int | None = None  # how many of the policy's proposals the world ranks; None: it plans by itself


class Methods:
    """The methods of a run, and their worlds."""

    def __init__(self, args: ReconArgs, moves: Displacement, dtype: str) -> None:
        self._args, self._moves, self._dtype = args, moves, dtype
        self._load = cache(self._load_once)
        self.planning = self._list()
        self.far = [Method(COPY), *(method for method in self.planning if method.checkpoint and method.rank is None)]
        self.frame_size = self._frame_size()

    def of(self, evaluation: str) -> list[Method]:
        return self.planning if evaluation == PLANNING else self.far

    def world(self, method: Method) -> WorldModel:
        assert method.checkpoint
        return self._load(method.checkpoint, method.memory)

    def _load_once(self, checkpoint: str, memory: str | None) -> WorldModel:
        args = self._args
        world = load_world(
            checkpoint, system=args.system, memory=memory, device=args.device, dtype=self._dtype, denoise_steps=args.denoise_steps
        )
        if moves_of(world) != self._moves:
            raise ValueError(f"{checkpoint} was made for {world.kinematics}, the data of {args.data} say {self._moves}")
        return world

    def _list(self) -> list[Method]:
        args = self._args
        methods = [Method(LINE), Method(TOLD)]
        if args.policy_steps and PLANNING in args.evaluations:
            methods.append(Method(POLICY))
        found = {checkpoint: system_of(self._load(checkpoint, None)) for checkpoint in args.checkpoint}
        check_memories(args.modes or (), list(found.values()))
        for checkpoint, system in found.items():
            for memory in memories_of(system, args.modes):
                name = system.title(memory) + (f" {_folder(checkpoint)}" if len(args.checkpoint) > 1 else "")
                method = Method(name, checkpoint, memory, memory == system.reference)
                methods.append(method)
                if args.policy_steps:
                    methods += [Method(f"{name} + policy x{count}", checkpoint, memory, rank=count) for count in args.rank]
        if len({plain(method.name) for method in methods}) < len(methods) or len(found) < len(args.checkpoint):
            raise ValueError(f"checkpoints must lie in folders of different names, got {args.checkpoint}")
        return methods

    def _frame_size(self) -> int:
        sizes = {self.world(method).frame_shape[0] for method in self.planning if method.checkpoint}
        if len(sizes) > 1:
            raise ValueError(f"checkpoints of one table must have frames of one size, got {sorted(sizes)}")
        return sizes.pop() if sizes else PolicyConfig.size


def memories_of(system: System, asked: Sequence[str] | None) -> list[str]:
    """Those of the memories `asked` that a system has, or by default its reference and its default memory."""
    if asked is None:
        return list(dict.fromkeys((system.reference, system.default_memory)))
    known = [system.memory_name(name) for name in asked if name == REFERENCE or name in system.memories]
    return list(dict.fromkeys(known)) or [system.reference]


def check_memories(asked: Sequence[str], found: Sequence[System]) -> None:
    """ValueError if none of the systems has a memory that was asked for."""
    known = sorted({REFERENCE, *(name for system in found for name in system.memories)})
    for name in asked if found else ():
        if name not in known:
            raise ValueError(f"modes must be of {', '.join(known)}, got {name!r}")


def _folder(checkpoint: str) -> str:
    """The folder of a checkpoint's file: it tells the checkpoints of one table apart."""
    published = systems.loader_of(checkpoint)
    path = checkpoint.split(",")[0].removeprefix(published[1].prefix if published else "")
    return Path(path).parent.name
