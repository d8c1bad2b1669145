#!/bin/sh
# Install p2pqg from the current folder into a virtual environment of its own: install.sh FOLDER
# VARIANT and TORCH_INDEX are those of the Containerfile; PIP_ARGS is passed on to pip.
set -eu
folder=$1
python3 -m venv "$folder"
install() { "$folder/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check $PIP_ARGS "$@"; }
PIP_ARGS=${PIP_ARGS:-}
if [ -n "${TORCH_INDEX:-}" ]; then
    install --constraint constraints.txt --index-url "$TORCH_INDEX" torch
fi
install --constraint constraints.txt .
if [ "${VARIANT:-cpu}" = cpu ]; then
    "$folder/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda and
"this torch comes with CUDA: pass TORCH_INDEX, the index of wheels without it, or VARIANT=cuda")'
fi
"$folder/bin/p2pqg" --version
# The image installs nothing any more.
"$folder/bin/pip" uninstall --quiet --yes pip
