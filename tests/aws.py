"""AWS for tests: moto in server mode, and an account in it."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Iterator

import boto3
import requests

REGION = "eu-central-1"


@contextmanager
def moto_server() -> Iterator[str]:
    """Its URL. It is another process: in a test's own, gevent has changed sockets and threads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        while not _answers(url):
            assert process.poll() is None and time.monotonic() < end, "moto does not answer"
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/moto-api/", timeout=5).ok
    except requests.ConnectionError:
        return False


def credentials(url: str) -> dict[str, str]:
    """The environment of somebody who may do everything there."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def launch(name: str | None, role: str | None = None, address: str = "10.0.1.5", env: str = "prod", region: str = REGION, **more) -> str:
    """Run an instance in the network that its address is of; its id."""
    cidr = str(ipaddress.ip_network(f"{address}/16", strict=False))
    client = boto3.client("ec2", region_name=region)
    found = client.describe_subnets(Filters=[{"Name": "cidr-block", "Values": [cidr]}])["Subnets"]
    if not found:
        vpc = client.create_vpc(CidrBlock=cidr)["Vpc"]["VpcId"]
        client.create_subnet(VpcId=vpc, CidrBlock=cidr)
        found = client.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    tags = {"Name": name, "role": role, "env": env}
    done = client.run_instances(
        ImageId="ami-12345678", MinCount=1, MaxCount=1, SubnetId=found[0]["SubnetId"], PrivateIpAddress=address,
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items() if value is not None]}
        ],
        **more,
    )  # fmt: skip
    return done["Instances"][0]["InstanceId"]
