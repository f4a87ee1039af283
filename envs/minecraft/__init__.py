"""The ground truth of Minecraft: `MinecraftEnv`, and `MinecraftVectorEnv` for many lanes, on one of several engines (backend.py)."""

from wmgym.envs.minecraft.env import MinecraftEnv
from wmgym.envs.minecraft.vector_env import MinecraftVectorEnv

__all__ = ["MinecraftEnv", "MinecraftVectorEnv"]
