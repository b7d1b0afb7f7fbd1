"""A trunk and two experts answer a chat within the sandbox of their units (sandboxed.py), and the
sandbox does refuse what it should.

Usage: sandbox_test.py BIN_DIR MODEL UNITS_DIR SOURCE_DIR
"""

import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
FORBIDDEN = """
import errno, mmap, os, socket
def refused(what, call):
    try:
        call()
    except OSError as error:
        assert error.errno == errno.EPERM, (what, error)
    else:
        raise AssertionError(what + " was allowed")
refused("a packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
refused("a netlink socket", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
refused("writable and executable memory", lambda: mmap.mmap(-1, 4096, prot=7))
refused("chroot", lambda: os.chroot("/"))
refused("nice", lambda: os.nice(1))
socket.socket(socket.AF_INET).close()
mmap.mmap(-1, 4096, prot=3).close()
"""
UNITS = {"banyan-trunk": "banyan-trunk.service", "banyan-expert": "banyan-expert@.service"}


def main():
    bin_dir, model, units, source = sys.argv[1:5]
    launcher = [sys.executable, f"{HERE}/sandboxed.py"]
    with tempfile.TemporaryDirectory() as folder:
        for program, unit in UNITS.items():
            subprocess.run(
                [*launcher, f"{units}/{unit}", sys.executable, "-c", FORBIDDEN], check=True
            )
            wrapper = f"{folder}/{program}"
            with open(wrapper, "w", encoding="utf-8") as file:
                command = " ".join([*launcher, f"'{units}/{unit}'", f"'{bin_dir}/{program}'"])
                file.write(f'#!/bin/sh\nexec {command} "$@"\n')
            os.chmod(wrapper, 0o755)
        integration = f"{source}/tests/integration/python"
        subprocess.run(
            [
                sys.executable,
                f"{integration}/with_cluster.py",
                f"--bin_dir={folder}",
                f"--model={model}",
                f"{integration}/reflection_test.py",
            ],
            check=True,
        )
    print("sandbox_test passed")


if __name__ == "__main__":
    main()
