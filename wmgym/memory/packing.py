"""Trajectory packing (WorldPack, section 4.3): the number of past frames in the context, and their compression levels.

Level l is the paper's ratio 2^(2 l): a token covers a patch with 2**l times the base patch's side, so a frame has 4**l times fewer
tokens. WorldPack: 1 frame at level 0, 2 at level 1, 16 at level 2, of which retrieved frames replace the last 8.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The frames of a context."""

    recent: tuple[tuple[int, int], ...]  # (frames, level), newest first
    retrieved: tuple[int, int] = (0, 0)  # (frames, level)

    def __post_init__(self) -> None:
        for frames, level in (*self.recent, self.retrieved):
            if frames < 0 or not 0 <= level <= 2:
                raise ValueError(f"a layout holds (frames >= 0, level 0..2), got {(frames, level)}")
        if not self.recent or self.recent[0][0] < 1:
            raise ValueError("a layout must contain at least the newest frame")

    @property
    def num_recent(self) -> int:
        return sum(frames for frames, _ in self.recent)

    @property
    def num_frames(self) -> int:
        """Recent and retrieved frames."""
        return self.num_recent + self.retrieved[0]

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        return (*self.recent, self.retrieved) if self.retrieved[0] else self.recent

    def num_tokens(self, side: int, patch: int) -> int:
        """Context tokens for square latents of `side` cells, padded to whole tokens."""
        return sum(frames * (-(-side // (patch * 2**level))) ** 2 for frames, level in self.groups)

    def effective_frames(self, side: int, patch: int) -> float:
        """Context length in units of a full frame: 2.81 for WorldPack on 28 x 28 latents with patch 2 (the paper prints 2.84).

        No allocation of 19 frames gives 2.84: without padding it is 2.5, with each level padded to whole tokens 550 / 196 = 2.806.
        """
        return self.num_tokens(side, patch) / (-(-side // patch)) ** 2
