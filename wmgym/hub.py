"""Files from a model hub. Nothing here runs unless a checkpoint's name asks for it ("hub:OWNER/NAME")."""

from __future__ import annotations

from pathlib import Path

PREFIX = "hub:"


def fetch(name: str, patterns: list[str]) -> Path:
    """The local folder of a hub's repository "hub:OWNER/NAME", with the files that match."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError("checkpoints from a hub need huggingface_hub: pip install 'wmgym[hub]'") from error
    return Path(snapshot_download(name.removeprefix(PREFIX), allow_patterns=patterns))
