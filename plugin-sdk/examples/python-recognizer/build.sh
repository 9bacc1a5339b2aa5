#!/bin/sh
# Builds python_recognizer.wasm (or the file named as first argument).
# Needs componentize-py: `pip install componentize-py==0.25.1`, or its path in COMPONENTIZE_PY.
set -eu
out=$(realpath -m "${1:-$(dirname "$0")/python_recognizer.wasm}")
cd "$(dirname "$0")"
wit=$(mktemp -d)
trap 'rm -rf "$wit"' EXIT
cp wit/world.wit "$wit"
mkdir -p "$wit/deps"
cp -r ../../wit/v0.3 "$wit/deps/genie-plugin"
# Without WASI: what Python would ask of a system becomes a trap.
"${COMPONENTIZE_PY:-componentize-py}" -d "$wit" -w recognizer-without-clock \
    componentize app --stub-wasi -o "$out"
chmod go-w "$out"
