# Shared by the scripts here: where things are, and how they speak. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROOT=$PWD
VENV=${GENIE_VENV:-$ROOT/.venv}
CACHE=${GENIE_CACHE:-$HOME/.cache/genie}
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }

# die WHAT HAPPENED / WHAT TO DO
die() {
  printf '\033[31mfailed:\033[0m %s\n  try: %s\n' "$1" "$2" >&2
  exit 1
}

# The first Python >= 3.10, or the one that PYTHON names.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10 python3.13 python3.14}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  die "no Python >= 3.10 (looked for ${PYTHON:-python3, python3.10 .. python3.14})" \
    "install one, or name it: PYTHON=/path/to/python3 make build"
}

# A uv: the one on PATH, or one installed by pip into the cache.
find_uv() {
  if command -v uv >/dev/null; then command -v uv; return; fi
  if [ -x "$CACHE/boot/bin/uv" ]; then echo "$CACHE/boot/bin/uv"; return; fi
  local python
  python=$(find_python)
  say "installing uv into $CACHE/boot (once)"
  if "$python" -m venv "$CACHE/boot" >/dev/null 2>&1; then
    "$CACHE/boot/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r .ci/requirements-uv.txt >&2 ||
      die "pip could not install uv" "check the network or pip's settings (PIP_INDEX_URL, PIP_FIND_LINKS)"
  else
    # Debian's Python without python3-venv still has pip, perhaps.
    rm -rf "$CACHE/boot"
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes --prefix "$CACHE/boot" -r .ci/requirements-uv.txt >&2 ||
      die "$python has neither venv nor pip" "install them (Debian: apt-get install python3-venv)"
  fi
  find "$CACHE/boot" -path '*bin/uv' -print -quit
}

# uv reads its own variables; people (and images) set pip's.
pip_settings_for_uv() {
  local index=${PIP_INDEX_URL:-} extra=${PIP_EXTRA_INDEX_URL:-}
  if [ -z "$index" ]; then index=$("$(find_python)" -m pip config get global.index-url 2>/dev/null || true); fi
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
  if [ -n "$extra" ]; then export UV_INDEX=${UV_INDEX:-$extra}; fi
  if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS// /,}}; fi
  if [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}; fi
  export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}
}

# stamp_of PATHS...: one hash over names and contents.
stamp_of() {
  find "$@" -type f -not -path '*/__pycache__/*' -not -name '*.so' -not -name '*.wasm' -print0 | LC_ALL=C sort -z |
    xargs -0 sha256sum | sha256sum | cut -d' ' -f1
}

# install_pinned NAME WHAT REQUIREMENTS [WITHOUT THEIR DEPENDENCIES]: into the environment, once for these files.
install_pinned() {
  local name=$1 what=$2 stamp uv
  shift 2
  "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$what are pinned for Python >= 3.11" "PYTHON=python3.11 make build"
  stamp=$(cat "$@" | sha256sum | cut -d' ' -f1)
  if [ "$(cat "$VENV/.genie-$name" 2>/dev/null)" = "$stamp" ]; then return; fi
  uv=$(find_uv)
  pip_settings_for_uv
  say "installing $what"
  local install=("$uv" pip install --quiet --require-hashes --python "$VENV/bin/python")
  "${install[@]}" -r "$1" && { [ $# -eq 1 ] || "${install[@]}" --no-deps -r "$2"; } ||
    die "$what could not be installed" "check the network and pip's settings"
  echo "$stamp" >"$VENV/.genie-$name"
}
