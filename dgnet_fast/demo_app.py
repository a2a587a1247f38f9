"""The local web page's server: two pictures in, both swaps and the nearest gallery people out."""

from __future__ import annotations

import base64
import io
import threading
import time
from html import escape
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dgnet_fast.data import normalize
from dgnet_fast.demo_page import PAGE
from dgnet_fast.evaluation import extract_features, split_features
from dgnet_fast.extras import need
from dgnet_fast.generation import NOBODY, Pictures, appearance_codes, decode_codes, structure_codes, to_image
from dgnet_fast.models.dgnet import DGNet

LARGEST_UPLOAD = 32 * 2**20
FINE_WEIGHT = 0.5


def read_picture(data: bytes, name: str, height: int, width: int) -> Tensor:
    """An uploaded picture as uint8 (3, height, width), resized bicubically; ValueError names one that is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
            image = image.resize((width, height), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture {name} cannot be read: it is no image, or a damaged one") from error
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def data_url(picture: Tensor) -> str:
    """A uint8 picture (3, H, W) as a PNG in a data URL."""
    data = io.BytesIO()
    to_image(picture).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")


class Demo:
    """A model with an optional gallery. Calls may come from several threads; the model runs one at a time."""

    def __init__(
        self, model: DGNet, gallery: Pictures | None = None, *, nearest: int = 5, progress: Any = None
    ) -> None:
        self.model, self.gallery, self.count = model, gallery, nearest
        config = model.config
        self.size = config.crop_image_height, config.crop_image_width
        self.lock = threading.Lock()
        self.features = None
        if gallery is not None:
            self.features = split_features(
                model.appearance_encoder,
                gallery.split,
                *self.size,
                upsample=config.ID_upsample,
                progress=progress,
            )

    def swaps(self, pictures: Tensor) -> Tensor:
        """uint8 pictures (2, 3, H, W) → appearance of the first in the structure of the second, and the reverse."""
        appearance, structure = appearance_codes(self.model, pictures), structure_codes(self.model, pictures)
        return decode_codes(self.model, appearance, structure.flip(0))

    def nearest(self, picture: Tensor) -> list[tuple[int, float]]:
        """(index, cosine-like score) of the gallery's nearest pictures of different people, nearest first."""
        encoder = self.model.appearance_encoder
        x = normalize(picture[None].to(next(encoder.parameters()).device))
        feature = extract_features(encoder, x, upsample=self.model.config.ID_upsample)[0].cpu()
        heads = torch.ones_like(feature)
        if encoder.style == "AB":  # the fine-grained half counts half, as in the retrieval scores
            heads[len(heads) // 2 :] = FINE_WEIGHT
        scores = self.features @ (feature * heads) / heads.view(len(encoder.heads), -1)[:, 0].sum()
        found, seen = [], set()
        for index in scores.argsort(descending=True).tolist():
            person = int(self.gallery.people[index])
            if person == NOBODY or person not in seen:
                seen.add(person)
                found.append((index, float(scores[index])))
            if len(found) == self.count:
                break
        return found

    def answer(self, uploads: dict[str, bytes]) -> dict[str, Any]:
        """What the page shows of the uploads 'a' and 'b'; ValueError for a picture that cannot be read."""
        start = time.perf_counter()
        pictures = torch.stack([read_picture(uploads[k], k.upper(), *self.size) for k in ("a", "b")])
        with self.lock:
            made = self.swaps(pictures)
            near = [] if self.features is None else [self.nearest(picture) for picture in pictures]
        captions = ("appearance of A, structure of B", "appearance of B, structure of A")
        groups = []
        for name, found in zip("AB", near, strict=False):
            people = []
            for index, score in found:
                shown = self.gallery.choose([index]).decode(*self.size)[0]
                person = int(self.gallery.people[index])
                who = self.gallery.split.names[index] if person == NOBODY else f"person {person}"
                people.append({"picture": data_url(shown), "caption": f"{who}, {score:.2f}"})
            groups.append({"title": f"Nearest people to {name} in {self.gallery.label}", "people": people})
        shown = [{"picture": data_url(x), "caption": c} for x, c in zip(made, captions, strict=True)]
        return {"pictures": shown, "nearest": groups, "seconds": time.perf_counter() - start}


def create_app(demo: Demo, title: str):  # noqa: ANN201 - a Flask application; Flask is optional
    """The page at ``/`` and its answers at ``/swap`` as a Flask application.

    Raises ValueError naming Flask where it is not installed.
    """
    need("flask", "demo", "the demo")
    import flask

    app = flask.Flask("dgnet_fast.demo", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_UPLOAD

    @app.get("/")
    def page() -> str:
        return PAGE.replace("__MODEL__", escape(title))

    @app.post("/swap")
    def swap() -> Any:
        uploads = {name: flask.request.files.get(name) for name in ("a", "b")}
        if missing := [name.upper() for name, upload in uploads.items() if upload is None]:
            return {"error": f"picture {', '.join(missing)} is missing"}, 400
        try:
            return demo.answer({name: upload.read() for name, upload in uploads.items()})
        except ValueError as error:
            return {"error": str(error)}, 400

    @app.errorhandler(413)
    def too_large(_: Any) -> Any:
        return {"error": f"the pictures are larger than {LARGEST_UPLOAD // 2**20} MB"}, 413

    return app
