"""Minecraft-like ground truth: `MinecraftEnv` and, for many lanes, `MinecraftVectorEnv`, over one of several engines (backend.py)."""

from wmgym.envs.minecraft.env import MinecraftEnv
from wmgym.envs.minecraft.vector_env import MinecraftVectorEnv

__all__ = ["MinecraftEnv", "MinecraftVectorEnv"]
