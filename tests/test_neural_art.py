"""Neural art: the loss and its gradient, VGG16, pictures of any kind, sheets, and painting one's own picture."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from command_line import TINY_ART, results
from conftest import SHARED, skip
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.models.vgg import cfgs, make_layers

from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.pictures import CELL, GAP, MARGIN, Row, sheet
from lightning_l2l.optimizees import NeuralArt
from lightning_l2l.optimizees.art_loss import ArtLoss, gram, variation
from lightning_l2l.optimizees.networks import vgg
from lightning_l2l.optimizees.networks.vgg import VGG, load_vgg
from lightning_l2l.optimizees.neural_art import normalize, to_colours
from lightning_l2l.optimizees.sources import downloads
from lightning_l2l.optimizees.sources.picture_files import read_picture
from lightning_l2l.rules import Adam
from lightning_l2l.unroll import learning_curves

RUN = Path("runs/neural_art/version_0")


def art(**settings) -> NeuralArt:
    """Small pictures, seen by a network without training."""
    small = {"size": 16, "features": "random", "horizon": 4, "tuning_episodes": 2, "val_episodes": 4}
    return NeuralArt(**small | {"test_episodes": 4} | settings)


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(256, size=(height, width, 3), dtype=np.uint8)).convert(mode)


def write_contents(root: Path, count: int = 4) -> Path:
    for number, part in enumerate(("train", "val", "test")):
        (root / part).mkdir(parents=True)
        for n in range(count):
            noise(20 + n, 24, seed=10 * number + n).save(root / part / f"{n}.png")
    return root


def test_gram_matrices_are_means_over_places():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # two channels, two places
    torch.testing.assert_close(gram(features), torch.tensor([[[2.5, 0.5], [0.5, 5.0]]]))


def test_variation_is_of_neighbours_across_and_down():
    picture = torch.tensor([[[[0.0, 2.0], [3.0, 3.0]]]])
    assert variation(picture).item() == pytest.approx((4 + 0) / 2 + (9 + 1) / 2)


def test_the_losses_parts_vanish_where_they_should():
    style = torch.randn(3, 16, 16)
    images = torch.randn(2, 3, 16, 16)
    loss = {w: ArtLoss(VGG(), style, w) for w in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))}
    alpha, beta, gamma = (each(images, each.content(images)) for each in loss.values())
    assert torch.equal(alpha, torch.zeros(2))
    assert beta.min() > 0
    torch.testing.assert_close(gamma, variation(images) * 256 / 4096)
    at_style = style[None]
    beta = loss[(0.0, 1.0, 0.0)]
    assert beta(at_style, beta.content(images[:1])).item() == pytest.approx(0, abs=1e-9)


def test_the_weights_mean_the_same_at_any_size():
    """Four copies of a picture have about the same features everywhere, so four times the loss of one."""
    style, image = torch.randn(3, 32, 32), torch.randn(1, 3, 32, 32)
    other = image + 0.3 * torch.randn_like(image)
    loss = ArtLoss(VGG(), style, (1.0, 1.0, 1.0))
    one = loss(other, loss.content(image))
    four = loss(other.tile(2, 2), loss.content(image.tile(2, 2)))
    torch.testing.assert_close(four / one, torch.tensor([4.0]), rtol=0.1, atol=0)


def test_the_gradient_is_that_of_finite_differences():
    episodes = art().episodes("val", [0, 1])
    episodes.objective.double()
    episodes = episodes.to("cpu", torch.float64)
    torch.manual_seed(1)
    theta = episodes.theta + 0.1 * torch.randn_like(episodes.theta)
    _, grads = episodes.value_and_grad(theta, 0)
    for coordinate in (0, 300, 767):
        step = torch.zeros_like(theta)
        step[:, coordinate] = 1e-5
        slope = (episodes.loss(theta + step, 0) - episodes.loss(theta - step, 0)) / 2e-5
        torch.testing.assert_close(grads[:, coordinate], slope, rtol=1e-4, atol=1e-7)


def test_value_and_grad_is_each_episodes_own():
    data = art()
    both, one = data.episodes("val", [2, 3]), data.episodes("val", [3])
    assert torch.equal(both.theta[1:], one.theta)
    losses, grads = both.value_and_grad(both.theta + 0.1, 0)
    loss, grad = one.value_and_grad(one.theta + 0.1, 0)
    torch.testing.assert_close(losses[1:], loss)
    torch.testing.assert_close(grads[1:], grad, rtol=1e-3, atol=1e-6)


def test_nothing_of_the_network_learns():
    episodes = art().episodes("val", [0])
    before = repr(episodes.objective)
    episodes.value_and_grad(episodes.theta, 0)
    assert not any(parameter.requires_grad for parameter in episodes.objective.parameters())
    assert all(parameter.grad is None for parameter in episodes.objective.parameters())
    assert repr(episodes.objective) == before


def test_adam_paints():
    episodes = art(start="noise").episodes("test", [0])
    curve = learning_curves(Adam(0.1), episodes, 30)[0]
    assert curve[-1] < curve[0] / 3


def test_episodes_start_at_content_or_at_noise():
    assert torch.equal((at := art().episodes("test", [1])).theta, at.images.flatten(1))
    noisy = art(start="noise").episodes("test", [1, 2])
    assert noisy.theta.std().item() == pytest.approx(1, abs=0.05)
    assert not torch.equal(noisy.theta[0], noisy.theta[1])


def test_vgg_is_torchvisions():
    """Its layers, that is: the classifier of half a gigabyte is left out."""
    features = make_layers(cfgs["D"], batch_norm=False).eval()
    state = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, "vgg16.pth")
    np.savez("first.npz", **{k: v.numpy() for k, v in VGG(state).state_dict().items()})
    pictures = torch.randn(2, 3, 21, 18)
    with torch.no_grad():
        expected = [features[: end + 1](pictures) for end in (3, 8, 15)]
        for file in ("vgg16.pth", "first.npz"):
            for layer, wanted in zip(load_vgg(file)(pictures), expected, strict=True):
                torch.testing.assert_close(layer, wanted, rtol=1e-4, atol=1e-5)


def test_the_real_vgg_is_loaded_from_its_first_layers():
    path = SHARED / "neural_art" / "vgg16_conv1_1-conv3_3_fp16.npz"
    if not path.is_file():
        skip("VGG16's first layers are not at ../shared/data, and tests do not download")
    network = load_vgg(str(path))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    layers = network(torch.randn(1, 3, 64, 64))
    assert [tuple(layer.shape[1:]) for layer in layers] == [(64, 64, 64), (128, 32, 32), (256, 16, 16)]
    # trained filters answer to a colourful picture more sparsely than random ones
    assert (layers[2] == 0).float().mean() > 0.6


def test_weights_of_other_shapes_are_refused():
    state = {name: tensor.numpy() for name, tensor in VGG().state_dict().items()}
    np.savez("narrow.npz", **state | {"features.5.weight": np.zeros((64, 64, 3, 3), np.float32)})
    with pytest.raises(
        InvalidInputError, match=r"narrow\.npz, in which features\.5\.weight has shape \(64, 64, 3, 3\)"
    ):
        load_vgg("narrow.npz")
    del state["features.14.bias"]
    np.savez("short.npz", **state)
    with pytest.raises(InvalidInputError, match=r"features\.14\.bias is missing"):
        load_vgg("short.npz")
    torch.save(make_layers(cfgs["A"], batch_norm=False)[:3].state_dict(), "other.pth")
    with pytest.raises(InvalidInputError, match=r"features\.0\.weight is missing"):
        load_vgg("other.pth")


class Opened:
    """Leaves a trace when something unpickles it."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_files_that_are_no_weights_are_refused():
    Path("text.npz").write_text("no weights")
    Path("text.pth").write_text("no weights")
    torch.save([1, 2], "list.pth")
    torch.save({"features.0.weight": Opened()}, "evil.pth")
    np.savez("evil.npz", **{"features.0.weight": np.array([Opened()], dtype=object)})
    with open("array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    for name in ("text.npz", "text.pth", "list.pth", "evil.pth", "evil.npz", "array.npz"):
        reason = r"is not an \.npz file that can be read" if name.endswith(".npz") else "cannot be read"
        with pytest.raises(InvalidInputError, match=rf"data\.features is {name}, which {reason}"):
            load_vgg(name)
    with pytest.raises(InvalidInputError, match=r"data\.features is nowhere\.pth, which is not there"):
        load_vgg("nowhere.pth")
    assert not Path("executed").exists()


def test_without_weights_the_error_says_what_to_do(monkeypatch, tmp_path, fails):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    with socket.socket() as silent:  # accepts connections, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/vgg16-397923af.pth"
        monkeypatch.setattr(weights.value, "url", url)
        vgg.torchvision_weights.cache_clear()
        sentence = fails("fit", "--config", "neural_art.yaml", *TINY_ART, "--data.features=auto")
        paint = ["predict", "--config", "neural_art.yaml", "--ckpt_path=pretrained:neural_art"]
        picture = fails(*paint, "--data.features=auto", "--data.predict=nope.jpg")
    assert "data.features is auto, but VGG16's weights could not be loaded" in sentence
    assert "data.features=random" in sentence and sentence.rstrip().endswith("checkpoints.")  # nothing is cut
    assert "data.predict is nope.jpg" in picture  # which is found out before weights are fetched


def test_weights_that_are_not_finite_are_refused():
    state = vgg.VGG().state_dict()
    state["features.0.bias"][0] = torch.inf
    torch.save(state, "vgg16.pth")
    with pytest.raises(
        InvalidInputError, match=r"vgg16\.pth, in which features\.0\.bias has numbers that are not finite"
    ):
        load_vgg("vgg16.pth")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_grey_pictures_get_colours_and_transparent_ones_a_white_ground(mode):
    if mode == "I;16":
        Image.fromarray(np.full((16, 20), 40_000, np.uint16)).save("a.png")
    elif mode == "RGBA":
        picture = noise(20, 16, "RGBA")
        picture.putalpha(0)
        picture.save("a.png")
    else:
        noise(20, 16, "L" if mode == "LA" else "RGB").convert(mode).save("a.tif" if mode == "CMYK" else "a.png")
    path = Path("a.tif" if mode == "CMYK" else "a.png")
    picture = read_picture(path, "data.predict is a.png, which")
    assert (picture.mode, picture.size) == ("RGB", (20, 16))
    pixels = np.array(picture)
    if mode == "RGBA":
        assert (pixels == 255).all()
    if mode in ("L", "LA"):
        assert (pixels[..., 0] == pixels[..., 2]).all()
    if mode == "I;16":
        assert (pixels == 40_000 // 256).all()


def test_photographs_are_read_the_right_way_up():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    noise(30, 20).save("turned.jpg", exif=exif)
    assert read_picture(Path("turned.jpg"), "").size == (20, 30)


def test_pixels_and_colours_go_back_and_forth():
    picture = noise(8, 5)
    pixels = (to_colours(normalize(picture)[None])[0] * 255).round().byte().permute(1, 2, 0)
    np.testing.assert_array_equal(pixels.numpy(), np.array(picture))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "test/1.png").write_text("no image"), "test/1.png is not an image"),
        (lambda root: noise(15, 40).save(root / "val/1.png"), "val/1.png has 15 x 40 pixels"),
        (lambda root: [path.unlink() for path in (root / "val").iterdir()], "val holds no picture"),
        (lambda root: (root / "test").rename(root / "best"), "test is not there"),
        (lambda root: (root / "test/1.png").unlink(), "data.test_episodes is 4, but data.content has pictures for 3"),
        (lambda root: [p.unlink() for p in sorted((root / "train").iterdir())[2:]], "data.tuning_episodes is 2"),
    ],
)
def test_wrong_contents_are_named(tmp_path, spoil, words):
    spoil(write_contents(tmp_path / "content"))
    with pytest.raises(InvalidInputError, match=words):
        art(content=str(tmp_path / "content")).setup()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"content": "nowhere"}, r"data\.content is nowhere, whose folder train is not there"),
        ({"style": "nowhere.jpg"}, r"data\.style is nowhere\.jpg, which is not there"),
        ({"style": "text.jpg"}, r"data\.style is text\.jpg, which is not an image"),
        ({"style": "broken.jpg"}, r"data\.style is broken\.jpg, which is not an image"),
        ({"style": "tiny.png"}, r"data\.style is tiny\.png, which has 8 x 5 pixels"),
        ({"size": 8}, r"data\.size is 8, which is too small"),
        ({"predict_size": 8}, r"data\.predict_size is 8, which is too small"),
        ({"style_weight": -1.0}, r"data\.style_weight is -1\.0"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    Path("text.jpg").write_text("no image")
    noise(8, 5).save("tiny.png")
    noise(64, 64).save("broken.jpg")
    Path("broken.jpg").write_bytes(Path("broken.jpg").read_bytes()[:1500])
    with pytest.raises(InvalidInputError, match=words):
        art(**settings).setup()


def test_a_broken_content_image_is_named_when_it_is_read(tmp_path):
    root = write_contents(tmp_path / "content")
    whole = (root / "test/1.png").read_bytes()
    (root / "test/1.png").write_bytes(whole[: len(whole) // 2])
    data = art(content=str(root))
    data.setup()
    with pytest.raises(InvalidInputError, match=r"test/1\.png is not an image that can be read"):
        data.episodes("test", range(4))


def test_content_images_go_round_in_an_order_that_changes(tmp_path):
    data = art(content=str(write_contents(tmp_path / "content", 6)))
    passes = [data.episodes("train", range(start, start + 4)).theta for start in (0, 4)]
    everything = [{tuple(theta.tolist()) for theta in each} for each in passes]
    assert everything[0] == everything[1]
    assert len(everything[0]) == 4
    assert not all(torch.equal(data.episodes("train", range(4 * n, 4 * n + 4)).theta, passes[0]) for n in range(1, 6))
    tuned = {tuple(theta.tolist()) for theta in data.episodes("tune", range(2)).theta}
    assert len(tuned) == 2
    assert everything[0].isdisjoint(tuned)
    tests = {tuple(theta.tolist()) for theta in data.episodes("test", range(4)).theta}
    assert tests.isdisjoint(everything[0] | tuned)


def test_fingerprints_tell_episodes_apart():
    prints = [
        art(**settings).episodes("test", [0]).fingerprint()
        for settings in ({}, {}, {"style": "china"}, {"content_weight": 1.0}, {"size": 20}, {"start": "noise"})
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 5


def test_a_sheet_has_whole_pixels():
    row = {"content": torch.rand(3, 16, 24), "style": torch.rand(3, 30, 20), "step 0": torch.rand(3, 16, 24)}
    figure = sheet([Row("LSTM", row), Row("Adam", row)])
    figure.savefig("sheet.png", dpi=figure.dpi)
    zoom = -(-CELL // 24)
    with Image.open("sheet.png") as image:
        assert image.size == (MARGIN + 3 * (24 * zoom + GAP), MARGIN + 2 * (16 * zoom + GAP))
        pixels = np.array(image.convert("RGB"))
    left, top = MARGIN + 2 * (24 * zoom + GAP), MARGIN + GAP
    middle = pixels[top + zoom // 2 : top + 16 * zoom : zoom, left + zoom // 2 : left + 24 * zoom : zoom] / 255
    np.testing.assert_allclose(middle, row["step 0"].permute(1, 2, 0).numpy(), atol=0.01)


def test_fit_test_and_predict(fails):
    main(["fit", "--config", "neural_art.yaml", *TINY_ART, "--trainer.max_epochs=1"])
    small = ["--variants.large={size: 20, style: china}", *TINY_ART, "--data.test_episodes=4", "--ckpt_path=best"]
    main(["test", "--config", "neural_art.yaml", *small, "--data.episodes_per_batch=2"])
    rows = results(RUN)
    assert [row["rule"] for row in rows[:5]] == ["LSTM", "SGD", "NAG", "RMSprop", "Adam"]
    assert [rows[0]["variant"], rows[5]["variant"]] == ["flower 16 x 16, random features", "large, random features"]
    height = MARGIN + 2 * 3 * (CELL + GAP)
    with Image.open(RUN / "pictures.png") as image:
        assert image.size == (MARGIN + 4 * (CELL + GAP), height)  # content, style, steps 0 and 10
    with Image.open(RUN / "pictures_large.png") as image:
        assert image.size == (MARGIN + 4 * (140 + GAP), MARGIN + 2 * 3 * (140 + GAP))
    shown = set(EventAccumulator(str(RUN)).Reload().Tags()["images"])
    assert {"val/curves", "val/pictures", "test/curves", "test/pictures", "test/pictures_large"} <= shown

    noise(37, 22).save("my.jpg")
    paint = ["predict", "--config", "neural_art.yaml", *TINY_ART, "--ckpt_path=best"]
    main([*paint, "--data.predict=my.jpg"])
    with Image.open(RUN / "predictions/my.png") as image:
        assert image.size == (37, 22)
    with np.load(RUN / "predictions/my.npz") as arrays:
        assert arrays["theta"].shape == (1, 3 * 37 * 22)
        assert arrays["losses"].shape == (1, 11)
    Path("mine").mkdir()
    for name, mode in {"a.png": "L", "b.png": "RGBA"}.items():
        noise(40, 60, mode).save(f"mine/{name}")
    main([*paint, "--data.predict=mine", "--data.predict_size=16", "--predictions.folder=painted"])
    assert sorted(path.name for path in Path("painted").iterdir()) == ["a.npz", "a.png", "b.npz", "b.png"]
    with Image.open("painted/a.png") as image:
        assert image.size == (16, 24)
    own = Path("mine/a.png").read_bytes()
    assert "predictions.folder is mine" in fails(*paint, "--data.predict=mine", "--predictions.folder=mine")
    assert "predictions.folder is mine" in fails(*paint, "--data.predict=mine/a.png", "--predictions.folder=mine")
    assert Path("mine/a.png").read_bytes() == own
    Path("text.jpg").write_text("no image")
    assert "text.jpg is not an image" in fails(*paint, "--data.predict=text.jpg")
    assert "nowhere.jpg is not there" in fails(*paint, "--data.predict=nowhere.jpg")
    Path("empty").mkdir()
    assert "data.predict is empty, which holds no picture" in fails(*paint, "--data.predict=empty")
