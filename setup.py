"""Lists the packages: `wmgym` and three folders that install under it (pyproject.toml says where each lies)."""

from setuptools import find_packages, setup

MOUNTED = {"wmgym.envs": "envs", "wmgym.agents": "agents", "wmgym.experiments": "experiments"}


def packages() -> list[str]:
    found = find_packages(include=["wmgym", "wmgym.*"])
    for name, folder in MOUNTED.items():
        found += [name, *(f"{name}.{package}" for package in find_packages(folder))]
    return found


setup(packages=packages())
