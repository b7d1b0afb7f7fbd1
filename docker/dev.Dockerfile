# A container in which everything can be built and tested, from a working tree mounted at /src:
#   docker build -f docker/dev.Dockerfile -t banyan-dev --network host .
#   docker run --rm -it -v "$PWD:/src" -v banyan-ccache:/root/.cache/ccache banyan-dev ./run.sh test
FROM debian:12-slim
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
RUN --mount=type=bind,source=run.sh,target=/src/run.sh \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean; \
    packages=$(./run.sh packages build; ./run.sh packages test); \
    apt-get -q update; \
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
      ca-certificates gdb git $packages
CMD ["/bin/bash"]
LABEL org.opencontainers.image.title="banyan-dev" \
      org.opencontainers.image.description="Debian 12 with all that Banyan is built and tested with" \
      org.opencontainers.image.licenses="Apache-2.0"
