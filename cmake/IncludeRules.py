#!/usr/bin/env python3
"""Checks who includes whom. Usage: IncludeRules.py [ROOT]; --self_test tries the rules on planted violations.

Arrows ("may include"): services -> common -> proto; inside common and inside a service as the tables
below say. A file may always include its own folder. Each violation is one line: file:line, what is
included, which rule forbids it. Exit code 1 when there is one, 2 when the tree cannot be read.
"""

import os
import re
import sys
import tempfile

SOURCES = (".h", ".cc", ".cu", ".cuh", ".inc")
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')

# common/<folder> may include these other folders of common.
COMMON = {
    "base": set(),
    "cpu": set(),
    "tensor": {"base"},
    "quant": {"base", "tensor"},
    "io": {"base", "tensor", "quant"},
    "config": {"base", "tensor", "quant", "io"},
    "memory": {"base", "tensor", "quant", "io", "config"},
    "parallel": {"base", "tensor", "io"},
    "metrics": {"base", "tensor", "io"},
    "tokenizer": {"base", "tensor", "io"},
    "pool": {"base", "tensor", "quant", "io", "config", "parallel"},
    "plan": {"base", "tensor", "quant", "io", "config", "memory", "parallel", "pool"},
    "synth": {"base", "tensor", "quant", "io", "config", "parallel"},
    "rpc": {"base", "tensor", "quant", "io", "config", "parallel", "metrics"},
}

# services/<service>/<folder> may include these other folders (or single headers) of its service; files
# of its top folder (main, options) may include all. engine/step.h is plain data.
EXPERT = {
    "kernels": set(),
    "runtime": {"kernels"},
    "server": {"kernels", "runtime", "expert_options.h"},
}
_TRUNK_PARTS = {"ops", "routing", "sampling", "scheduler", "state", "experts", "model"}
TRUNK = {
    "ops": {"sampling/row_math.h"},
    "routing": {"ops"},
    "sampling": set(),
    "experts": {"routing"},
    "state": {"ops"},
    "scheduler": {"sampling", "state", "engine/step.h"},
    "model": {"ops", "routing", "state", "experts", "engine/step.h", "engine/forward_pass.h"},
    "engine": _TRUNK_PARTS,
    "server": _TRUNK_PARTS | {"engine", "trunk_options.h"},
}
CLIENT = {
    "terminal": set(),
    "chat": set(),
    "connection": {"terminal"},
    "load": {"connection", "terminal"},
    "overview": {"connection", "terminal"},
    "plan": {"terminal"},
    "supervisor": {"connection", "terminal"},
    "commands": {"chat", "connection", "load", "overview", "plan", "supervisor", "terminal"},
}
SERVICES = {"expert": EXPERT, "trunk": TRUNK, "client": CLIENT}

# Outside these, no file of common or of the two services sees gRPC or protobuf (the client does).
RPC_FOLDERS = (
    "common/rpc/",
    "services/client/",
    "services/expert/server/",
    "services/expert/main.cc",
    "services/trunk/server/",
    "services/trunk/experts/",
    "services/trunk/main.cc",
)
RPC_HEADERS = ("grpc/", "grpcpp/", "google/protobuf/", "proto/")

# Kernel files: the standard library, intrinsics, CUDA, Highway and these. The rest of trunk/ops is
# checked entries and launchers, which also know Status and the thread pool.
KERNEL_PROJECT = ("common/base/check.h", "common/cpu/", "common/tensor/", "common/quant/")
FORBIDDEN_IN_KERNELS = ("absl/", "nlohmann/", "fmt/", "spdlog/", "prometheus/", "CLI/")
LAUNCHER_PROJECT = KERNEL_PROJECT + (
    "common/base/status_macros.h",
    "common/base/strings.h",
    "common/parallel/",
    "common/plan/op_limits.h",
    "common/plan/op_scratch.h",
    "common/plan/device_arena.h",
    "common/plan/trunk_format.h",
)
FORBIDDEN_IN_LAUNCHERS = ("nlohmann/", "spdlog/", "prometheus/", "CLI/")


