"""The GPU smoke script, rehearsed on the CPU."""

import json

import pytest
import torch

from benchmarks import gpu_smoke
from benchmarks.gpu_smoke import REHEARSAL

pytest.importorskip("nvidia.dali")


def test_rehearsal_runs_every_part_and_writes_its_json(tmp_path, capsys):
    out = tmp_path / "smoke.json"
    assert gpu_smoke.main(["--rehearse", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result["failures"] == {}
    assert result["machine"]["cpu_count"] >= 1
    assert result["machine"]["versions"]["torch"] == torch.__version__
    assert max(result["views"].values()) <= 1e-3
    assert result["poison"] == {"difference": 0.0, "batches": 2}
    assert result["h2d"]["pinned_gb_per_s"] > 0
    assert result["train_step"]["feature_size"] == REHEARSAL.recipe.feature_size
    assert result["loader"]["stages"]["graph"]["sets_per_s"] > 0


def test_a_failing_part_is_reported_and_fails_the_run(monkeypatch, tmp_path):
    def broken(dataset, size, device):
        raise RuntimeError("no such kernel")

    for name in ("compare_poisoned", "measure_copy", "measure_step", "measure_loader"):
        monkeypatch.setattr(gpu_smoke, name, lambda dataset, size, device: {})
    monkeypatch.setattr(gpu_smoke, "compare_views", broken)
    out = tmp_path / "smoke.json"
    assert gpu_smoke.main(["--rehearse", "--out", str(out)]) == 1
    result = json.loads(out.read_text())
    assert result["failures"] == {"views": "RuntimeError: no such kernel"}
    assert result["poison"] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu_smoke.main([]) == 0
    assert "no CUDA GPU" in capsys.readouterr().out
