#!/usr/bin/env bash
# Makes the environment of one peer: make_env.sh FOLDER NAME PYTHON
#
# What FOLDER/base has (torch, numpy) is seen by all others but zarr's, so that it lies on the disk
# once. Everything else is named with its version in env/NAME.txt and installed without dependencies:
# left to themselves some of them pull torchvision, for which there is no CPU build, and 6 GB of CUDA.
set -euo pipefail
folder=$1 name=$2 python=$3
here=$(cd "$(dirname "$0")" && pwd)
pip=("$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check)

if [ "$name" = zarr ]; then
    for newer in python3.13 python3.12 "$HOME"/.pyenv/versions/3.1[23]*/bin/python; do
        if "$newer" -c 'import venv' 2>/dev/null; then python=$newer; break; fi
    done
fi
rm -rf "${folder:?}/$name"
"$python" -m venv "$folder/$name"
if [ "$name" = base ]; then
    "${pip[@]}" -c "$here/../../constraints.txt" -r "$here/env/base.txt"
else
    if [ "$name" != zarr ]; then
        site=$("$folder/$name/bin/python" -c 'import site; print(site.getsitepackages()[0])')
        "$folder/base/bin/python" -c 'import site; print(site.getsitepackages()[0])' > "$site/base.pth"
    fi
    "${pip[@]}" --no-deps -r "$here/env/$name.txt"
fi
touch "$folder/$name/.ready"
