"""Class folders: what people mean is read, by-products are not, and everything else is named in one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from mmp.data.class_folders import ClassFolders, evaluation_folders, training_folders
from mmp.data.split_folders import split_folders
from mmp.errors import MmpError


def fill(folder: Path, files: Iterable[str]) -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def two_classes(folder: Path, *more: str) -> Path:
    return fill(folder, ["a/1.png", "b/1.png", *more])


def names(found: ClassFolders) -> list[str]:
    return [os.path.relpath(path, found.folder) for path, _ in found.samples]


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


# --- splits ---


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (("train", "test"), {"train": "train", "test": "test"}),
        (("Train", "Val", "Test"), {"train": "Train", "validation": "Val", "test": "Test"}),
        (("training", "valid", "testing"), {"train": "training", "validation": "valid", "test": "testing"}),
        (("TRAIN", "VALIDATION"), {"train": "TRAIN", "validation": "VALIDATION"}),
        (("train",), {"train": "train"}),
    ],
)
def test_splits_are_found_by_their_usual_names(
    present: tuple[str, ...], expected: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in present:
        two_classes(tmp_path / name)
    assert split_folders(tmp_path) == {split: tmp_path / name for split, name in expected.items()}
    assert not caplog.records


@pytest.mark.parametrize("pair", [("val", "validation"), ("Test", "testing"), ("train", "training")])
def test_two_folders_for_one_split_are_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    for name in {*pair, "train"}:
        two_classes(tmp_path / name)
    with pytest.raises(MmpError, match=f"the folders {pair[0]} and {pair[1]} can both be"):
        split_folders(tmp_path)


def test_a_folder_beside_the_splits_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train", "holdout", ".cache", "__MACOSX"):
        two_classes(tmp_path / name)
    split_folders(tmp_path)
    assert "not read: holdout; the splits are in train" in warnings_of(caplog)


def test_class_folders_without_a_folder_train_are_training_images(tmp_path: Path) -> None:
    two_classes(tmp_path, ".ipynb_checkpoints/1.png", "readme.txt")
    assert split_folders(tmp_path) == {"train": tmp_path}
    assert training_folders(tmp_path, 2).classes == ("a", "b")


def test_class_folders_that_look_like_splits_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path / "splits", [f"{split}/{name}/1.png" for split in ("fold0", "fold1") for name in ("cat", "dog")])
    split_folders(tmp_path / "splits")
    assert "each of its folders contains cat, dog; if these are the classes, arrange" in warnings_of(caplog)
    caplog.clear()
    fill(tmp_path / "classes", ["cat/images/1.png", "dog/images/1.png", "train_station/1.png", "tram_station/1.png"])
    split_folders(tmp_path / "classes")
    assert not warnings_of(caplog)


def test_a_root_that_is_itself_the_training_folder_names_what_is_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("train", "Test"):
        two_classes(tmp_path / name)
    assert split_folders(tmp_path / "train") == {"train": tmp_path / "train"}
    assert f"Test beside it is not read; set data.root={tmp_path}" in warnings_of(caplog)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["test/a/1.png", "val/a/1.png"], "no folder train beside val, test; put"),
        (["images/train/a/1.png"], r"no folder train, but .*images.train; set data\.root=.*images, or arrange"),
        (["a/train/1.png", "b/train/1.png"], r"no folder train, but .*a.train; .*arrange the images as"),
        (["1.png", "2.png", "3.jpg"], r"no class folders \(2 \.png, 1 \.jpg\); arrange"),
        ([".hidden/1.png"], "no class folders .it is empty.; arrange"),
        (["train.zip"], r"train\.zip: is packed; unpack it there"),
        (["train/a/1.png", "Test.tar.gz"], r"Test\.tar\.gz: is packed"),
        (["train/a/1.png", "valid.7z"], r"valid\.7z: is packed"),
        (["training_set/a/1.png", "test_set/a/1.png"], "training_set, test_set; rename them to train, test, or, if"),
        (["train2017/1.png", "val2017/1.png", "x/1.png"], "train2017, val2017; rename them to train, validation, or"),
        (["TrainImages/1.png", "TestImages/1.png"], r"if they are classes, move them into .*train$"),
    ],
)
def test_other_arrangements_are_explained(files: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(MmpError, match=message) as error:
        split_folders(fill(tmp_path, files))
    assert "\n" not in str(error.value)


def test_a_split_that_was_unpacked_may_have_its_archive_beside_it(tmp_path: Path) -> None:
    two_classes(tmp_path / "train")
    fill(tmp_path, ["train.zip"])
    assert split_folders(tmp_path) == {"train": tmp_path / "train"}


def test_a_wrong_root_is_explained(tmp_path: Path) -> None:
    two_classes(tmp_path / "my_images" / "train")
    fill(tmp_path, ["images.zip", "picture.png"])
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for root, message in (
        ("my_image", "no such folder; in .*: did you mean 'my_images'"),
        ("my_imagse/flowers", "no such folder; in .*: did you mean 'my_images'"),
        ("images.zip", "a file, not a folder; unpack it"),
        ("picture.png", "a file, not a folder; name the folder"),
        ("picture.png/train", "no such folder"),
        ("link", "no such folder"),
        ("my_images/train/a/none", "no such folder; .*there are no folders"),
    ):
        with pytest.raises(MmpError, match=rf"data\.root={tmp_path / root}: {message}"):
            split_folders(tmp_path / root)


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_classes(tmp_path / "train")
    scandir = os.scandir

    def denied(path: Path) -> os.DirEntry[str]:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(MmpError, match=r"train.b: cannot be read \(Permission denied\); allow reading it"):
        training_folders(tmp_path / "train", 2)


# --- classes ---


def test_samples_have_the_order_of_torchvision(tmp_path: Path) -> None:
    nested = ["10/2.png", "10/10.JPG", "10/sub/1.png", "10/sub-2/1.jpeg", "2/x.bmp", "B/z.webp", "a/deep/er/1.tiff"]
    fill(tmp_path, nested)
    theirs = ImageFolder(str(tmp_path))
    ours = training_folders(tmp_path, 4)
    assert ours.samples == theirs.samples
    assert ours.classes == tuple(theirs.classes) == ("10", "2", "B", "a")


def test_hidden_files_and_by_products_are_neither_classes_nor_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    by_products = [
        ".ipynb_checkpoints/1.png", "__MACOSX/a/._1.png", "@eaDir/1.png", "a/.DS_Store", "a/._1.png", "b/Thumbs.db",
        "b/thumbs.db", "b/@eaDir/1.png/SYNOPHOTO.png", "a/.ipynb_checkpoints/1-checkpoint.png", "b/Desktop.ini",
        "$RECYCLE.BIN/1.png", "lost+found/1.png", ".git/HEAD",
    ]  # fmt: skip
    found = training_folders(two_classes(tmp_path, *by_products), 2)
    assert found.classes == ("a", "b")
    assert names(found) == ["a/1.png", "b/1.png"]
    assert not caplog.records


def test_endings_of_all_formats_that_pillow_reads_are_images_in_capitals_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = ["a/1.JPG", "a/2.JPEG", "a/3.jfif", "a/4.gif", "a/5.jp2", "a/6.TIF", "a/7.tga", "b/1.avif", "b/2.pbm"]
    images += ["b/3.qoi", "b/4.mpo", "b/5.ico"]
    assert names(training_folders(fill(tmp_path, images), 2)) == images
    assert not caplog.records


def test_files_that_are_not_read_are_counted_by_ending(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = [f"a/{i}.HEIC" for i in range(3)] + ["a/sub/4.heic", "b/1.txt", "b/clip.mpeg", "b/label", "notes.txt"]
    found = training_folders(two_classes(tmp_path, *others), 2)
    assert names(found) == ["a/1.png", "b/1.png"]
    expected = "8 files were not read: 4 .heic, 2 .txt, 1 .mpeg, 1 without an ending; convert images"
    assert warnings_of(caplog).startswith(f"{tmp_path}: {expected}")
    assert len(caplog.records) == 1


def test_images_beside_the_class_folders_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training_folders(two_classes(tmp_path, "1.png", "2.jpg"), 2)
    assert warnings_of(caplog) == f"{tmp_path}: images in no class folder are not read: 2"


def test_a_pipe_with_the_name_of_an_image_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two_classes(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert names(training_folders(tmp_path, 2)) == ["a/1.png", "b/1.png"]
    assert "1 file was not read: 1 .png" in warnings_of(caplog)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/1.png"], "only one class folder, a, but a classifier needs two classes"),
        (["a/1.png", ".b/1.png", "__MACOSX/1.png"], "only one class folder, a, "),
        (["train/a/1.png", "train/b/1.png"], "train, which contains a, b; if these are the classes, move them to "),
        (["images/a/1.png", "images/b/1.png"], "images, which contains a, b; if these are the classes, move them to "),
        (["a/1.png", "b/1.png", "c/1.png"], r"data\.classes=2, but .* has 3 class folders \(a, b, c\); set"),
        (["1.png"], r"no class folders \(1 \.png\); put one folder of images per class there"),
        (["a/1.png", "b/1.heic", "b/2.heic"], r"no image in b \(2 \.heic\); add images"),
        (["a/1.png", "b/.hidden.png"], r"no image in b \(empty\); add images"),
        (["a/1.png", "b/images.zip"], r"no image in b \(1 \.zip\)"),
        (["a/1.png", "b.zip"], r"b\.zip: is packed; unpack it"),
        (["a.zip", "b.zip"], r"a\.zip: is packed; unpack it"),
        (["a/1.png", "b/1.png", "c.tar.gz", "c/1.png"], "data.classes=2, but .* 3 class folders"),
    ],
)
def test_wrong_class_folders_are_named(files: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(MmpError, match=message) as error:
        training_folders(fill(tmp_path, files), 2)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (("a", "b"), ("a", "c"), r"differ from .*train \(b, c\); use the same names"),
        (("Cat", "dog"), ("cat", "dog"), r"differ from .*train in capitals .*\(Cat, cat\)"),
        (("caf\u00e9", "x"), ("cafe\u0301", "x"), "in the form of accents"),
    ],
)
def test_a_split_with_other_classes_is_refused(
    train: tuple[str, ...], test: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    known = training_folders(fill(tmp_path / "train", [f"{name}/1.png" for name in train]), 2)
    fill(tmp_path / "test", [f"{name}/1.png" for name in test])
    with pytest.raises(MmpError, match=message):
        evaluation_folders(tmp_path / "test", known)


def test_a_split_without_images_of_a_class_keeps_the_labels_and_names_the_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = training_folders(fill(tmp_path / "train", ["a/1.png", "b/1.png", "c/1.png", "d/1.png"]), 4)
    found = evaluation_folders(fill(tmp_path / "val", ["b/1.png", "d/1.png", "c/1.txt"]), train)
    assert found.classes == ("a", "b", "c", "d")
    assert [label for _, label in found.samples] == [1, 3]
    assert "val: no images of 2 of 4 classes: a, c (1 .txt)" in warnings_of(caplog)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([".DS_Store"], "no images in class folders .it is empty.; add images, or remove the folder"),
        (["1.png", "2.png"], r"no images in class folders \(2 \.png\)"),
        (["a/1.heic"], r"no images in class folders \(1 \.heic\)"),
        (["a/1.png", "b.zip"], r"b\.zip: is packed; unpack it"),
    ],
)
def test_a_split_without_images_is_refused(files: list[str], message: str, tmp_path: Path) -> None:
    train = training_folders(two_classes(tmp_path / "train"), 2)
    with pytest.raises(MmpError, match=message):
        evaluation_folders(fill(tmp_path / "test", files), train)


# --- links ---


def test_a_link_that_leads_back_is_followed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = two_classes(tmp_path / "train", "a/sub/2.png")
    (root / "a" / "sub" / "loop").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(tmp_path)
    (root / "b" / "here").symlink_to(root)
    (root / "again").symlink_to(tmp_path)
    found = training_folders(root, 2)
    assert names(found) == ["a/1.png", "a/sub/2.png", "b/1.png"]
    assert "links to files or folders that are read already: 4, such as" in warnings_of(caplog)


def test_an_image_that_several_links_reach_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = two_classes(tmp_path / "train")
    fill(tmp_path / "elsewhere", ["x.png", "y.png"])
    (root / "a" / "0.png").symlink_to(root / "a" / "1.png")
    for name in ("2.png", "3.png"):
        (root / "a" / name).symlink_to(tmp_path / "elsewhere" / "x.png")
    (root / "b" / "all").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "also").symlink_to(tmp_path / "elsewhere")
    found = training_folders(root, 2)
    assert names(found) == ["a/1.png", "a/2.png", "b/1.png", "b/all/x.png", "b/all/y.png"]
    assert "read already: 3, such as" in warnings_of(caplog)


def test_folders_and_images_that_are_links_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two_classes(tmp_path / "elsewhere")
    fill(tmp_path / "root" / "train" / "b", ["2.png"])
    (tmp_path / "root" / "train" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "root" / "train" / "b" / "1.png").symlink_to(tmp_path / "elsewhere" / "b" / "1.png")
    (tmp_path / "root" / "test").symlink_to(tmp_path / "elsewhere")
    folders = split_folders(tmp_path / "root")
    assert set(folders) == {"train", "test"}
    assert names(training_folders(folders["train"], 2)) == ["a/1.png", "b/1.png", "b/2.png"]
    assert names(evaluation_folders(folders["test"], training_folders(folders["train"], 2))) == ["a/1.png", "b/1.png"]
    assert not caplog.records


@pytest.mark.parametrize("where", ["train", "train/c", "train/a/2.png", "train/a/sub/3.png", "test", "train/a/2"])
def test_a_link_to_nowhere_is_named(where: str, tmp_path: Path) -> None:
    if where != "train":
        two_classes(tmp_path / "train", "a/sub/2.png")
    (tmp_path / where).symlink_to(tmp_path / "gone")
    with pytest.raises(MmpError, match=f"{where}: the link to .*gone leads nowhere .*; restore the target or remove"):
        training_folders(split_folders(tmp_path)["train"], 2)


@pytest.mark.parametrize("where", ["train", "val", "train/c", "train/a/x.png", "train/a/x"])
def test_a_link_to_itself_is_named(where: str, tmp_path: Path) -> None:
    if where != "train":
        two_classes(tmp_path / "train")
    link = tmp_path / where
    link.symlink_to(link.name)
    with pytest.raises(MmpError, match=rf"{where}: the link to {link.name} leads nowhere \(Too many levels"):
        training_folders(split_folders(tmp_path)["train"], 2)


def test_links_beside_the_splits_may_lead_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two_classes(tmp_path / "train")
    (tmp_path / "latest").symlink_to("latest")
    (tmp_path / "backup").symlink_to(tmp_path / "gone")
    assert split_folders(tmp_path) == {"train": tmp_path / "train"}
    assert not caplog.records


# --- names that are not UTF-8 ---


def test_names_that_are_not_utf8_are_read_and_shown_as_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in (b"caf\xe9", b"th\xe9"):
        fill(tmp_path / os.fsdecode(folder), map(os.fsdecode, (b"\xfc.png", b"2.\xe4bc")))
    found = training_folders(tmp_path, 2)
    assert found.classes == (r"caf\xe9", r"th\xe9")
    assert [os.fsencode(Path(path).name) for path, _ in found.samples] == [b"\xfc.png"] * 2
    assert all(Path(path).exists() for path, _ in found.samples)
    assert r"2 .\xe4bc" in warnings_of(caplog)
    with pytest.raises(MmpError) as error:
        training_folders(tmp_path / os.fsdecode(b"caf\xe9"), 2)
    str(error.value).encode()
