"""Minecraft-like ground truth: `MinecraftEnv`, over one of several engines (see backend.py)."""

from wmgym.envs.minecraft.env import MinecraftEnv

__all__ = ["MinecraftEnv"]
