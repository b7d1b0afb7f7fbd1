"""Builds the trunk's image with CUDA from NVIDIA's wheels and checks what it is.

Usage: cuda_image.py DOCKER SOURCE [ARCHITECTURES] [CERTIFICATES]. By hand: it fetches 130 MB from PyPI and compiles for minutes.
ARCHITECTURES: such as 90-real; empty: all. CERTIFICATES: of a proxy that signs with its own.
Running it takes a GPU; without one the program has to say that it looked for one.
"""

import os
import sys
import time

import image_checks
from engine import PREFIX, Engine

NAME = "banyan-trunk"
SERVE = ["--model=/model", "--experts=127.0.0.1:1"]


def main():
    docker, source, architectures, certificates = [*sys.argv[1:], "", ""][:4]
    engine = Engine(docker, [])
    image = f"{NAME}:{PREFIX}{os.getpid()}"
    options = ["--build-arg=CUDA=wheels"]
    if architectures:
        options.append(f"--build-arg=CUDAARCHS={architectures}")
    if certificates:
        options.append(f"--secret=id=certificates,src={certificates}")
    begin = time.monotonic()
    engine.run(
        "build", "--network=host", *options, "-t", image, "-f", f"{source}/docker/trunk.Dockerfile", source
    )  # fmt: skip
    print(f"{image} built in {time.monotonic() - begin:.0f} s", flush=True)
    try:
        files = image_checks.check_image(engine, NAME, image)
        assert files["usr/share/doc/cuda-runtime/License.txt"][1], "no licence of the CUDA run-time library"
        try:
            model = f"--volume={os.path.abspath(source)}/deploy/models/demo:/model:ro"
            engine.run("run", "--rm", "--network=none", model, image, "--backend=cuda", *SERVE)
        except AssertionError as failure:
            said = str(failure).splitlines()[-1]
        else:
            raise AssertionError("it ran, without a GPU and without experts")
        assert "NVIDIA" in said, said
        print(said, flush=True)
    finally:
        engine.run("rmi", "-f", image)


if __name__ == "__main__":
    main()
