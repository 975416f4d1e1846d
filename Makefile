# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# CUDA major version of the DALI package: 12 or 13. It imports and runs on the CPU without a driver.
CUDA ?= 13
DEMO ?= runs/demo
# The demo writes its own phantom archive; RAW=/archive takes yours.
RAW ?=
# A reason to take the guard's counters as they are now; a benchmark alone.
RECORD ?=
SCENARIO ?=
STEPS ?= 12
PYTEST_ARGS ?=
CT_DATA ?= ../shared/data/ct
FUZZ_CASES ?= 12000

BIN := $(VENV)/bin
READY := $(VENV)/.ready-cuda$(CUDA)

.PHONY: help demo test lint format gpu-smoke bench-ingest bench-scale bench-scan bench-stream bench-guard bench-peers bench-augment bench bench-gpu figure golden golden-table fuzz soak memory clean
.DEFAULT_GOAL := help

help:
	@echo "make demo             phantom archive -> shards -> a few DINO steps (RAW=/archive: your own)"
	@echo "make test             linters, type checks, layer checks and all tests"
	@echo "make gpu-smoke        correctness and speed on a CUDA GPU; says so and ends where there is none"
	@echo "make bench-guard      exact counters of the hot path against the recorded ones (RECORD=\"why\")"
	@echo "make bench            ratios of all benchmarks, quickly, against the recorded (SCENARIO=stream: one)"
	@echo "make bench-gpu        all that needs a CUDA GPU, in nine minutes, against its aims"
	@echo "make figure           the README's figure, from the recorded results"
	@echo "make bench-ingest     speed of ingest against its limit and dcm2niix + MONAI (real CT)"
	@echo "make bench-scale      loading a simulated million series for planning: seconds and memory"
	@echo "make bench-scan       header scan against pydicom and gdcm.Scanner (real CT)"
	@echo "make bench-stream     streaming: wire efficiency, webdataset, DALI, litdata, first batch (real CT)"
	@echo "make bench-peers      the loader beside MONAI, torchio, nnU-Net, webdataset, litdata, zarr (real CT)"
	@echo "make bench-augment    views by our graph and by torch grid_sample; DEVICE=cuda on a GPU"
	@echo "make soak             builds killed at 50 random moments, each completed to the same bytes"
	@echo "make memory           peak memory of a worker on a series of 1,000 slices (under 2 GB)"
	@echo "make lint | format    the checks alone | rewrite the sources in the project's style"
	@echo "make golden           write the golden shard again (only with a new format version)"
	@echo "make golden-table     the verdict on every real file again (CT_DATA=/folder); look at the diff"
	@echo "make fuzz             12,000 damaged inputs through scan and build (FUZZ_CASES=n), and a record"
	@echo "make clean            remove the environment and runs/demo"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[cuda$(CUDA),dev]'
	@touch $@

demo: $(READY)
	@BIN=$(BIN) DEMO='$(DEMO)' RAW='$(RAW)' STEPS='$(STEPS)' bash benchmarks/demo.sh

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

memory: $(READY)
	CORALBAY_MEMORY=1 $(BIN)/python -m pytest tests/ingest/test_memory.py

soak: $(READY)
	CORALBAY_KILLS=50 $(BIN)/python -m pytest tests/ingest/test_faults.py -k random_moment

gpu-smoke: $(READY)
	$(BIN)/python -m benchmarks.gpu_smoke --out benchmarks/results/gpu-smoke.json

bench-scan: $(READY)
	$(BIN)/python -m benchmarks.ingest_scan --out benchmarks/results/ingest-scan.json

bench-scale: $(READY)
	$(BIN)/python -m benchmarks.scale --out benchmarks/results/scale.json

bench-ingest: $(READY)
	$(BIN)/python -m benchmarks.ingest --out benchmarks/results/ingest.json

bench-guard: $(READY)
	$(BIN)/python -m benchmarks.guard $(if $(RECORD),--record '$(RECORD)')

# Other loaders live in an environment of their own; they want other versions than ours.
PEERS := runs/peers
$(PEERS)/.ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -r benchmarks/peers/requirements.txt
	@touch $@

bench-stream: $(READY) $(PEERS)/.ready
	$(BIN)/python -m benchmarks.stream --peers $(PEERS)/bin/python --ct-data $(CT_DATA) \
	  --out benchmarks/results/stream.json

# The loader benchmark: one environment a peer, see benchmarks/peers/make_env.sh. 2.6 GB in all.
PEER_ENVS ?= runs/loader-peers
PEER_DATA ?= runs/loader
PEER_ARGS ?=
PEER_NAMES := torchio nnunet webdataset litdata zarr
$(PEER_ENVS)/base/.ready: benchmarks/peers/env/base.txt benchmarks/peers/make_env.sh
	benchmarks/peers/make_env.sh $(PEER_ENVS) base $(PYTHON)
$(PEER_ENVS)/%/.ready: benchmarks/peers/env/%.txt $(PEER_ENVS)/base/.ready
	benchmarks/peers/make_env.sh $(PEER_ENVS) $* $(PYTHON)

bench-peers: $(READY) $(PEER_NAMES:%=$(PEER_ENVS)/%/.ready)
	$(BIN)/python -m benchmarks.loader --envs $(PEER_ENVS) --ct-data $(CT_DATA) --folder $(PEER_DATA) \
	  --out benchmarks/results/loader.json $(PEER_ARGS)

DEVICE ?= cpu
bench-augment: $(READY)
	$(BIN)/python -m benchmarks.loader_augment --device $(DEVICE) --ct-data $(CT_DATA) \
	  --folder $(PEER_DATA) --out benchmarks/results/augment-$(DEVICE).json

bench: $(READY) $(PEERS)/.ready $(PEER_NAMES:%=$(PEER_ENVS)/%/.ready)
	$(BIN)/python -m benchmarks.bench $(SCENARIO) --peers $(PEERS)/bin/python --envs $(PEER_ENVS) \
	  --ct-data $(CT_DATA)
	$(BIN)/python -m benchmarks.figure

bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu --out benchmarks/results/gpu.json

figure: $(READY)
	$(BIN)/python -m benchmarks.figure

golden: $(READY)
	$(BIN)/python tests/golden/make_golden.py tests/golden/v1

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz.run --cases $(FUZZ_CASES) --record tests/fuzz/last_run.json

golden-table: $(READY)
	$(BIN)/python -m tests.ingest.make_golden_table $(CT_DATA)

clean:
	rm -rf $(VENV) $(DEMO)
