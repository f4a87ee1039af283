"""Whether the Node backends can run on this machine; tests that need them say what they skipped and why."""

import pytest

from wmgym.envs.minecraft.prismarine.install import what_is_missing

MISSING = what_is_missing()
needs_node = pytest.mark.skipif(MISSING is not None, reason=f"the Prismarine backend is not here: {MISSING}")
