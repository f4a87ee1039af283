"""Memory-augmented video world models as Gymnasium environments.

Importing wmgym registers the environment ids as strings and does not load torch. Functions that need torch load it on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wmgym.registration import register_all
from wmgym.version import __version__

if TYPE_CHECKING:
    from wmgym.env import make_env
    from wmgym.state_file import load_state_file, save_state_file
    from wmgym.twins import twin

__all__ = ["__version__", "load_state_file", "make_env", "save_state_file", "twin"]

_LATER = {
    "load_state_file": "wmgym.state_file",
    "make_env": "wmgym.env",
    "save_state_file": "wmgym.state_file",
    "twin": "wmgym.twins",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'wmgym' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


register_all()
