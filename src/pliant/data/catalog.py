"""The data sets that are known by name: their files, published hashes, mirrors and terms.

No hash below was computed here. Where each was published:

    MNIST, Fashion-MNIST    .gz: SHA-256 of TensorFlow Datasets, `url_checksums/mnist.txt` and `fashion_mnist.txt` (their MD5 in
                            torchvision, `datasets/mnist.py`, and in Fashion-MNIST's own README).
                            Unpacked: SHA-256 listed alike by several independent repositories, one of them beside the
                            .gz hashes above; they admit copies that were compressed anew (Debian's, for one).
    CIFAR-10, CIFAR-100     SHA-256 of Keras, `datasets/cifar10.py` and `cifar100.py` (MD5 on the authors' page).
    Tiny ImageNet           only an MD5 is published: Avalanche, `datasets/tiny_imagenet`, and others. MD5 tells a broken
                            file from a whole one, not a forged one.
    ImageNet                not to be downloaded without an account: by class folders, its counts are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pliant.base.deprecation import renamed_attributes

ImageFormat = Literal["idx", "cifar", "folders"]


@dataclass(frozen=True)
class File:
    """One file of a data set as it is published."""

    name: str
    hash: str  # algorithm:hexadecimal, of the file
    megabytes: float
    unpacked: str | None = None  # the same, of the content of a .gz


@renamed_attributes({"licence": "license"})
@dataclass(frozen=True)
class Entry:
    """A data set of the catalog."""

    form: ImageFormat
    train: int  # images
    test: int  # images
    classes: tuple[str, ...] | int  # their names where no file holds them, else their number
    license: str
    citation: str
    files: tuple[File, ...] = ()
    mirrors: tuple[str, ...] = ()  # a file's address is a mirror and its name
    folders: tuple[str, ...] = ()  # folder names that other libraries use
    how: str = ""  # how to get it, where it cannot be downloaded


def _idx(*hashes: tuple[str, str, float]) -> tuple[File, ...]:
    names: Sequence[str] = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        File(f"{name}-ubyte.gz", f"sha256:{packed}", megabytes, f"sha256:{unpacked}")
        for name, (packed, unpacked, megabytes) in zip(names, hashes, strict=True)
    )


_IMAGENET_TERMS = "ImageNet's terms: research, not commercial; not to be passed on"
_KRIZHEVSKY = "A. Krizhevsky, Learning multiple layers of features from tiny images, 2009"
_TORONTO = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")

CATALOG: dict[str, Entry] = {
    "mnist": Entry(
        form="idx",
        train=60_000,
        test=10_000,
        classes=tuple("0123456789"),
        license="CC BY-SA 3.0",
        citation="Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits, 1998",
        files=_idx(
            (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                9.9,
            ),
            (
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                0.03,
            ),
            (
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                1.6,
            ),
            (
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                0.005,
            ),
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://raw.githubusercontent.com/fgnt/mnist/master/",
        ),
        folders=("MNIST/raw",),
    ),
    "fashion-mnist": Entry(
        form="idx",
        train=60_000,
        test=10_000,
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        license="MIT",
        citation="H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017",
        files=_idx(
            (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                26.4,
            ),
            (
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                0.03,
            ),
            (
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                4.4,
            ),
            (
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                0.005,
            ),
        ),
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        folders=("FashionMNIST/raw",),
    ),
    "cifar-10": Entry(
        form="cifar",
        train=50_000,
        test=10_000,
        classes=10,
        license="none stated; from Tiny Images, which its authors withdrew",
        citation=_KRIZHEVSKY,
        files=(
            File(
                "cifar-10-python.tar.gz",
                "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                170.5,
            ),
        ),
        mirrors=(*_TORONTO, "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"),
    ),
    "cifar-100": Entry(
        form="cifar",
        train=50_000,
        test=10_000,
        classes=100,
        license="none stated; from Tiny Images, which its authors withdrew",
        citation=_KRIZHEVSKY,
        files=(
            File(
                "cifar-100-python.tar.gz",
                "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
                169.0,
            ),
        ),
        mirrors=_TORONTO,
    ),
    "tiny-imagenet": Entry(
        form="folders",
        train=100_000,
        test=10_000,
        classes=200,
        license=_IMAGENET_TERMS,
        citation="Y. Le, X. Yang, Tiny ImageNet visual recognition challenge, CS 231N, 2015",
        files=(File("tiny-imagenet-200.zip", "md5:90528d7ca1a48142e341f4ef8d21d0de", 248.1),),
        mirrors=("https://cs231n.stanford.edu/", "http://cs231n.stanford.edu/"),
        folders=("tiny-imagenet-200",),
    ),
    "imagenet": Entry(
        form="folders",
        train=1_281_167,
        test=50_000,
        classes=1_000,
        license=_IMAGENET_TERMS,
        citation="O. Russakovsky et al., ImageNet large scale visual recognition challenge, IJCV 115, 2015",
        how="ask for it at https://image-net.org/download, unpack ILSVRC2012_img_train.tar into one folder per class, "
        "and say where: pliant data add imagenet FOLDER",
    ),
}
