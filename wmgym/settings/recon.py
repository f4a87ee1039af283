"""RECON (Shah et al. 2021): recorded outdoor drives of a robot, or other drives in its format. There is no simulator."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from wmgym.kinematics import Displacement
from wmgym.settings.setting import Setting

# One waypoint ahead or back and a turn of 15 degrees, in NWM's normalisation. Standing still is -1/3, the action without a key.
_STILL, _AHEAD, _BACK, _TURN = -1 / 3, -1 / 15, -3 / 5, 1 / 12

SETTING = Setting(
    name="recon",
    frame_actions=spaces.Box(-1, 1, (3,), np.float32),
    kinematics=Displacement(),  # of the published dataset; a checkpoint stores its own
    actions=("forward", "left", "turn"),
    keys={
        keys: np.array([ahead, 0, turn], np.float32)
        for keys, ahead, turn in (
            ((), _STILL, 0),
            (("w",), _AHEAD, 0),
            (("s",), _BACK, 0),
            (("a",), _STILL, _TURN),
            (("d",), _STILL, -_TURN),
            (("a", "w"), _AHEAD, _TURN),
            (("d", "w"), _AHEAD, -_TURN),
        )
    },
    fps=4,
    needs_data=True,
)
