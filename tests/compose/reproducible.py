"""Builds both runtime images twice and compares every file: bytes, mode, owner, time, link.

Usage: reproducible.py DOCKER SOURCE. By hand, since the second build compiles everything anew. ccache stays
in between both times: it makes paths relative, and those are in the programs.
What is compared is the images' files. Two things are not in our hands: Debian's packages may change
between builds (the SBOM then names the difference), and old BuildKits put the hour of the build into
the image's configuration, and so into its id.
"""

import hashlib
import os
import sys
import time

from engine import PREFIX, Engine
from image_checks import IMAGES

# Made by the engine when a container is created.
OF_THE_ENGINE = {".dockerenv", "dev", "etc", "proc", "sys"}
ENGINE_FILES = {"etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"}


def facts(engine, image):
    found = {}
    for path, (entry, data) in engine.files(image).items():
        if path in OF_THE_ENGINE | ENGINE_FILES or path.startswith(("dev/", "proc/", "sys/")):
            continue
        what = entry.linkname or hashlib.sha256(data).hexdigest()
        # Old BuildKits stamp a directory anew when two COPY put something into it.
        time_s = None if entry.isdir() else int(entry.mtime)
        found[path] = (oct(entry.mode), entry.uid, entry.gid, time_s, what)
    return found


def build(engine, source, name, tag, *options):
    begin = time.monotonic()
    engine.run(
        "build", "--network=host", *options, "-t", f"{name}:{tag}",
        "-f", f"{source}/docker/{name.removeprefix('banyan-')}.Dockerfile", source,
    )  # fmt: skip
    print(f"{name}:{tag} built in {time.monotonic() - begin:.0f} s", flush=True)
    return facts(engine, f"{name}:{tag}")


def main():
    docker, source = sys.argv[1:]
    engine = Engine(docker, [])
    tag = f"{PREFIX}{os.getpid()}"
    different = 0
    try:
        first = {name: build(engine, source, name, tag) for name in IMAGES}
        fresh = ["--build-arg=CCACHE_RECACHE=1"]
        for name in IMAGES:
            # The stage that compiles is the same in both: once is enough.
            no_cache = ["--no-cache"] if name == IMAGES[0] else []
            second = build(engine, source, name, tag, *fresh, *no_cache)
            assert any(path.endswith(name) for path in second), sorted(second)
            for path in sorted(set(first[name]) | set(second)):
                one, other = first[name].get(path), second.get(path)
                if one != other:
                    different += 1
                    print(f"{name}: {path}: {one} {other}")
            print(f"{name}: {len(second)} files compared", flush=True)
    finally:
        engine.remove_project(tag)
    print(f"{different} files differ")
    sys.exit(different != 0)


if __name__ == "__main__":
    main()
