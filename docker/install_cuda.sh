#!/usr/bin/env bash
# install_cuda.sh none|wheels: what the build stage compiles CUDA code with.
#   none    what the base image has: with nvcc the trunk gets its CUDA backend, without it does not
#   wheels  the packages of cuda-wheels.txt, checked by their digests, as /usr/local/cuda
# A proxy that signs with a certificate of its own: docker build --secret id=certificates,src=FILE.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
case ${1-} in
  none) exit 0 ;;
  wheels) ;;
  *) printf 'CUDA=%s: expected none or wheels\n' "${1-}" >&2; exit 1 ;;
esac
[[ ! -e /usr/local/cuda ]] || { printf 'CUDA=wheels: the base image has a /usr/local/cuda\n' >&2; exit 1; }
[[ ! -f /run/secrets/certificates ]] || export PIP_CERT=/run/secrets/certificates
apt-get -q update
DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends python3-pip
PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --require-hashes --only-binary :all: --target /opt/cuda \
  --requirement "$here/cuda-wheels.txt"
ln -s lib /opt/cuda/nvidia/cu13/lib64  # where CMake looks
ln -s /opt/cuda/nvidia/cu13 /usr/local/cuda
/usr/local/cuda/bin/nvcc --version
