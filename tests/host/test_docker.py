"""Docker: the running daemon's settings, and what a published port means, seen from another host."""

from __future__ import annotations

import json

import pytest

IMAGE = "groundwork-test"
NAME = "groundwork-test"
PORT = 18080
"""On the host; the container's web server listens on 8080."""

# No registry is asked: the image is Debian's own static busybox.
MAKE_IMAGE = f"""set -e; d=$(mktemp -d); trap 'rm -rf "$d"' EXIT; cd "$d"
apt-get -qq -o APT::Sandbox::User=root download busybox-static
dpkg-deb -x *.deb root; mkdir bin; find root -path '*/bin/busybox' -exec cp -t bin {{}} +; tar -c bin | docker import - {IMAGE}:latest"""

# A neighbour can send packets for a container's own address to the host.
ROUTED = """
import socket, subprocess, sys
address, via = sys.argv[1:]
subprocess.run(["sudo", "ip", "route", "replace", address, "via", via], check=True)
try:
    socket.create_connection((address, 8080), 2).close()
    print("reached")
except OSError:
    print("closed")
finally:
    subprocess.run(["sudo", "ip", "route", "del", address], check=True)
"""


@pytest.fixture(scope="module")
def container(docker):
    """A container that serves the web on a port that is published to everybody."""
    if not docker.is_lab:
        pytest.skip("makes an image and a container: only on lab hosts")
    try:
        docker.check(MAKE_IMAGE)
        docker.check(
            f"docker run --detach --name {NAME} --publish 0.0.0.0:{PORT}:8080 --publish {PORT + 1}:8080 "
            f"{IMAGE} /bin/busybox httpd -f -p 8080"
        )
        yield _inspect(docker)
    finally:
        docker.run(f"docker rm --force {NAME}; docker image rm --force {IMAGE}")


def _inspect(docker) -> dict:
    return json.loads(docker.check(f"docker inspect {NAME}"))[0]


def _reached(outside, docker) -> list[tuple[str, int]]:
    """Where the published port is reached from outside."""
    return outside.reaches([(address, PORT) for address in docker.addresses()])


def _flow_opens(docker) -> bool:
    return any(opening.port == PORT for opening in docker.here.openings())


def test_the_running_daemon_has_our_settings(docker):
    settings = docker.settings("docker")
    info = json.loads(docker.check("docker info --format '{{json .}}'"))
    assert info["LiveRestoreEnabled"] is True
    assert info["LoggingDriver"] == settings.log_driver
    pools = [(pool["Base"], pool["Size"]) for pool in info["DefaultAddressPools"]]
    assert pools == [(settings.address_pool, 24)]


def test_the_default_network_publishes_where_it_was_told(docker):
    options = json.loads(docker.check("docker network inspect bridge"))[0]["Options"]
    assert options["com.docker.network.bridge.host_binding_ipv4"] == docker.settings("docker").publish_address


def test_what_runs_is_what_is_installed(docker):
    package = "docker-ce" if docker.settings("docker").repository == "vendor" else "docker.io"
    # Debian's +dfsg1 is in both; a vendor's epoch (5:) is in the package's only.
    installed = docker.check(f"dpkg-query -W -f '${{source:Upstream-Version}}' {package}").split(":")[-1]
    assert docker.check("docker version --format '{{.Server.Version}}'").strip() == installed


def test_only_the_declared_users_speak_to_it(docker):
    members = docker.check("getent group docker").strip().split(":")[3]
    assert set(filter(None, members.split(","))) == set(docker.settings("docker").users)
    assert docker.check("stat -c '%a %U:%G' /run/docker.sock").strip() == "660 root:docker"
    assert "dockerd" not in docker.check("ss -Hltnp"), "the daemon listens on the network"


def test_a_container_gets_the_log_limits_and_no_privileges(docker, container):
    settings = docker.settings("docker")
    log = container["HostConfig"]["LogConfig"]
    assert log["Type"] == settings.log_driver
    if settings.log_driver != "journald":
        wanted = {"max-size": settings.log_max_size.lower(), "max-file": str(settings.log_max_files)}
        assert log["Config"] == wanted
    status = docker.check(f"docker exec {NAME} /bin/busybox grep NoNewPrivs /proc/1/status")
    assert status.split()[1] == str(int(settings.no_new_privileges))


def test_a_port_without_an_address_is_published_where_the_setting_says(docker, container):
    addresses = {item["HostPort"]: item["HostIp"] for item in container["NetworkSettings"]["Ports"]["8080/tcp"]}
    assert addresses[str(PORT + 1)] == docker.settings("docker").publish_address


def test_a_published_port_is_reached_on_the_host_itself(docker, container):
    for address in ("127.0.0.1", docker.here.private_address):
        answer = docker.check(f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' http://{address}:{PORT}/")
        assert answer == "404", address


def test_a_published_port_is_closed_to_others(docker, container, outside):
    if _flow_opens(docker):
        pytest.skip(f"a flow opens port {PORT}")
    assert _reached(outside, docker) == []


@pytest.mark.slow
def test_it_is_closed_after_the_firewall_and_the_daemon_came_anew(docker, container, outside):
    if _flow_opens(docker):
        pytest.skip(f"a flow opens port {PORT}")
    docker.check("systemctl reload groundwork-firewall.service")
    docker.check("systemctl reset-failed docker.service; systemctl restart docker.service")  # three a minute, else
    after = _inspect(docker)["State"]
    assert after["Running"] and after["Pid"] == container["State"]["Pid"], "live-restore keeps containers"
    assert docker.check(f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{PORT}/") == "404"
    assert _reached(outside, docker) == []


@pytest.mark.slow
def test_a_containers_own_address_is_closed_to_neighbours(docker, container, outside):
    address = container["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    assert outside.run(ROUTED, address, docker.here.private_address).strip() == "closed"
