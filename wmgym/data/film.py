"""Video files by OpenCV."""

from __future__ import annotations

from pathlib import Path

import numpy as np

LOSSLESS = "FFV1"  # a codec that keeps every pixel; "MJPG" files are smaller


def read_film(path: Path, size: int | None = None) -> np.ndarray:
    """All frames of a video, RGB uint8 [T, H, W, 3]. With `size`, cropped to the central square and scaled. ValueError if there are none."""
    import cv2

    film, frames = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = film.read()
        if not there:
            break
        if size is not None:
            side = min(frame.shape[:2])
            top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
            frame = cv2.resize(frame[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
        frames.append(frame[..., ::-1])
    film.release()
    if not frames:
        raise ValueError(f"{path} holds no frames that can be read")
    return np.stack(frames)


def write_film(path: Path, frames: np.ndarray, rate: float, codec: str = LOSSLESS) -> None:
    """RGB uint8 [T, H, W, 3] at `rate` frames per second. OSError if this OpenCV cannot write the codec."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    film = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (frames.shape[2], frames.shape[1]))
    if not film.isOpened():
        raise OSError(f"{path} cannot be written: OpenCV has no {codec} writer here")
    film.set(cv2.VIDEOWRITER_PROP_QUALITY, 95)
    for frame in frames:
        film.write(np.ascontiguousarray(frame[..., ::-1]))
    film.release()
