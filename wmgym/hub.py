"""Download files from a model hub. Used only for checkpoints with a name of the form "hub:OWNER/NAME"."""

from __future__ import annotations

from pathlib import Path

from wmgym.extras import need

PREFIX = "hub:"


def fetch(name: str, patterns: list[str]) -> Path:
    """Download the files of the repository "hub:OWNER/NAME" that match `patterns`. Returns their local folder."""
    need("hub", "checkpoints from a hub need")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name.removeprefix(PREFIX), allow_patterns=patterns))
