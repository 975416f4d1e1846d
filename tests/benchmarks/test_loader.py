"""The loader benchmark on small volumes: its turns are real, and a wrong crop stops it."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import loader, loader_cases
from benchmarks.loader_cases import CASES, CODEC, DECODE, OURS, Case, taking_part
from benchmarks.loader_check import Volumes, WrongCropError, check_box
from benchmarks.loader_data import export_volumes
from benchmarks.stream_protocol import Subject
from shards.testing import write_dataset

N_VOLUMES = 4
WRONG = Path(__file__).with_name("wrong_crops.py")
REHEARSED = (OURS.name, DECODE.name, CODEC.name, "MONAI CacheDataset, one read")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    volumes = {}
    for number in range(N_VOLUMES):
        noise = rng.integers(-200, 200, (131, 130, 133), dtype=np.int16)
        noise[:, :, 120:] = -1024  # where nothing is, many places look alike
        volumes[f"v{number}"] = noise
    data = root / "1.5mm"
    (data / "shards").mkdir(parents=True)
    write_dataset(data / "shards", volumes)
    export_volumes(data)
    return root


def wrong(fault):
    command = (str(WRONG), "--fault", fault)
    return Case(loader="wrong", form="part", values="float32 HU", command=command)


def checked(folder, case, tmp_path):
    data = folder / "1.5mm"
    stored = Volumes(loader.volumes(data))
    with Subject(case.name, case.start(data, None, 1), {}, tmp_path / "log") as subject:
        return loader.check(stored, case, subject, tmp_path)


def test_crops_of_the_volumes_are_found(folder, tmp_path):
    assert checked(folder, wrong("none"), tmp_path) == loader.CHECKED_SETS * 10


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("one voxel", "lies in no volume"),
        ("mirrored", "lies in no volume"),
        ("half a HU", "not whole HU"),
        ("the same again", "the same one"),
        ("one too few", "wanted"),
    ],
)
def test_a_wrong_crop_is_seen(folder, tmp_path, fault, said):
    with pytest.raises(WrongCropError, match=said):
        checked(folder, wrong(fault), tmp_path)


def test_a_loader_is_held_to_the_place_it_names(folder, tmp_path):
    stored = Volumes(loader.volumes(folder / "1.5mm"))
    file = tmp_path / "box"
    crop = stored.by_key["v1"][3:10, 4:11, 5:60]
    box = {"file": str(file), "dtype": "int16", "shape": list(crop.shape), "key": "v1"}
    file.write_bytes(crop.tobytes())
    assert check_box(box | {"start_zyx": [3, 4, 5]}, stored) == ("v1", (3, 4, 5))
    with pytest.raises(WrongCropError, match="differs"):
        check_box(box | {"start_zyx": [3, 4, 6]}, stored)
    windowed = np.clip((crop.astype(np.float32) + 1000) / 2000, 0, 1).astype(np.float16)
    file.write_bytes(windowed.tobytes())
    assert check_box(box | {"start_zyx": [3, 4, 5], "dtype": "float16"}, stored)
    file.write_bytes((windowed + np.float16(0.002)).tobytes())
    with pytest.raises(WrongCropError, match="differs"):
        check_box(box | {"start_zyx": [3, 4, 5], "dtype": "float16"}, stored)


def test_rehearsal(folder, tmp_path, monkeypatch, capsys):
    """Ours and MONAI, once each: checked, timed, recorded."""
    few = tuple(case for case in CASES if case.name in REHEARSED)
    assert len(few) == len(REHEARSED)
    monkeypatch.setattr(loader_cases, "CASES", few)
    monkeypatch.setattr(loader, "WARM_S", 0.0)
    monkeypatch.setattr(loader, "MEASURE_S", 0.05)
    out = tmp_path / "loader.json"
    arguments = ["--runs", "1.5mm", "--rounds", "1", "--folder", str(folder), "--out", str(out)]
    code = loader.main(arguments)
    result = json.loads(out.read_text())
    assert result == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == (1 if result["missed"] else 0)
    run = result["runs"]["1.5mm"]
    assert list(run["cases"]) == [case.name for case in few]
    assert run["data"]["volumes"] == N_VOLUMES
    for name, boxes in run["checked_boxes"].items():
        assert boxes == (4 if name in (DECODE.name, CODEC.name) else 40)
    for row in run["cases"].values():
        assert row["sets_per_s"] > 0
        assert row["cpu_ms_per_set"] > 0
    assert run["cases"][OURS.name]["ours_over_it"] == 1.0
    assert set(run["gates"]) == {
        "MONAI CacheDataset, one read",
        "our decoder, part over bare codec, part",
    }
    assert result["machine"]["cores"]


def test_ratios_are_medians_of_rounds(monkeypatch):
    def turns(*speeds):
        return [{"sets_per_s": s, "cpu_ms_per_set": 1000 / s} for s in speeds]

    monkeypatch.setattr(loader, "GATES", {"webdataset + npy": 2.0})
    peer = next(case for case in CASES if case.loader == "webdataset + npy")
    found = loader.summarise(
        [OURS, peer], {OURS.name: turns(10.0, 20.0, 90.0), peer.name: turns(10.0, 5.0, 30.0)}
    )
    assert found["cases"][peer.name]["ours_over_it"] == 3.0  # of 1, 4 and 3
    assert found["cases"][peer.name]["ours_over_it_by_cpu_time"] == 3.0
    assert found["gates"] == {peer.name: {"gate": 2.0, "ratio": 3.0, "passed": True}}


def test_names_are_unlike_and_gates_have_their_loaders():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for loader_name in loader_cases.GATES:
        forms = {case.form for case in CASES if case.loader == loader_name}
        assert {"ordinary", "one read"} <= forms


def test_without_environments_those_in_ours_take_part(tmp_path):
    assert {case.env for case in taking_part(None, 1)} == {""}
    (tmp_path / "zarr").mkdir()
    (tmp_path / "zarr/.ready").touch()
    assert {case.env for case in taking_part(tmp_path, 1)} == {"", "zarr"}
