"""The container engine and one compose project on it, by their command lines."""

import json
import os
import subprocess
import tarfile
import time

PREFIX = "banyan-test-"
LABEL = "com.docker.compose.project"
KINDS = {  # what a project can leave behind: how to list it, how to remove it
    "container": (["ps", "-aq", "--no-trunc"], ["rm", "-fv"]),
    "network": (["network", "ls", "-q", "--no-trunc"], ["network", "rm"]),
    "volume": (["volume", "ls", "-q"], ["volume", "rm", "-f"]),
}


def wait_for(what, condition, timeout_s):
    """What CONDITION returns once that is true; an AssertionError with its last answer otherwise."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer is True or (answer and not isinstance(answer, str)):
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s: {answer}"
        time.sleep(0.2)  # between two looks; the deadline above decides


class Engine:
    """docker: path of its client. compose: command, such as ["docker-compose"]."""

    def __init__(self, docker, compose):
        self._docker = docker
        self.compose = compose
        self.environment = {
            **os.environ,
            # docker-compose 1.29 builds through the first `docker` of the path.
            "PATH": f"{os.path.dirname(docker)}:{os.environ['PATH']}",
            "DOCKER_BUILDKIT": "1",
            "COMPOSE_DOCKER_CLI_BUILD": "1",
            "BUILDKIT_PROGRESS": "plain",
        }

    def run(self, *args, **options):
        """What `docker ARGS` prints; an AssertionError with its words when it fails."""
        done = subprocess.run(
            [self._docker, *args],
            capture_output=True,
            text=True,
            env=self.environment,
            check=False,
            **options,
        )
        assert done.returncode == 0, f"docker {' '.join(args)}:\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def inspect(self, name):
        return json.loads(self.run("inspect", name))[0]

    def files(self, image):
        """Of an image: path without the leading slash -> (its tarfile.TarInfo, its bytes)."""
        container = self.run("create", "--network=none", image)
        try:
            found = {}
            with subprocess.Popen(
                [self._docker, "export", container], stdout=subprocess.PIPE, env=self.environment
            ) as export:
                with tarfile.open(fileobj=export.stdout, mode="r|") as archive:
                    for entry in archive:
                        data = archive.extractfile(entry).read() if entry.isfile() else b""
                        found[entry.name.rstrip("/")] = (entry, data)
            return found
        finally:
            self.run("rm", "-f", container)

    def on_host(self, base_image, script):
        """Runs a shell script as root among the processes of the engine's machine."""
        return self.run(
            "run", "--rm", "--pid=host", "--network=none", "--entrypoint=/bin/sh",
            base_image, "-c", script,
        )  # fmt: skip

    def remains(self, project):
        """Kind -> ids of what exists of a project, without the kinds of which nothing does."""
        found = {}
        for kind, (show, _) in KINDS.items():
            ids = self.run(*show, "--filter", f"label={LABEL}={project}").split()
            if ids:
                found[kind] = ids
        return found

    def remove_project(self, project):
        for kind, ids in self.remains(project).items():
            self.run(*KINDS[kind][1], *ids)
        tags = self.run("images", "--format", "{{.Repository}}:{{.Tag}}").split()
        ours = [tag for tag in tags if tag.endswith(f":{project}")]
        if ours:
            self.run("rmi", "-f", *ours)

    def remove_stale_projects(self):
        """Those of tests that were killed: their names hold the pid."""
        tags = self.run("images", "--format", "{{.Tag}}").split()
        labels = self.run("ps", "-a", "--format", f'{{{{.Label "{LABEL}"}}}}').split()
        for name in {n for n in tags + labels if n.startswith(PREFIX)}:
            if not os.path.exists(f"/proc/{name[len(PREFIX):]}"):
                print(f"removing what a killed test left: {name}", flush=True)
                self.remove_project(name)


class Project:
    """docker-compose.yml of SOURCE under a name and on ports of its own."""

    def __init__(self, engine, source, prometheus_image):
        self.engine = engine
        self.name = f"{PREFIX}{os.getpid()}"
        self._source = source
        self.environment = {
            **engine.environment,
            "COMPOSE_PROJECT_NAME": self.name,
            "BANYAN_TAG": self.name,
            "PROMETHEUS_IMAGE": prometheus_image,
            # Any free ones.
            "TRUNK_PORT": "0",
            "TRUNK_METRICS_PORT": "0",
            "PROMETHEUS_PORT": "0",
        }
        for name in ("MODEL_DIR", "TRUNK_MEMORY", "EXPERT_MEMORY", "MEMLOCK", "COMPOSE_FILE"):
            self.environment.pop(name, None)

    def compose(self, *args, files=(), environment=None, quiet=True):
        command = [*self.engine.compose]
        for file in files:
            command += ["-f", file]
        done = subprocess.run(
            [*command, *args],
            cwd=self._source,
            env={**self.environment, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if not quiet or done.returncode != 0:
            print(done.stdout, flush=True)
        assert done.returncode == 0, f"{' '.join([*command, *args])}: exit code {done.returncode}"
        return done.stdout.strip()

    def address(self, service, port):
        """Where a published port is reached from this machine."""
        return self.compose("port", service, str(port)).splitlines()[-1]

    def container(self, service):
        ids = self.engine.run(
            "ps", "-aq", "--filter", f"label={LABEL}={self.name}",
            "--filter", f"label=com.docker.compose.service={service}",
        ).split()  # fmt: skip
        assert len(ids) == 1, f"containers of {service}: {ids}"
        return self.engine.inspect(ids[0])

    def healthy(self, service):
        state = self.container(service)["State"]
        return state.get("Health", {}).get("Status") == "healthy" or str(state)
