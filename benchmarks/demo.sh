#!/usr/bin/env bash
# The main job, end to end: archive -> shards -> DALI -> a few DINO steps. Called by `make demo`.
set -euo pipefail
bin=${BIN:?} demo=${DEMO:?} raw=${RAW:-} steps=${STEPS:-12}

mkdir -p "$demo"
# The demo starts over each time; only what an earlier demo wrote is removed.
rm -rf "$demo/shards" "$demo/run" "$demo/montage.png"
if [ -z "$raw" ]; then
    rm -rf "$demo/raw"
    echo "== 1/4  a phantom archive (DICOM and NIfTI)"
    "$bin/ingest" demo-archive "$demo/raw"
    raw=$demo/raw
else
    echo "== 1/4  your archive: $raw"
fi

echo "== 2/4  ingest build-shards"
"$bin/ingest" build-shards "$raw" "$demo/shards" --source demo --shard-mib 8 --workers 1
echo "== 3/4  ingest verify, and a montage to look at"
"$bin/ingest" verify "$demo/shards"
"$bin/ingest" inspect "$demo/shards" --png "$demo/montage.png"
echo "== 4/4  coralbay pretrain (preset tiny, $steps steps)"
"$bin/coralbay" pretrain --shards "$demo/shards" --run "$demo/run" --preset tiny --steps "$steps"

echo
echo "Made under $demo:"
for made in shards shards/report.html montage.png run/loss.png run/metrics.jsonl; do
    [ -e "$demo/$made" ] || { echo "demo: $demo/$made is missing" >&2; exit 1; }
    echo "  $demo/$made"
done
checkpoint=$(ls "$demo"/run/checkpoint-*.pt | tail -n 1)
echo "  $checkpoint"
echo "Go on with: $bin/coralbay resume $demo/run"
