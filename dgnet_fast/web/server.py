"""The server of the local web page: it takes two pictures, and returns both swaps and the nearest people of the
gallery.
"""

from __future__ import annotations

import base64
import io
import threading
import time
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.config.extras import need
from dgnet_fast.config.shown import one_line
from dgnet_fast.data.pictures import NOBODY, Pictures
from dgnet_fast.data.reading import read_picture, resized
from dgnet_fast.generation.codes import appearance_codes, decode_codes, structure_codes
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.report.grid import to_image
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.web.page import PAGE
from dgnet_fast.web.protection import ARRIVED, LOCAL, is_allowed, is_same_site

if TYPE_CHECKING:
    import flask  # optional

LARGEST_UPLOAD = 32 * 2**20
LARGEST_PICTURE = 25_000_000
"""Pixels of an upload, as its header says."""
MOST_WAITING = 8
"""Requests that are decoded and computed one after the other; more are told to come again."""


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
        self.size = config.picture_size
        self.lock, self.waiting = threading.Lock(), threading.BoundedSemaphore(MOST_WAITING)
        self.extractor = Extractor.of(model.appearance_encoder, config)
        self.vectors = None
        if gallery is not None:
            features = self.extractor.split(gallery.split, cached=False, progress=progress)
            self.vectors = self.extractor.to_unit(features)

    def swaps(self, pictures: Tensor) -> Tensor:
        """uint8 pictures (2, 3, H, W) → appearance of the first in the structure of the second, and the reverse."""
        appearance, structure = appearance_codes(self.model, pictures), structure_codes(self.model, pictures)
        return decode_codes(self.model, appearance, structure.flip(0))

    def nearest(self, picture: Tensor) -> list[tuple[int, float]]:
        """(index, cosine-like score) of the gallery's nearest pictures of different people, nearest first."""
        assert self.gallery is not None and self.vectors is not None
        scores = self.vectors @ self.extractor.to_unit(self.extractor(picture))[0]
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
        with self.lock:  # decoding too, so that several large pictures are never in memory at once
            read = [
                resized(read_picture(uploads[k], k.upper(), largest=LARGEST_PICTURE), *self.size)
                for k in ("a", "b")
            ]
            pictures = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2)
            made = self.swaps(pictures)
            near = [] if self.vectors is None else [self.nearest(picture) for picture in pictures]
        captions = ("appearance of A, structure of B", "appearance of B, structure of A")
        groups = []
        for name, found in zip("AB", near, strict=False):
            people = []
            for index, score in found:
                assert self.gallery is not None
                shown = self.gallery.choose([index]).decode(*self.size)[0]
                person = int(self.gallery.people[index])
                who = self.gallery.split.names[index] if person == NOBODY else f"person {person}"
                people.append({"picture": data_url(shown), "caption": f"{who}, {score:.2f}"})
            label = "" if self.gallery is None else self.gallery.label
            groups.append({"title": f"Nearest people to {name} in {label}", "people": people})
        shown = [{"picture": data_url(x), "caption": c} for x, c in zip(made, captions, strict=True)]
        return {"pictures": shown, "nearest": groups, "seconds": time.perf_counter() - start}


def create_app(demo: Demo, title: str, hosts: frozenset[str] = LOCAL) -> flask.Flask:
    """The page at ``/`` and its answers at ``/swap`` as a Flask application. Only requests to ``hosts`` are answered
    (`dgnet_fast.web.protection.names_of`), and only those that the page itself or a program sends.

    Raises ValueError naming Flask where it is not installed.
    """
    need("flask", "demo", "the demo")
    import flask

    app = flask.Flask("dgnet_fast.demo", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_UPLOAD
    app.config["MAX_FORM_PARTS"] = 16

    @app.before_request
    def only_for_this_page() -> Any:
        request = flask.request
        if not is_allowed(request.host, hosts):
            return {"error": f"this page is not {request.host[:100]!r}; open it as the demo printed it"}, 403
        if not is_same_site(request.headers.get("Origin"), request.host):
            return {"error": "pictures are taken only from this page itself"}, 403
        return None

    @app.after_request
    def not_inside_others(response: Any) -> Any:
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.get("/")
    def page() -> str:
        return PAGE.replace("__MODEL__", escape(title))

    @app.post("/swap")
    def swap() -> Any:
        uploads = {name: flask.request.files.get(name) for name in ("a", "b")}
        if missing := [name.upper() for name, upload in uploads.items() if upload is None]:
            return {"error": f"picture {', '.join(missing)} is missing"}, 400
        flask.request.environ.get(ARRIVED, lambda: None)()
        if not demo.waiting.acquire(blocking=False):
            return {"error": f"{MOST_WAITING} requests are waiting already; try again"}, 503
        try:
            return demo.answer(
                {name: upload.read() for name, upload in uploads.items() if upload is not None}
            )
        except ValueError as error:
            return {"error": one_line(str(error))}, 400
        except MemoryError:
            return {"error": "there is not enough memory for these pictures"}, 503
        finally:
            demo.waiting.release()

    @app.errorhandler(413)
    def too_large(_: Any) -> Any:
        if (flask.request.content_length or 0) > LARGEST_UPLOAD:
            return {"error": f"the pictures are larger than {LARGEST_UPLOAD // 2**20} MB"}, 413
        return {"error": "the request has more parts than the pictures A and B"}, 413

    return app
