#!/bin/sh
# What a bare machine with a GPU, Python 3.12, JAX and torch still lacks, as wheels:
#   sh scripts/gpu_wheels.sh [FOLDER]        # default: .wheels, which git ignores
# On the machine, which needs no network for it:
#   pip install --no-index --no-deps --target /tmp/site FOLDER/*.whl; export PYTHONPATH=/tmp/site
set -eu
folder=${1:-.wheels}
mkdir -p "$folder"
platforms=""
for glibc in 2_28 2_27 2_24 2_17 2_5; do
    platforms="$platforms --platform manylinux_${glibc}_x86_64"
done
# shellcheck disable=SC2086  # one word each
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    $platforms --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$folder" \
    array_record==0.8.6 dm-tree==0.1.10 docstring-parser==0.18.0 googleapis-common-protos==1.76.0 \
    grain==0.2.18 immutabledict==4.3.1 importlib_resources==7.1.0 ml_collections==1.1.0 \
    portpicker==1.6.0 pycocotools==2.0.11 simple-parsing==0.1.9 simplejpeg==1.9.0 tensorboardX==2.6.5 \
    tensorflow-datasets==4.9.10 tensorflow-metadata==1.21.0 termcolor==3.3.0 toml==0.10.2
# only published as source; pure Python, so a wheel made anywhere will do
python3 -m pip wheel -q --no-deps -w "$folder" promise==2.3
du -k "$folder"/*.whl
du -sk "$folder"
