# shellcheck shell=bash
# What the scripts here share. Sourced, from any folder; leaves the caller in the project's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The preset for this machine: with CUDA where a working GPU and nvcc 12 or newer are, else for the CPU alone.
machine_preset() {
  local nvcc version
  nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
  version=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\).*/\1/p') || true
  if test "${version:-0}" -ge 12 && nvidia-smi -L >/dev/null 2>&1; then
    echo cuda
  else
    echo release
  fi
}

# build PRESET [cmake --build options]: configures and builds. Standard output stays empty, what is said goes to stderr:
# a progress line on a terminal, elsewhere only what goes wrong.
build() {
  local preset=$1 log
  shift
  log=$(mktemp)
  if ! cmake --preset "$preset" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
  if test -t 2; then
    cmake --build --preset "$preset" "$@" >&2
  else
    cmake --build --preset "$preset" "$@" -- --quiet >&2
  fi
}
