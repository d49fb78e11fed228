#!/bin/sh
# The environments of the libraries that benchmarks compare with: peers.sh [FOLDER], .venv-peers unless given.
# neural-tangents needs an old JAX, SciPy and TensorFlow (2.7 GB); GPyTorch needs PyTorch. Benchmarks look for them in $PEERS.
# `tables` has this project too: FOLDER/tables/bin/python benchmarks/regression.py ...
set -eu
folder=${1:-.venv-peers}
python=${PYTHON:-python3}
mkdir -p "$folder"

make_environment() {
    name=$1
    shift
    if [ -e "$folder/$name/.ready" ]; then return; fi
    echo "Installing $* into $folder/$name ..."
    rm -rf "${folder:?}/$name"
    "$python" -m venv "$folder/$name"
    "$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    touch "$folder/$name/.ready"
}

make_environment nt neural-tangents==0.6.5 jax==0.5.3 jaxlib==0.5.3 scipy==1.13.1 mpmath==1.3.0
make_environment gpytorch torch==2.13.0 gpytorch==1.15.2 botorch==0.18.1
make_environment tables --editable "$(dirname "$0")/.." \
    torch==2.13.0 gpytorch==1.15.2 catboost==1.2.10 lightgbm==4.7.0 xrfm==0.4.5
