"""Presets, the run record, and the refusal of data that a run cannot use."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shards.schema import Contract, Manifest, MustMatch, Recorded, Totals
from train.config import check_data, create_run, read_run, record_run
from train.errors import UsageError
from train.presets import PRESETS, configure


def manifest(trainable: int = 8, **must_match: object) -> Manifest:
    contract = Contract(
        must_match=MustMatch(**must_match),
        recorded=Recorded(resampler="antialias", body_crop=True, profile="balanced"),
    )
    return Manifest(
        format="coralbay-shards",
        format_version=1,
        generation=1,
        contract=contract,
        contract_sha256=contract.sha256,
        build_sha256="0" * 64,
        id_key_fingerprint="f",
        levels=["ct"],
        shards=[],
        files=[],
        totals=Totals(
            samples=trainable + 1,
            trainable=trainable,
            shard_bytes=1,
            voxels=1,
            files_in=1,
            files_used=1,
            files_refused=0,
            series_accepted=1,
            series_refused=0,
        ),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_complete_and_survives_the_run_folder(tmp_path: Path, name: str) -> None:
    config = configure(name, "s3://bucket/ct")
    assert config.preset == name
    assert config.recipe.name == name
    record = record_run(config, manifest())
    create_run(tmp_path / "run", record)
    assert read_run(tmp_path / "run") == record


def test_the_record_names_code_and_data(tmp_path: Path) -> None:
    create_run(tmp_path, record_run(configure("tiny", "x"), manifest()))
    found = json.loads((tmp_path / "config.json").read_text())
    # sha256 of no shards at all, from `printf '' | sha256sum`.
    assert found["generation_id"].startswith("e3b0c44298fc1c149afbf4c8996fb924")
    assert found["generation"] == 1
    assert found["coralbay_version"] == "0.1.0"
    assert found["contract"]["must_match"]["spacing_zyx_mm"] == [1.5, 1.5, 1.5]
    assert found["config"]["recipe"]["views"]["global_"]["size"] == 64
    assert set(found) >= {"git_commit", "torch_version"}


def test_flags_change_a_preset_and_none_leaves_it() -> None:
    config = configure("tiny", "x", batch_size=7, total_steps=None)
    assert config == replace(PRESETS["tiny"]("x"), batch_size=7)


@pytest.mark.parametrize(("wrong", "right"), [("tny", "tiny"), ("Small", "small"), ("bse", "base")])
def test_an_unknown_preset_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(UsageError, match=f"--preset {wrong}: no such preset.*{right!r}"):
        configure(wrong, "x")


@pytest.mark.parametrize("name", ["batch_size", "total_steps", "threads", "checkpoint_every"])
def test_values_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} 0: give 1 or more"):
        configure("tiny", "x", **{name: 0})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r["config"].update(sed=3), "sed"),
        (lambda r: r["config"].pop("batch_size"), "batch_size"),
        (lambda r: r["config"]["recipe"].update(prototypes="many"), "prototypes"),
        (lambda r: r.update(record_version=2), "record version 2"),
        (lambda r: r["config"].update(batch_size=0), "batch_size"),
    ],
)
def test_an_edited_record_is_refused_in_one_line(tmp_path: Path, edit, message: str) -> None:
    create_run(tmp_path, record_run(configure("tiny", "x"), manifest()))
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=message) as caught:
        read_run(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_record_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json"):
        read_run(tmp_path)


def test_a_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run there.*coralbay pretrain"):
        read_run(tmp_path / "absent")


@pytest.mark.parametrize(("seed", "text"), [(0, "already holds a run;"), (1, "another config")])
def test_a_run_folder_is_used_once(tmp_path: Path, seed: int, text: str) -> None:
    create_run(tmp_path, record_run(configure("tiny", "x", seed=0), manifest()))
    with pytest.raises(UsageError, match=f"{text}.*coralbay resume"):
        create_run(tmp_path, record_run(configure("tiny", "x", seed=seed), manifest()))


def test_an_unwritable_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        create_run(tmp_path / "file" / "run", record_run(configure("tiny", "x"), manifest()))


@pytest.mark.parametrize(
    ("must_match", "message"),
    [
        (
            {"spacing_zyx_mm": None},
            r"spacing_zyx_mm is native, .* build-shards --spacing-mm 1.5,1.5,1.5`",
        ),
        ({"spacing_zyx_mm": (3.0, 1.5, 1.5)}, "spacing_zyx_mm is 3.0,1.5,1.5"),
        ({"hu_range": (-1000, 1000)}, "hu_range is -1000,1000, .* needs -1024,3071"),
        ({"orientation": "RAS"}, "orientation is RAS"),
    ],
)
def test_shards_prepared_in_another_way_are_refused(must_match, message: str) -> None:
    with pytest.raises(UsageError, match=f"^s3://b/ct: its {message}") as caught:
        check_data(configure("tiny", "s3://b/ct"), manifest(**must_match), "s3://b/ct")
    assert "`ingest build-shards" in str(caught.value)


def test_a_batch_needs_as_many_volumes() -> None:
    config = configure("tiny", "x", batch_size=4)
    check_data(config, manifest(trainable=4), "x")
    with pytest.raises(UsageError, match="3 trainable volumes, fewer than the batch size 4"):
        check_data(config, manifest(trainable=3), "x")
