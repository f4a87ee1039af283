"""Films of frames side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wmgym.benchmarks.rollout import Dream, Walk

SIDE = 256  # screen pixels of a frame, about


def panel(frame: np.ndarray, label: str) -> np.ndarray:
    """An enlarged frame under its label. Its sides are even, as video codecs require."""
    import cv2

    zoom = max(1, SIDE // frame.shape[0])
    large = frame.repeat(zoom, 0).repeat(zoom, 1)
    page = np.full((large.shape[0] // 2 * 2 + 32, large.shape[1] // 2 * 2 + 8, 3), 24, np.uint8)
    page[28 : 28 + large.shape[0], 4 : 4 + large.shape[1]] = large
    cv2.putText(page, label, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (235, 235, 235), 1, cv2.LINE_AA)
    return page


def film_pages(walk: Walk, dreams: Mapping[str, Dream]) -> list[np.ndarray]:
    """Truth and dreams side by side, one page per frame. Until the dream begins, every panel shows the truth."""
    pages = []
    for t, true_frame in enumerate(walk.frames):
        back = t - walk.split
        shown = {name if back >= 0 else f"{name} (seen)": dream.frames[back] if back >= 0 else true_frame for name, dream in dreams.items()}
        pages.append(np.concatenate([panel(frame, label) for label, frame in {"truth": true_frame, **shown}.items()], 1))
    return pages


def write_film(file: Path, pages: Sequence[np.ndarray], rate: float) -> Path:
    """Pages uint8 [H, W, 3] as a film: H.264 by moviepy, or MPEG-4 by OpenCV where moviepy is not installed."""
    try:
        from moviepy import ImageSequenceClip
    except ImportError:
        return _film_by_opencv(file, pages, rate)
    ImageSequenceClip(list(pages), fps=rate).write_videofile(str(file), codec="libx264", audio=False, logger=None)
    return file


def _film_by_opencv(file: Path, pages: Sequence[np.ndarray], rate: float) -> Path:
    """MPEG-4 part 2: files are larger and some browsers do not play them, but OpenCV always has this encoder."""
    import cv2

    height, width = pages[0].shape[:2]
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write {file}; pip install 'wmgym[video]' brings an encoder")
    for page in pages:
        writer.write(np.ascontiguousarray(page[..., ::-1]))
    writer.release()
    return file
