"""What the runtime images are: small, labelled, and what their SBOM says."""

import hashlib
import json
import stat

IMAGES = ("banyan-trunk", "banyan-expert")
MAX_BYTES = 150_000_000
SBOM_LABEL = "io.banyan.sbom"


def check_sbom(name, files, path):
    """Every library is listed with its digest, every package with its licence and dpkg's record."""
    sbom = json.loads(files[path][1])
    assert sbom["spdxVersion"] == "SPDX-2.3", sbom["spdxVersion"]
    listed = {
        file["fileName"][2:]: checksum["checksumValue"]
        for file in sbom["files"]
        for checksum in file["checksums"]
        if checksum["algorithm"] == "SHA256"
    }
    libraries = {
        file: hashlib.sha256(data).hexdigest()
        for file, (entry, data) in files.items()
        if ".so" in file.rsplit("/", 1)[-1] and entry.isfile()
    }
    assert listed == libraries, f"{name}: SBOM and image differ: {set(listed) ^ set(libraries)}"
    assert any("libgrpc++.so" in file for file in libraries), sorted(libraries)
    shipped = [
        package
        for relation in sbom["relationships"]
        for package in sbom["packages"]
        if relation["relationshipType"] == "DEPENDS_ON"
        and relation["relatedSpdxElement"] == package["SPDXID"]
    ]
    for package in shipped:
        record = files[f"var/lib/dpkg/status.d/{package['name']}"][1].decode()
        assert f"\nVersion: {package['versionInfo']}\n" in record, package
        assert files[f"usr/share/doc/{package['name']}/copyright"][1], package
    print(f"{name}: SBOM of {len(shipped)} packages, {len(libraries)} libraries", flush=True)


def check_image(engine, name, image):
    """Returns the image's files."""
    data = engine.inspect(image)
    print(f"{image}: {data['Size'] / 1e6:.1f} MB", flush=True)
    assert data["Size"] <= MAX_BYTES, f"{image}: {data['Size']} bytes"
    labels, user = data["Config"]["Labels"], data["Config"]["User"]
    assert user == "10001:10001", f"{image}: user {user!r}"
    assert labels["org.opencontainers.image.title"] == name, labels
    version = engine.run("run", "--rm", "--network=none", image, "--version")
    assert version == f"{name} {labels['org.opencontainers.image.version']}", (version, labels)
    files = engine.files(image)
    for path, (entry, _) in files.items():
        assert not entry.mode & (stat.S_ISUID | stat.S_ISGID), f"{image}: {path} {entry.mode:o}"
    check_sbom(image, files, labels[SBOM_LABEL].lstrip("/"))
    return files


def check(engine, tag):
    for name in IMAGES:
        check_image(engine, name, f"{name}:{tag}")
