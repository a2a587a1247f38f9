"""Pictures against the truth: on the clothes, off them, and what the table compares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dgnet_fast.data import decode_split, load_dataset
from dgnet_fast.generation.scores import Truth, likeness, score_pictures
from tests.tiny import tiny_config, tiny_model


def test_likeness_on_the_clothes_and_off_them():
    """One grey level wrong off the clothes, ten on them."""
    wanted = torch.full((2, 3, 12, 12), 100, dtype=torch.uint8)
    clothes = np.zeros((2, 12, 12), dtype=bool)
    clothes[0, 2:6, 3:9] = True  # the second picture shows none
    ours = wanted + 1
    ours[:, :, 2:6, 3:9] = 110
    scores = likeness(ours, wanted, clothes)
    assert scores["clothes_psnr"][0] == pytest.approx(10 * np.log10(255**2 / 10**2))
    assert scores["rest_psnr"][0] == pytest.approx(20 * np.log10(255))
    assert scores["psnr"][0] == pytest.approx(10 * np.log10(255**2 / ((24 * 100 + 120) / 144)))
    assert 3 < scores["clothes_colour"][0] < 4.5  # lightness 42.4 against 46.3, where a unit is about one
    assert np.isnan(scores["clothes_colour"][1]) and np.isnan(scores["clothes_psnr"][1])
    assert scores["rest_psnr"][1] == scores["psnr"][1] and scores["rest_ssim"][0] > scores["ssim"][0]


def test_what_the_picture_table_compares(monkeypatch):
    """A model that leaves the structure picture as it is: exact reconstruction, and swaps that score as the copy."""
    dataset = load_dataset(
        "synthetic", train_identities=2, test_identities=4, distractors=4, junk=2, height=40, width=24
    )
    gallery, model = dataset.gallery, tiny_model(tiny_config())
    monkeypatch.setattr(model, "swap", lambda appearance, structure: structure)
    pictures = decode_split(gallery, 40, 24)
    first = [int(np.flatnonzero(gallery.ids == i)[0]) for i in (3, 4, 5)]
    pairs = np.array([[first[0], first[1]], [first[2], first[0]]])

    def truth(i, j):
        return Truth(gallery.truth(i, j, keep_body=True), gallery.clothes_mask(i, j, keep_body=True))

    scores = score_pictures(model, pictures, pairs, truth)
    assert scores["swap"] == scores["copy"]
    assert scores["recon"]["psnr"] == np.inf and scores["recon"]["clothes_colour"] == 0
    by_hand = [
        likeness(pictures[j : j + 1], torch.from_numpy(one.picture).permute(2, 0, 1)[None], one.clothes[None])
        for i, j in pairs
        for one in [truth(i, j)]
    ]
    for name, value in scores["swap"].items():
        assert value == pytest.approx(np.mean([one[name] for one in by_hand]))
