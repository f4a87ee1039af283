"""Memory Cards, the discrete ground truth of the CoME paper: `MemoryCardsEnv`, and `MemoryCardsVectorEnv` for many lanes."""

from wmgym.envs.memory_cards.env import MemoryCardsEnv
from wmgym.envs.memory_cards.vector_env import MemoryCardsVectorEnv

__all__ = ["MemoryCardsEnv", "MemoryCardsVectorEnv"]
