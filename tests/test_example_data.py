"""The folders of data that the paper's experiments read: both layouts, and what is said when they are wrong."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
CUBE = """8 6 0
0 0 0
1 0 0
1 1 0
0 1 0
0 0 1  # a remark
1 0 1
1 1 1
0 1 1

4 0 1 2 3
4 4 5 6 7
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
4 3 0 4 7 255 0 0
"""
ROOF = "OFF\n4 4 6\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    """Import a module of the examples by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def meshes(root: Path) -> Path:
    for name, text in (("cube", "OFF" + CUBE), ("roof", ROOF)):
        for part, count in (("train", 3), ("test", 2)):
            (root / name / part).mkdir(parents=True)
            for k in range(count):
                (root / name / part / f"{k}.off").write_text(text)
    return root


def pictures(root: Path) -> Path:
    for part, count in (("train", 3), ("val", 2)):
        for name, level, ending in (("bright", 200, "png"), ("dark", 20, "JPG")):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                noise = np.random.default_rng(k).integers(0, 50, (20, 30, 3))
                Image.fromarray((level + noise).astype(np.uint8)).save(root / part / name / f"{k}.{ending}")
            (root / part / name / "remarks.txt").write_text("no picture")
    return root


def test_meshes_with_polygons_remarks_and_counts_beside_the_keyword(example, tmp_path: Path) -> None:
    module: ModuleType = example("point_clouds")
    (tmp_path / "cube.off").write_text("OFF" + CUBE)
    vertices, faces = module.read_off(tmp_path / "cube.off")
    assert vertices.shape == (8, 3) and faces.shape == (12, 3)
    sides = vertices[faces]
    area = 0.5 * np.linalg.norm(np.cross(sides[:, 1] - sides[:, 0], sides[:, 2] - sides[:, 0]), axis=-1)
    assert np.allclose(area, 0.5)


def test_points_are_uniform_on_the_surface_and_in_the_unit_ball(example) -> None:
    module: ModuleType = example("point_clouds")
    square = np.array([[0.0, 0, 0], [3, 0, 0], [3, 1, 0], [0, 1, 0]])
    points = module.sample_surface(square, np.array([[0, 1, 2], [0, 2, 3]]), 4000, torch.Generator().manual_seed(0))
    assert points.shape == (4000, 3) and points[:, 2].abs().max() == 0
    assert points.norm(dim=-1).max().item() == pytest.approx(1.0)
    assert points.mean(0).abs().max() < 1e-5
    low, high = points[:, 0].min(), points[:, 0].max()
    quarters = torch.histc(points[:, 0], 4, low.item(), high.item())
    assert (quarters / 1000 - 1).abs().max() < 0.1


def test_outliers_are_the_share_that_was_asked_for(example) -> None:
    module: ModuleType = example("point_clouds")
    x = torch.full((5, 40, 3), 7.0)
    spoilt = module.with_outliers(x, 0.2, torch.Generator().manual_seed(0))
    moved = (spoilt != x).any(-1)
    assert (moved.sum(-1) == 8).all() and spoilt[moved].norm(dim=-1).max() <= 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("PLY\n", "begin with OFF"),
        ("OFF\n4 4 6\n0 0 0\n", "no complete OFF mesh"),
        ("OFF\n1 1 0\n0 0 0\n3 0 0 5\n", "vertices of the file"),
        ("OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 2\n", "area zero"),
    ],
)
def test_a_file_that_is_no_mesh_is_named(example, tmp_path: Path, text: str, said: str) -> None:
    bad = meshes(tmp_path) / "roof" / "test" / "1.off"
    bad.write_text(text)
    with pytest.raises(example("training").FolderError, match=said) as refused:
        example("point_clouds").cloud_folder(tmp_path, 16)
    assert str(bad) in str(refused.value)


def test_meshes_in_another_layout_are_refused(example, tmp_path: Path) -> None:
    read, refused = example("point_clouds").cloud_folder, example("training").FolderError
    with pytest.raises(refused, match="no such folder"):
        read(tmp_path / "nowhere", 16)
    with pytest.raises(refused, match="two classes or more"):
        read(tmp_path, 16)
    (meshes(tmp_path) / "tree" / "train").mkdir(parents=True)
    with pytest.raises(refused, match=r"CLASS/train/\*\.off .* no file tree/train"):
        read(tmp_path, 16)


def test_pictures_become_squares_of_values_up_to_one(example, tmp_path: Path) -> None:
    classes, train, test = example("pictures").picture_folder(pictures(tmp_path), 16)
    assert classes == ["bright", "dark"] and (len(train), len(test)) == (6, 4)
    for part in (train, test):
        for k in range(len(part)):
            x, label = part[k]
            assert x.shape == (3, 16, 16) and x.dtype == torch.float32
            assert (x.mean() > 0.5) == (label == 0) and x.max() <= 1


def test_pictures_in_another_layout_are_refused(example, tmp_path: Path) -> None:
    read, refused = example("pictures").picture_folder, example("training").FolderError
    with pytest.raises(refused, match="no such folder"):
        read(tmp_path / "nowhere", 16)
    with pytest.raises(refused, match="train/CLASS"):
        read(tmp_path, 16)
    (pictures(tmp_path) / "train" / "green").mkdir()
    with pytest.raises(refused, match="no picture in train/green"):
        read(tmp_path, 16)


@pytest.mark.parametrize(
    ("script", "make", "nodes"),
    [("paper_point_clouds", meshes, ["max", "welsch"]), ("paper_image_classification", pictures, ["L2 sphere", "welsch"])],
)
def test_experiment_on_a_folder(
    example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str, make, nodes
) -> None:
    (tmp_path / "data").mkdir()
    small = ["--points", "32"] if make is meshes else ["--size", "16"]
    plot = tmp_path / "plot.png"
    arguments = [
        "--quick",
        "--same-rate",
        "--data",
        str(make(tmp_path / "data")),
        "--plot",
        str(plot),
        *small,
        "--nodes",
        *nodes,
    ]
    module = example(script)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    module.main()
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith(nodes[1])]
    assert len(rows) == (4 if make is meshes else 6) and all(row.count("±") == 3 for row in rows)
    assert plot.stat().st_size > 5000


@pytest.mark.parametrize("script", ["paper_point_clouds", "paper_image_classification"])
def test_experiment_on_another_folder_says_what_was_expected(
    example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--quick", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"--data: .* must be laid out like"):
        example(script).main()


def test_a_broken_picture_is_named(example, tmp_path: Path) -> None:
    (pictures(tmp_path) / "val" / "dark" / "0.JPG").write_bytes(b"nothing")
    _, _, test = example("pictures").picture_folder(tmp_path, 16)
    with pytest.raises(example("training").FolderError, match=r"0\.JPG is no picture"):
        test[2]


def test_average_precision_is_that_of_scikit_learn(example) -> None:
    from sklearn.metrics import average_precision_score

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (60,), generator=generator)
    confidence = torch.randn(60, 4, generator=generator) + torch.nn.functional.one_hot(labels, 4)  # the fourth is nowhere
    expected = np.mean([average_precision_score(labels == k, confidence[:, k]) for k in range(3)])
    assert example("training").mean_precision(confidence, labels) == pytest.approx(expected, abs=1e-6)
