#!/usr/bin/env bash
# The first step of every verb: the virtual environment .venv with this project and its tools in it, by the
# machine's own pip settings. Made once; looked at again only when pyproject.toml or the Python changes.
# Prints what is missing and ends with status 1 where it can't go on.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s %s\n' "$1" "$2"; }
stop() { printf '\n✗ %s\n  → %s\n\n' "$1" "$2" >&2; exit 1; }

find_python() {
  local name
  for name in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$name" -c 'import sys; print(sys.executable)'
      return
    fi
  done
}

may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# What a person has to install by hand, all at once: without root or apt nothing is installed here.
list_missing() {
  local list="$1"
  if ! command -v dockerd >/dev/null && [ ! -x /usr/sbin/dockerd ] && [ -z "${DOCKER_HOST:-}" ]; then
    list="$list, Docker Engine (docker.io)"
  fi
  echo "$list"
}

apt_install() {
  apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" </dev/null >.cache/apt.log 2>&1
}

install_venv() {
  local python=$1 package
  package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
  may_install || stop "missing: $(list_missing "Python's venv module ($package)")" \
    "install this (on Debian or Ubuntu, as root: apt-get install $package docker.io), then run the command again"
  say … "installing $package"
  export DEBIAN_FRONTEND=noninteractive
  apt_install "$package" || { apt-get update -q </dev/null >/dev/null 2>&1; apt_install "$package"; } ||
    stop "$package could not be installed: $(grep -m 2 '^E:' .cache/apt.log | tr '\n' ' ')" \
      "see .cache/apt.log, and that apt-get works on this machine"
}

# pip's own words, cut to the packages' names: a moving line on a terminal, nothing elsewhere.
show_packages() {
  local line
  while IFS= read -r line; do
    echo "$line"
    case $line in Collecting\ *) [ ! -t 2 ] || printf '\r\033[K… Python packages: %s' "${line#Collecting }" >&2 ;; esac
  done
  [ ! -t 2 ] || printf '\r\033[K' >&2
}

# Where `make bundle` has been: its packages and no index.
from=()
if [ -n "${BUNDLE:-}" ]; then
  [ -f "$BUNDLE/hub/python" ] || stop "there is no bundle in $BUNDLE (it has no hub/python)" \
    "name in BUNDLE the folder that \`make bundle\` wrote, and copy all of it"
  from=(--no-index --find-links "$BUNDLE/hub" -c "$BUNDLE/hub/constraints.txt")
fi

python=$(find_python)
[ -n "$python" ] || stop "Python 3.11 or newer is missing (found: $(python3 --version 2>&1 || echo none))" \
  "install it (Debian 12, Ubuntu 24.04 or newer: apt-get install python3 python3-venv), or name it in PYTHON"

mkdir -p .cache
exec 9>.cache/venv.lock
flock 9
wanted="$(sha256sum <pyproject.toml) $("$python" --version)"
if [ -x .venv/bin/python ] && [ "$(cat .venv/.ready 2>/dev/null)" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
  exit 0
fi

if [ -n "${BUNDLE:-}" ]; then
  have=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  [ "$have" = "$(cat "$BUNDLE/hub/python")" ] || stop \
    "the bundle $BUNDLE is for Python $(cat "$BUNDLE/hub/python"), and this is Python $have" \
    "name that Python in PYTHON, or make the bundle where Python $have is"
fi
started=$SECONDS
"$python" -c 'import venv, ensurepip' 2>/dev/null || install_venv "$python"
say … "Python packages (the first time: about a minute)"
if ! .venv/bin/python -c '' 2>/dev/null; then
  rm -rf .venv
  "$python" -m venv .venv >.cache/venv.log 2>&1 ||
    stop "the virtual environment could not be made: $(tail -n 1 .cache/venv.log)" "see .cache/venv.log"
fi
.venv/bin/python -m pip install --progress-bar off "${from[@]}" -e '.[dev]' </dev/null 2>&1 | show_packages >.cache/pip.log ||
  stop "the Python packages could not be installed: $(grep -m 1 ERROR .cache/pip.log || tail -n 1 .cache/pip.log)" \
    "see .cache/pip.log; pip must reach a package index from here, and the disk must have room"
echo "$wanted" >.venv/.ready
say ✓ "Python packages in .venv ($((SECONDS - started)) s)"
