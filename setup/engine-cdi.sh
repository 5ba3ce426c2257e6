#!/usr/bin/env bash
# Fetches a Docker Engine that knows CDI (25 or newer) into .cache/engine-cdi/bin, beside the system's own engine,
# for the tests of CDI injection. Nothing is installed or started. Uses this machine's own Debian mirror.
# Usage: setup/engine-cdi.sh [FOLDER]      (needs no root; ends at once if the engine is there)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-${GPUSPAWNER_CDI_ENGINE_DIR:-.cache/engine-cdi}}
names="dockerd docker-proxy containerd containerd-shim-runc-v2"

major() { "$1" --version 2>/dev/null | sed -n 's/^Docker version \([0-9]*\)\..*/\1/p'; }
stop() { printf '✗ CDI engine: %s\n  → %s\n' "$1" "$2" >&2; exit 1; }

if [ "$(major "$folder/bin/dockerd" || true)" ]; then exit 0; fi
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin"

own=$(PATH=$PATH:/usr/sbin command -v dockerd || true)
if [ -n "$own" ] && [ "$(major "$own")" -ge 25 ] 2>/dev/null; then
  # the system's own engine is new enough: its programs serve
  for name in $names; do
    path=$(PATH=$PATH:/usr/sbin:/usr/libexec/docker command -v "$name") || stop "$name is missing" "reinstall Docker Engine"
    ln -s "$path" "$work/bin/$name"
  done
else
  command -v apt-get >/dev/null || stop "there is no apt here" \
    "unpack dockerd and containerd of Docker Engine 25 or newer into $folder/bin"
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  mirror() {
    apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
      awk -v name="$codename" '$1 == "Debian" && $2 == name {print $3; exit}'
  }
  uri=$(mirror)
  if [ -z "$uri" ]; then apt-get -qq update || true; uri=$(mirror); fi
  [ -n "$uri" ] || stop "apt knows no mirror of Debian here" \
    "unpack dockerd and containerd of Docker Engine 25 or newer into $folder/bin"
  mkdir -p "$work/lists/partial" "$work/debs" "$work/root"
  # sid has the newest engine; these programs need nothing newer than glibc 2.34
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri sid main" >"$work/sources.list"
  options=(-o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
           -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work" -o "APT::Sandbox::User=$(id -un)")
  apt-get "${options[@]}" -qq update || stop "the list of packages could not be fetched" "see that apt-get update works"
  (cd "$work/debs" && apt-get "${options[@]}" -qq download docker.io containerd) ||
    stop "the packages could not be fetched" "see that apt-get download works"
  for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/root"; done
  for name in $names; do
    path=$(find "$work/root" -type f -name "$name" -path '*bin/*' -print -quit)
    [ -n "$path" ] || stop "the packages hold no $name" "report this: the packaging has changed"
    mv "$path" "$work/bin/"
  done
fi
mkdir -p "$folder"; rm -rf "$folder/bin"; mv "$work/bin" "$folder/bin"
"$folder/bin/dockerd" --version
