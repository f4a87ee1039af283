"""Image features of a CLIP model (Radford et al. 2021), by transformers (extra `[clip]`). Weights come from a folder of the user's.

Nothing is downloaded, and pickled weights are not read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from wmgym.extras import need

BATCH = 64
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the pixels that CLIP was trained on
FILES = ("config.json", "model.safetensors")


def load(folder: str, device: str = "auto") -> Callable[[np.ndarray], np.ndarray]:
    """A function from frames uint8 [N, H, W, 3] to features float32 [N, d]. Frames are scaled to the model's size by bicubic interpolation.

    ValueError if the folder lacks the model's files.
    """
    if not all((Path(folder) / name).is_file() for name in FILES):
        raise ValueError(f"clip must be a folder with {' and '.join(FILES)}, got {folder!r}")
    need("clip", "CLIP features need")
    import torch
    from torch.nn.functional import interpolate
    from transformers import CLIPVisionModelWithProjection

    from wmgym.checkpoint import choose_device

    where = choose_device(device)
    model = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    model = model.float().eval().to(where)
    size = model.config.image_size
    mean, std = (torch.tensor(x, device=where)[:, None, None] for x in (MEAN, STD))

    def features(frames: np.ndarray) -> np.ndarray:
        parts = []
        for first in range(0, len(frames), BATCH):
            pixels = torch.from_numpy(frames[first : first + BATCH]).to(where).permute(0, 3, 1, 2).float() / 255
            if pixels.shape[-2:] != (size, size):
                pixels = interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
            with torch.no_grad():
                parts.append(model((pixels - mean) / std).image_embeds.cpu().numpy())
        return np.concatenate(parts)

    return features