def folder_of(path):
    """('common', 'io') for common/io/x.h, ('services', 'trunk', 'engine') for services/trunk/engine/x.h."""
    parts = path.split("/")
    if parts[0] == "common" and len(parts) > 2:
        return ("common", parts[1])
    if parts[0] == "services" and len(parts) > 2:
        return ("services", parts[1], parts[2] if len(parts) > 3 else "")
    return (parts[0],)


def violation(path, target, quoted):
    """Why `path` may not include `target`, or None."""
    if target.startswith("spdlog/") and path != "common/base/logging.cc":
        return "only common/base/logging.cc includes spdlog"
    if path.startswith("services/expert/kernels/") or path.endswith((".cu", ".cuh")):
        if target.startswith(FORBIDDEN_IN_KERNELS + RPC_HEADERS):
            return "kernel files include only the standard library, check.h, cpu, tensor and quant"
        if quoted and target.startswith("common/") and not target.startswith(KERNEL_PROJECT):
            return "kernel files include of common only base/check.h, cpu, tensor and quant"
    elif path.startswith("services/trunk/ops/"):
        if target.startswith(FORBIDDEN_IN_LAUNCHERS + RPC_HEADERS):
            return "operations know no gRPC, protobuf, JSON, logging or metrics"
        if quoted and target.startswith("common/") and not target.startswith(LAUNCHER_PROJECT):
            return "operations include of common only base, cpu, tensor, quant, parallel and the sizes of plan"
    if target.startswith(RPC_HEADERS) and not path.startswith(RPC_FOLDERS):
        return "gRPC and protobuf are seen only by common/rpc, the servers, trunk/experts and the client"
    if not quoted:
        return None
    if target.startswith("tests/"):
        return "nothing outside tests includes tests"
    if "../" in target or target.startswith("./"):
        return "includes are relative to the root"

    source, found = folder_of(path), folder_of(target)
    if source[0] == "common":
        if found[0] == "services":
            return "common never includes services"
        if found[0] == "common" and found[1] != source[1]:
            allowed = COMMON.get(source[1])
            if allowed is None:
                return f"common/{source[1]} is not in the table of cmake/IncludeRules.py"
            if found[1] not in allowed:
                return f"common/{source[1]} may not include common/{found[1]}"
    if source[0] == "services" and found[0] == "services":
        if found[1] != source[1]:
            return "services never include each other"
        if source[2] != found[2] and source[2] != "":
            allowed = SERVICES.get(source[1], {}).get(source[2])
            if allowed is None:
                return f"services/{source[1]}/{source[2]} is not in the table of cmake/IncludeRules.py"
            inner = "/".join(target.split("/")[2:])
            if found[2] not in allowed and inner not in allowed:
                return f"{source[1]}/{source[2]} may not include {source[1]}/{found[2] or 'main or options'}"
    return None


def check(root):
    """All violations below root/common and root/services, as lines of text, and the number of files."""
    problems, num_files = [], 0
    for top in ("common", "services"):
        for folder, folders, files in os.walk(os.path.join(root, top)):
            folders.sort()
            for name in sorted(files):
                if not name.endswith(SOURCES):
                    continue
                num_files += 1
                full = os.path.join(folder, name)
                path = os.path.relpath(full, root)
                with open(full, encoding="utf-8") as lines:
                    for number, line in enumerate(lines, 1):
                        match = INCLUDE.match(line)
                        if not match:
                            continue
                        why = violation(path, match.group(2), match.group(1) == '"')
                        if why:
                            problems.append(f"{path}:{number}: includes {match.group(2)}: {why}")
    return problems, num_files


