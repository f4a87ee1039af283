"""The MineRL environments that the worker runs: MineRL's own, with the pose in the observation and a selectable start.

Imported by worker.py in MineRL's Python. Written against MineRL 0.4.4 (from PyPI; it needs gym 0.19 and cannot build its spaces with
0.23) and 1.0 (from its repository; untested).
"""

from minerl.herobraine.hero import handlers

FOREVER = None


def navigate(resolution):
    """Family "0.4": MineRL's Navigate, dense, at a resolution (height, width)."""
    from minerl.herobraine.env_specs.navigate_specs import Navigate

    class LocatedNavigate(Navigate):
        start = None

        def __init__(self):
            super().__init__(dense=True, extreme=False)

        def start_at(self, place):
            self.start = place

        def create_observables(self):
            self.resolution = (resolution[1], resolution[0])
            return [*super().create_observables(), handlers.ObservationFromCurrentLocation()]

        def create_agent_start(self):
            return [*super().create_agent_start(), *_placement(self.start)]

    return LocatedNavigate()


def human_survival(resolution):
    """Family "1.0": MineRL's HumanSurvival at a resolution (height, width), without a time limit."""
    from minerl.herobraine.env_specs.human_survival_specs import HumanSurvival

    class LocatedSurvival(HumanSurvival):
        start = None

        def __init__(self):
            super().__init__(name="WMGymSurvival-v0", resolution=(resolution[1], resolution[0]), max_episode_steps=FOREVER)

        def start_at(self, place):
            self.start = place

        def create_observables(self):
            return [handlers.POVObservation(self.resolution), handlers.ObservationFromCurrentLocation()]

        def create_agent_start(self):
            return [*super().create_agent_start(), *_placement(self.start)]

    return LocatedSurvival()


def _placement(start):
    if start is None:
        return []
    x, y, z, yaw, pitch = start
    return [handlers.AgentStartPlacement(x=x, y=y, z=z, yaw=yaw, pitch=pitch)]
