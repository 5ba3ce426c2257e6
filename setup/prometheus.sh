#!/usr/bin/env bash
# Unpacks Debian's prometheus and promtool into .cache/prometheus/bin, for the tests of the alert rules and the dashboard.
# Nothing is installed or started. Uses this machine's own mirror.
# Usage: setup/prometheus.sh      (needs no root where the lists of packages are there; ends at once if it was done)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=.cache/prometheus
names="prometheus promtool"

stop() { printf '✗ prometheus: %s\n  → %s\n' "$1" "$2" >&2; exit 1; }

if "$folder/bin/promtool" --version >/dev/null 2>&1; then exit 0; fi
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin"
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
  for name in $names; do ln -s "$(command -v "$name")" "$work/bin/$name"; done
else
  command -v apt-get >/dev/null || stop "there is no apt here" "put prometheus and promtool on the PATH"
  fetch() { (cd "$work" && apt-get -qq -o "APT::Sandbox::User=$(id -un)" download prometheus); }
  # The package lists may be missing or old: they are fetched only if it fails without.
  fetch 2>/dev/null || { apt-get -qq update || true; fetch; } ||
    stop "the package could not be fetched" "see that apt-get download prometheus works"
  dpkg -x "$work"/prometheus_*.deb "$work/root"
  for name in $names; do mv "$work/root/usr/bin/$name" "$work/bin/"; done
fi
mkdir -p "$folder"; rm -rf "$folder/bin"; mv "$work/bin" "$folder/bin"
"$folder/bin/promtool" --version