PLANTED = {
    # file: (include line, part of the expected message, or None when it is allowed)
    "common/base/strings.h": ('#include "common/io/mapped_file.h"', "common/base may not include common/io"),
    "common/quant/nf4.h": ('#include "common/config/model_config.h"', "may not include common/config"),
    "common/io/a.cc": ('#include "services/trunk/engine/step.h"', "common never includes services"),
    "common/io/b.cc": ("#include <grpcpp/grpcpp.h>", "gRPC and protobuf are seen only by"),
    "common/config/c.cc": ('#include "proto/common/v1/load.pb.h"', "gRPC and protobuf are seen only by"),
    "common/metrics/d.cc": ("  #  include <spdlog/spdlog.h>", "only common/base/logging.cc"),
    "common/base/logging.cc": ("#include <spdlog/spdlog.h>", None),
    "common/strange/e.cc": ('#include "common/base/check.h"', "not in the table"),
    "common/io/f.cc": ('#include "../base/check.h"', "relative to the root"),
    "common/io/g.cc": ('#include "tests/fakes/x.h"', "nothing outside tests"),
    "common/rpc/h.cc": ("#include <grpcpp/grpcpp.h>", None),
    "services/trunk/server/i.cc": ('#include "services/expert/runtime/x.h"', "never include each other"),
    "services/client/commands/j.cc": ('#include "services/trunk/engine/engine.h"', "never include each other"),
    "services/expert/kernels/k.cc": ('#include "absl/status/status.h"', "kernel files include only"),
    "services/expert/kernels/l.cc": ('#include "common/io/mapped_file.h"', "kernel files include of common"),
    "services/expert/kernels/m.cc": ('#include "common/base/check.h"', None),
    "services/expert/kernels/n.cc": ("#include <hwy/highway.h>", None),
    "services/expert/kernels/o.cc": ('#include "services/expert/runtime/x.h"', "expert/kernels may not include"),
    "services/expert/runtime/p.cc": ('#include "services/expert/server/x.h"', "expert/runtime may not include"),
    "services/expert/runtime/q.cc": ('#include "services/expert/kernels/x.h"', None),
    "services/trunk/model/r.cc": ('#include "services/trunk/engine/engine.h"', "trunk/model may not include"),
    "services/trunk/model/s.cc": ('#include "services/trunk/engine/step.h"', None),
    "services/trunk/engine/t.cc": ('#include "services/trunk/server/x.h"', "trunk/engine may not include"),
    "services/trunk/engine/u.cc": ("#include <grpcpp/grpcpp.h>", "gRPC and protobuf are seen only by"),
    "services/trunk/ops/cuda/v.cu": ("#include <google/protobuf/message.h>", "kernel files include only"),
    "services/trunk/ops/cpu/v.cc": ('#include "common/io/mapped_file.h"', "operations include of common only"),
    "services/trunk/ops/cpu/w.cc": ("#include <nlohmann/json.hpp>", "operations know no"),
    "services/trunk/ops/cpu/x.cc": ('#include "common/base/strings.h"', None),
    "services/trunk/engine/y.cc": ('#include "services/trunk/trunk_options.h"', "main or options"),
    "services/trunk/server/z.cc": ('#include "services/trunk/trunk_options.h"', None),
    "services/trunk/main.cc": ('#include "services/trunk/server/inference_server.h"', None),
    "services/client/terminal/x.cc": ('#include "services/client/connection/y.h"', "client/terminal may not include"),
}


def self_test():
    with tempfile.TemporaryDirectory() as root:
        for path, (line, _) in PLANTED.items():
            full = os.path.join(root, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "w", encoding="utf-8") as out:
                out.write("// planted\n" + line + "\n")
        problems, num_files = check(root)
    failures = []
    if num_files != len(PLANTED):
        failures.append(f"read {num_files} files, planted {len(PLANTED)}")
    for path, (_, expected) in PLANTED.items():
        named = [problem for problem in problems if problem.startswith(path + ":2: ")]
        if expected is None and named:
            failures.append(f"{path}: allowed, yet: {named[0]}")
        if expected is not None and (len(named) != 1 or expected not in named[0]):
            failures.append(f"{path}: expected one violation with '{expected}', found {named}")
    for failure in failures:
        print(failure)
    print(f"{len(PLANTED)} planted files, {len(failures)} judged wrongly")
    return 1 if failures else 0


def main():
    if "--self_test" in sys.argv[1:]:
        return self_test()
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..")
    problems, num_files = check(root)
    if num_files == 0:
        print(f"{root}: no sources in common and services")
        return 2
    for problem in problems:
        print(problem)
    print(f"{num_files} files, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
