"""Vision-language models as judges of a return (judges.py): at an OpenAI-compatible address, or local, by transformers.

There is no default address, and nothing is downloaded. A judge that cannot be reached raises ConnectionError, one that gives no marks
ValueError; both say what was asked of whom.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmgym.benchmarks.judges import Case, ExactJudge, Judge, Verdict
from wmgym.extras import need
from wmgym.files import png

KEY = "WMGYM_JUDGE_KEY"  # environment variable with the key of the address
TIMEOUT = 120.0  # seconds for one answer
TRIES = 3  # answers asked for before a judge is given up
SIDE = 384  # least side in pixels of the pictures shown
LONGEST_ANSWER = 2**20  # bytes
PARTS = ("appearance", "presence", "view", "scene")
PROMPT = """\
The first picture is a view in a game, with a landmark of coloured blocks. The camera then turned away and came back. The second picture \
shows what it saw after its return. Mark the second picture against the first, each from 0 (not at all) to 5 (fully):
appearance: the landmark has the same shape and colours
presence: a landmark is there at all
view: the camera stands at the same place and looks the same way
scene: the surroundings are the same
Answer with one JSON object and nothing else, for example {"appearance": 2, "presence": 4, "view": 5, "scene": 3}"""


def find_judge(text: str, device: str = "auto") -> Judge:
    """ "exact", "URL=MODEL" for a model at an address such as http://localhost:8000/v1, or a model's folder. ValueError for others."""
    if text == "exact":
        return ExactJudge()
    if re.match(r"https?://", text):
        address, found, model = text.rpartition("=")
        if not found or not model or not address:
            raise ValueError(f"a judge at an address is URL=MODEL, such as http://localhost:8000/v1=NAME; got {text!r}")
        return UrlJudge(address.rstrip("/"), model)
    if (Path(text) / "config.json").is_file():
        return LocalJudge(text, device)
    raise ValueError(f"a judge is exact, URL=MODEL with an http address, or a folder with config.json; got {text!r}")


def parse_verdict(answer: str) -> Verdict:
    """The marks in a model's answer: its last JSON object. ValueError if it has none."""
    objects = re.findall(r"\{[^{}]*\}", answer)
    try:
        marks = json.loads(objects[-1])
        return Verdict(*(float(marks[part]) for part in PARTS))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no marks from 0 to 5 for {', '.join(PARTS)} in the answer {answer[:200]!r} ({error})") from None


def ask_for_marks(who: str, ask: Callable[[], str], tries: int = TRIES) -> Verdict:
    """Ask until an answer has marks, `tries` times at most."""
    for attempt in range(tries):
        answer = ask()
        try:
            return parse_verdict(answer)
        except ValueError as error:
            if attempt == tries - 1:
                raise ValueError(f"the judge {who} gave no marks in {tries} answers: {error}") from None
    raise AssertionError


@dataclass(frozen=True)
class UrlJudge:
    """A model behind an OpenAI-compatible address: POST ADDRESS/chat/completions. The key, if it needs one, is in the variable `KEY`."""

    address: str
    model: str
    pause: float = 2.0  # seconds before a busy server is asked again; doubles each time

    @property
    def name(self) -> str:
        return self.model

    @property
    def identity(self) -> str:
        return _identity(self.model, {"address": self.address, "model": self.model})

    def judge(self, returned: np.ndarray, case: Case) -> Verdict:
        return ask_for_marks(f"{self.model!r} at {self.address}", lambda: self._ask((case.before, returned)))

    def _ask(self, pictures: Sequence[np.ndarray]) -> str:
        shown = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png(_enlarged(picture))).decode()}"}}
            for picture in pictures
        ]
        content = [*shown, {"type": "text", "text": PROMPT}]
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.address}/chat/completions", json.dumps(body).encode(), headers)
        return _text_of(self._send(request), self.address)

    def _send(self, request: urllib.request.Request) -> bytes:
        """The response. A server that is busy or fails is asked again."""
        for attempt in range(TRIES):
            try:
                with _OPENER.open(request, timeout=TIMEOUT) as response:
                    return response.read(LONGEST_ANSWER)
            except urllib.error.HTTPError as error:
                if error.code not in (429, 500, 502, 503, 504) or attempt == TRIES - 1:
                    hint = f"; is its key in {KEY}?" if error.code in (401, 403) else ""
                    said = error.read(200).decode(errors="replace").strip()
                    raise ConnectionError(f"the judge at {self.address} refused: {error.code} {error.reason}{hint} {said}") from None
            except (OSError, http.client.HTTPException) as error:
                if attempt == TRIES - 1:
                    why = getattr(error, "reason", None) or str(error) or type(error).__name__
                    raise ConnectionError(f"the judge at {self.address} cannot be reached: {why}") from None
            time.sleep(self.pause * 2**attempt)
        raise AssertionError


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key belongs to the address that was given."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _text_of(response: bytes, address: str) -> str:
    try:
        return str(json.loads(response)["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise ValueError(f"the answer of {address} is not a chat completion: {response[:200]!r}") from None


class LocalJudge:
    """A vision-language model in a folder of the user's, by transformers (extra `[clip]`). Pickled weights are not read."""

    def __init__(self, folder: str, device: str = "auto") -> None:
        need("clip", "a local judge needs")
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from wmgym.checkpoint import choose_device

        self.name = Path(folder).resolve().name
        self.identity = _identity(self.name, {"folder": str(Path(folder).resolve())})
        self._device = choose_device(device)
        self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype="auto")
        self._model = model.eval().to(self._device)

    def judge(self, returned: np.ndarray, case: Case) -> Verdict:
        return ask_for_marks(self.name, lambda: self._ask((case.before, returned)), tries=1)  # it is deterministic

    def _ask(self, pictures: Sequence[np.ndarray]) -> str:
        import torch
        from PIL import Image

        images = [Image.fromarray(_enlarged(picture)) for picture in pictures]
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": PROMPT}]
        chat = [{"role": "user", "content": content}]
        how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = self._processor.apply_chat_template(chat, **how).to(self._device)
        with torch.inference_mode():
            made = self._model.generate(**inputs, max_new_tokens=128, do_sample=False)
        return self._processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def _identity(name: str, what: dict[str, str]) -> str:
    """A name for files that differs where the model, its place or the question differ."""
    digest = hashlib.sha256(json.dumps([what, PROMPT], sort_keys=True).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}-{digest}"


def _enlarged(picture: np.ndarray) -> np.ndarray:
    """A picture of at least `SIDE` pixels; each pixel becomes a square."""
    zoom = max(1, -(-SIDE // min(picture.shape[:2])))
    return picture.repeat(zoom, 0).repeat(zoom, 1)
