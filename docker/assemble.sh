#!/usr/bin/env bash
# assemble.sh BIN_DIR OUT: the files of the runtime images, taken from the Debian this runs in.
#   OUT/base                         what both need: loader, shared libraries of the three programs and no
#                                    others, banyan (the health check), accounts, terminal descriptions,
#                                    licences, records of the Debian packages and the SBOM
#   OUT/banyan-trunk, banyan-expert  the program of that name in usr/bin
# Same sources and same Debian packages: same bytes. Times are SOURCE_DATE_EPOCH.
set -euo pipefail

bin=$1 out=$2
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
base=$out/base
export LC_ALL=C
umask 022

mkdir -p "$base"/{etc,model,proc,dev,sys,tmp,usr/{bin,lib,lib64},usr/share/doc/banyan,var/lib/dpkg/status.d,var/lib/banyan}
ln -s usr/bin usr/lib usr/lib64 "$base/"
chmod 1777 "$base/tmp"

# --- programs and their libraries --------------------------------------------------------------

for program in banyan banyan-trunk banyan-expert; do
  tree=$out/$program
  [[ $program != banyan ]] || tree=$base
  mkdir -p "$tree/usr/bin"
  strip --strip-unneeded -o "$tree/usr/bin/$program" "$bin/$program"
done

# "path-as-linked" of every library and of the loader.
libraries=$(ldd "$bin"/banyan{,-trunk,-expert} | grep -oE '(=> |^\s)/[^ ]+' | grep -oE '/[^ ]+' | sort -u)
packages=()
for library in $libraries; do
  target=$base/usr/${library#/}
  [[ $library != /usr/* ]] || target=$base$library
  mkdir -p "$(dirname "$target")"
  install -m 0644 "$(realpath "$library")" "$target"
  [[ $library != */ld-linux* ]] || chmod 0755 "$target"
  # dpkg may know the file by its name from before /lib became a link to /usr/lib.
  file=$(realpath "$library")
  owner=$(dpkg-query -S "$file" 2>/dev/null || dpkg-query -S "${file#/usr}")
  packages+=("${owner%%:*}")
done

# `banyan chat` in a terminal.
cp -R /lib/terminfo "$base/usr/lib/terminfo"
packages+=(ncurses-base base-files)
cp -L /etc/os-release "$base/etc/os-release"

# --- accounts and names ------------------------------------------------------------------------

printf '%s\n' 'root:x:0:0:root:/:/usr/sbin/nologin' \
  'banyan:x:10001:10001:Banyan:/var/lib/banyan:/usr/sbin/nologin' >"$base/etc/passwd"
printf '%s\n' 'root:x:0:' 'banyan:x:10001:' >"$base/etc/group"
printf 'hosts: files dns\n' >"$base/etc/nsswitch.conf"
chown 10001:10001 "$base/var/lib/banyan"

# --- where it all comes from -------------------------------------------------------------------

cp LICENSE NOTICE "$base/usr/share/doc/banyan/"
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
for package in "${packages[@]}"; do
  mkdir -p "$base/usr/share/doc/$package"
  cp -L "/usr/share/doc/$package/copyright" "$base/usr/share/doc/$package/"
  dpkg-query -s "$package" >"$base/var/lib/dpkg/status.d/$package"
done
# CUDA's run-time library is linked into banyan-trunk where nvcc was found.
linked=()
nvcc=$(sed -n 's|^BANYAN_NVCC:FILEPATH=\(/.*\)|\1|p' "$bin/../CMakeCache.txt")
if [[ -n $nvcc ]]; then
  linked=(--linked "cuda-runtime==$("$nvcc" --version | sed -n 's/.* V\([0-9.]*\)$/\1/p')")
  mkdir -p "$base/usr/share/doc/cuda-runtime"
  toolkit=$(dirname "$(dirname "$(realpath "$nvcc")")")
  for text in "$toolkit"/../../nvidia_cuda_runtime-*.dist-info/licenses/License.txt "$toolkit"/EULA.txt; do
    [[ ! -f $text ]] || cp "$text" "$base/usr/share/doc/cuda-runtime/"
  done
fi
version=$("$bin/banyan" --version)
mapfile -t build_packages < <("$here/../run.sh" packages build)
python3 "$here/sbom.py" --root "$base" --version "${version#banyan }" \
  --packages "${packages[@]}" --build_packages "${build_packages[@]}" "${linked[@]}" \
  >"$base/usr/share/doc/banyan/sbom.spdx.json"

find "$out" -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH:-0}" {} +
du -sh "$base" "$out"/banyan-*
