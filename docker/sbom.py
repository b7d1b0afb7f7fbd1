#!/usr/bin/python3
"""The software bill of materials of the runtime images, as SPDX 2.3 in JSON, on stdout.

Says which Debian packages the shared libraries come from (with the digest of every library) and
which ones the programs were compiled with, and what else is linked into a program. Standard library only; reads dpkg's data base.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import subprocess
import urllib.parse

FIELDS = ("Package", "Version", "Architecture", "source:Package", "source:Version", "Homepage")


def dpkg(package):
    shown = "\t".join(f"${{{field}}}" for field in FIELDS)
    line = subprocess.run(
        ["dpkg-query", "-W", f"-f={shown}\n", package], check=True, capture_output=True, text=True
    ).stdout.splitlines()[0]
    return dict(zip(FIELDS, line.split("\t")))


def debian_package(name):
    data = dpkg(name)
    version = urllib.parse.quote(data["Version"], safe="~")
    return {
        "SPDXID": f"SPDXRef-deb-{name.replace('+', '-plus')}",
        "name": name,
        "versionInfo": data["Version"],
        "supplier": "Organization: Debian",
        "downloadLocation": "NOASSERTION",
        "homepage": data["Homepage"] or "NOASSERTION",
        "sourceInfo": f"Debian source package {data['source:Package']} {data['source:Version']}",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",  # in full: /usr/share/doc/NAME/copyright in the image
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": f"pkg:deb/debian/{urllib.parse.quote(name, safe='')}@{version}"
                f"?arch={data['Architecture']}&distro=debian-12",
            }
        ],
    }


def linked_library(name, version):
    return {
        "SPDXID": f"SPDXRef-linked-{name}",
        "name": name,
        "versionInfo": version,
        "supplier": "Organization: NVIDIA",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",  # in full: /usr/share/doc/NAME in the image
        "copyrightText": "NOASSERTION",
    }


def library_files(root):
    for path in sorted(root.glob("usr/lib*/**/*.so*")):
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        name = path.relative_to(root).as_posix()
        yield {
            "SPDXID": f"SPDXRef-file-{hashlib.sha256(name.encode()).hexdigest()[:16]}",
            "fileName": f"./{name}",
            "checksums": [
                {"algorithm": "SHA1", "checksumValue": hashlib.sha1(data).hexdigest()},
                {"algorithm": "SHA256", "checksumValue": hashlib.sha256(data).hexdigest()},
            ],
            "licenseConcluded": "NOASSERTION",
            "copyrightText": "NOASSERTION",
        }


def relationship(one, kind, other):
    return {
        "spdxElementId": one,
        "relationshipType": kind,
        "relatedSpdxElement": other,
    }


def document(root, version, packages, build_packages, linked):
    banyan = {
        "SPDXID": "SPDXRef-banyan",
        "name": "banyan",
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "Apache-2.0",
        "licenseDeclared": "Apache-2.0",
        "copyrightText": "NOASSERTION",
    }
    shipped = [debian_package(name) for name in sorted(packages)]
    used = [debian_package(name) for name in sorted(set(build_packages) - set(packages))]
    static = [linked_library(*name.split("==")) for name in linked]
    files = list(library_files(root))
    relationships = [relationship("SPDXRef-DOCUMENT", "DESCRIBES", banyan["SPDXID"])]
    for package in shipped:
        relationships.append(relationship(banyan["SPDXID"], "DEPENDS_ON", package["SPDXID"]))
    for package in used:
        relationships.append(
            relationship(package["SPDXID"], "BUILD_DEPENDENCY_OF", banyan["SPDXID"])
        )
    for package in static:
        relationships.append(relationship(banyan["SPDXID"], "STATIC_LINK", package["SPDXID"]))
    for file in files:
        relationships.append(relationship("SPDXRef-DOCUMENT", "DESCRIBES", file["SPDXID"]))
    created = datetime.datetime.fromtimestamp(
        int(os.environ.get("SOURCE_DATE_EPOCH", "0")), datetime.timezone.utc
    )
    body = {
        "packages": [banyan, *shipped, *used, *static],
        "files": files,
        "relationships": relationships,
    }
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"banyan-{version}",
        "documentNamespace": f"https://spdx.org/spdxdocs/banyan-{version}-{digest}",
        "creationInfo": {
            "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: banyan-docker-sbom.py"],
        },
        **body,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, required=True, help="tree of the image")
    parser.add_argument("--version", required=True, help="of Banyan")
    parser.add_argument("--packages", nargs="+", required=True, help="whose files are in the image")
    parser.add_argument("--build_packages", nargs="+", required=True, help="compiled with these")
    parser.add_argument("--linked", nargs="*", default=[], help="name==version, static")
    options = parser.parse_args()
    spdx = document(
        options.root, options.version, options.packages, options.build_packages, options.linked
    )
    print(json.dumps(spdx, indent=1))


if __name__ == "__main__":
    main()
