"""Memory-augmented video world models as Gymnasium environments.

Importing this registers the environment ids as strings and loads no torch.
"""

from wmgym.registration import register_all
from wmgym.version import __version__

__all__ = ["__version__"]

register_all()
