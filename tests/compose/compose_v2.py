"""Compose v2 where there is none: Debian 12 has 1.29, its successor has v2 as one static program."""

import hashlib
import pathlib
import subprocess
import tempfile
import urllib.error
import urllib.request

PACKAGE = "pool/main/d/docker-compose/docker-compose_2.26.1-4_amd64.deb"
SHA256 = "47681197cb2b1ab88206b42a1a92fc75f50d9530a6322d03494a473eed0408ea"
PROGRAM = "usr/libexec/docker/cli-plugins/docker-compose"
DEFAULT_MIRROR = "http://deb.debian.org/debian"


def _mirror():
    """The one that this machine's apt takes its main archive from."""
    try:
        shown = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)",
             "Created-By: Packages"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return DEFAULT_MIRROR
    found = [line.split()[0] for line in shown.splitlines() if line.endswith(" bookworm")]
    return (found or [DEFAULT_MIRROR])[0].rstrip("/")


def fetch(directory):
    """Command of Compose v2, kept in DIRECTORY; None with a reason printed where it cannot be had."""
    program = pathlib.Path(directory) / PROGRAM
    if not program.exists():
        try:
            with urllib.request.urlopen(f"{_mirror()}/{PACKAGE}", timeout=60) as answer:
                package = answer.read()
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            print(f"Compose v2 cannot be had here: {error}", flush=True)
            return None
        found = hashlib.sha256(package).hexdigest()
        assert found == SHA256, f"{PACKAGE}: sha256 {found}, expected {SHA256}"
        with tempfile.NamedTemporaryFile(suffix=".deb") as file:
            file.write(package)
            file.flush()
            subprocess.run(["dpkg-deb", "-x", file.name, str(directory)], check=True)
    done = subprocess.run([str(program), "version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"Compose v2 does not run here: {done.stderr}", flush=True)
        return None
    return [str(program)]
