#!/bin/sh
# units_test.sh UNITS_DIR BIN_DIR: systemd itself reads the units, finds nothing wrong with them and
# counts how exposed a service is (0: sandboxed wholly, 10: not at all; limit in tenths).
set -eu

limit=13
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
cp -R "$1"/. "$folder"
# The programs that were built instead of those that are installed.
sed -i "s|/usr/local/bin/|$2/|" "$folder"/*.service
# An instance with the drop-in for it.
cp "$folder/banyan-expert@.service" "$folder/banyan-expert@0.service"
cd -- "$folder"

export SYSTEMD_UNIT_PATH="$folder:"
for unit in banyan.target banyan-trunk.service banyan-expert@0.service; do
  # Complaints do not change the exit code of every version.
  said=$(systemd-analyze verify --man=no "./$unit" 2>&1) || { echo "$unit: $said" >&2; exit 1; }
  [ -z "$said" ] || { echo "$unit: $said" >&2; exit 1; }
done
for unit in banyan-trunk.service banyan-expert@0.service; do
  systemd-analyze security --offline=true --threshold="$limit" --no-pager "./$unit" | tail -n 1
done >"$folder/exposure"
cat "$folder/exposure"
[ "$(grep -c 'exposure level.* OK' "$folder/exposure")" -eq 2 ]
# What is not in a unit is found: these checks see mistakes.
sed -i 's/^ProtectSystem=strict/ProtectSystm=strict/' banyan-trunk.service
[ -n "$(systemd-analyze verify --man=no ./banyan-trunk.service 2>&1)" ]
