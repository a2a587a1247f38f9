"""Inception and LPIPS from files: beside the packages that defined these scores, where they are installed, and beside
numbers of theirs that are recorded here.

The packages want torchvision; they can be had without it for these tests, since none of it is used:
``pip install --no-deps torch-fidelity clean-fid lpips``, and a torchvision that loads beside this torch.
"""

from __future__ import annotations

import hashlib
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from dgnet_fast import quality
from dgnet_fast.generation.score_networks import inception, lpips, unpublished
from dgnet_fast.models.inception import Inception, resized_clean, resized_legacy
from dgnet_fast.report.tables import read_tables


def package(name):
    """A package that is not one of ours, if it is installed and loads."""
    try:
        return pytest.importorskip(name, exc_type=ImportError)
    except RuntimeError as error:  # torchvision, where it was built for another torch
        pytest.skip(f"{name} does not load: {error}")


def drawn_weights(network):
    """Weights for ``network`` that keep its activations near 1, by name."""
    generator = torch.Generator().manual_seed(0)
    state = dict(sorted(network.state_dict().items()))
    for name, tensor in state.items():
        if name.endswith("conv.weight"):
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
    return state


def noise(count, *size):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as torch-fidelity's: the classifier is in it, which FID does not use."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    state = drawn_weights(Inception())
    torch.save(state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


def test_inception_has_the_published_entries_and_torch_fidelitys_features(weights):
    state = Inception().state_dict()
    named = "\n".join(f"{name} {tuple(state[name].shape)}" for name in sorted(state))
    assert hashlib.sha256(named.encode()).hexdigest()[:16] == "5c5cb906421dd921"
    found = inception(weights)(noise(1, 64, 32))[0]
    recorded = [
        1.12188,
        1.48951,
        0.597667,
        0.501202,
        3.78769,
    ]  # torch-fidelity 0.4.0, same weights and picture
    np.testing.assert_allclose([found.mean(), found.std(), *found[:3]], recorded, rtol=2e-4)


def test_beside_torch_fidelity(weights, tmp_path):
    """Its network, features, resize, and FID of two folders of pictures of the default size, so that nothing else resizes."""
    module = package("torch_fidelity.feature_extractor_inceptionv3")
    theirs = module.FeatureExtractorInceptionV3("x", ["2048"], str(weights))
    x = noise(2, 64, 32)
    torch.testing.assert_close(inception(weights)(x), theirs(x)[0], rtol=1e-4, atol=1e-5)
    exact = package("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    for size in ((64, 32), (300, 512)):
        y = noise(2, *size).float()
        wanted = exact(y, size=(299, 299), align_corners=False)
        torch.testing.assert_close(resized_legacy(y), wanted, rtol=0, atol=1e-4)
    for folder, pictures in (("a", noise(3, 256, 128)), ("b", 255 - noise(4, 256, 128) // 2)):
        (tmp_path / folder).mkdir()
        for k, picture in enumerate(pictures):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / folder / f"{k}.png")
    a, b, scores = tmp_path / "a", tmp_path / "b", tmp_path / "scores.json"
    wanted = package("torch_fidelity").calculate_metrics(
        input1=str(a), input2=str(b), fid=True, cuda=False, cache=False, verbose=False,
        feature_extractor_weights_path=str(weights),
    )["frechet_inception_distance"]  # fmt: skip
    words = [a, "--real", b, "--inception", weights, "--device", "cpu", "--json", scores, "-q"]
    assert quality.main([str(word) for word in words]) == 0
    rows = {row[0]: row[1] for row in read_tables(scores)[0]["rows"]}
    assert rows["FID (legacy)"] == pytest.approx(wanted, rel=1e-3)


def test_the_clean_resize_is_clean_fids():
    resizer = package("cleanfid.resize").build_resizer("clean")
    x = noise(2, 64, 32)
    wanted = np.stack([resizer(picture) for picture in x.permute(0, 2, 3, 1).numpy()])
    np.testing.assert_array_equal(resized_clean(x.float()).permute(0, 2, 3, 1).numpy(), wanted)


def test_the_two_resizes():
    """Between two pixels the legacy filter starts at the first one; the clean one spreads a pixel over its area."""
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = 255
    legacy = resized_legacy(x, 8)[0, 0]
    assert legacy[2, 2] == 255 and legacy[1, 2] == legacy[2, 3] == 127.5 and legacy[3, 3] == 63.75
    fine = torch.zeros(1, 1, 64, 64)
    fine[:, :, 1::2] = (
        255  # stripes that the legacy filter, which reads two rows of eight, takes for one colour
    )
    assert resized_legacy(fine, 8).max() == 0
    assert 120 < resized_clean(fine, 8).mean() < 135


def test_clean_of_a_weights_file(weights):
    x, network = noise(1, 64, 32), Inception()
    network.load_state_dict({k: v for k, v in torch.load(weights).items() if not k.startswith("fc.")})
    with torch.no_grad():
        wanted = network((resized_clean(x.float()) - 128) / 128)
    torch.testing.assert_close(inception(weights, resize="clean")(x), wanted)
    assert "none of the published files" in (unpublished(weights) or "")


def test_lpips_with_alexnet(tmp_path):
    """The distance is that of the package, with the weights of a torchvision file."""
    package("torchvision")
    theirs = package("lpips").LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = {f"features.{k.split('.', 1)[1]}": v for k, v in theirs.net.state_dict().items()}
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, tmp_path / "alexnet.pth")
    one, other = noise(3, 64, 32), noise(3, 64, 32).flip(0)
    ours = lpips(tmp_path / "alexnet.pth")
    with torch.no_grad():
        wanted = theirs(one / 127.5 - 1, other / 127.5 - 1).flatten().double()
    assert ours.network == "AlexNet"
    np.testing.assert_allclose(ours.distance(one, other), wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="pictures are 40x24; LPIPS .alex. needs at least 31 pixels"):
        ours.distance(noise(1, 40, 24), noise(1, 40, 24))


def test_files_that_do_not_fit(tmp_path, weights):
    path = tmp_path / "some.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(
        ValueError, match=r"some.pth does not fit the network of FID: missing .* FID needs the 2015"
    ):
        inception(path)
    with pytest.raises(
        ValueError, match=r"some.pth holds neither AlexNet nor VGG-16: .*conv1.weight.* LPIPS needs"
    ):
        lpips(path)
    with pytest.raises(ValueError, match="--fid-resize is 'best'; allowed: legacy, clean"):
        inception(weights, resize="best")
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, path)
    with (
        mock.patch.dict("sys.modules", {"lpips": None}),
        pytest.raises(ValueError, match=r"dgnet-fast\[lpips\]"),
    ):
        lpips(path)
