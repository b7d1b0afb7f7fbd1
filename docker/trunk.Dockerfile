# banyan-trunk as an image: docker build -f docker/trunk.Dockerfile --network host .
# BuildKit only. The stage `build` is the same, byte by byte, in expert.Dockerfile: it runs once for both.

# Debian 12, or what has its packages. If it has nvcc, the trunk gets its CUDA backend; CUDA=wheels brings nvcc from PyPI.
ARG BASE=debian:12-slim
FROM ${BASE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
RUN --mount=type=bind,source=run.sh,target=/src/run.sh \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean; \
    packages=$(./run.sh packages build); \
    apt-get -q update; \
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
      ccache python3 $packages
ARG CUDA=none
RUN --mount=type=bind,source=docker/install_cuda.sh,target=/src/docker/install_cuda.sh \
    --mount=type=bind,source=docker/cuda-wheels.txt,target=/src/docker/cuda-wheels.txt \
    --mount=type=secret,id=certificates \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    --mount=type=cache,target=/root/.cache/pip \
    docker/install_cuda.sh "$CUDA"
COPY CMakeLists.txt CMakePresets.json run.sh ./
COPY cmake cmake
COPY proto proto
COPY common common
COPY docs docs
COPY services services
# Any value: compile everything anew (tests/compose/reproducible.py).
ARG CCACHE_RECACHE
# Such as 90-real, for a quick build; default: every generation that there is (cmake/Cuda.cmake).
ARG CUDAARCHS
RUN --mount=type=cache,target=/root/.cache/ccache ./run.sh build
COPY LICENSE NOTICE ./
COPY docker docker
ARG SOURCE_DATE_EPOCH=0
RUN docker/assemble.sh build/release/bin /image
# end of the stage that both images share

FROM scratch
COPY --from=build /image/base /
COPY --from=build /image/banyan-trunk /
USER 10001:10001
WORKDIR /var/lib/banyan
EXPOSE 50051 9101
ENTRYPOINT ["/usr/bin/banyan-trunk"]
CMD ["--help"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="banyan-trunk" \
      org.opencontainers.image.description="Qwen3-Next behind gRPC: everything but the routed experts" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0" \
      io.banyan.sbom="/usr/share/doc/banyan/sbom.spdx.json"
