"""Inventories from EC2's tags, against moto in server mode."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
import requests
from botocore.paginate import Paginator
from pyinfra.api.exceptions import PyinfraError
from tests.aws import REGION, credentials, launch, moto_server

from groundwork import cache, context, ec2
from groundwork.preflight import setting_errors
from groundwork.roles import all_roles
from groundwork.topology import Topology

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server():
    with moto_server() as url:
        yield url


@pytest.fixture
def aws(server, monkeypatch, tmp_path) -> str:
    """An empty account, and credentials for it."""
    requests.post(f"{server}/moto-api/reset", timeout=10)
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    ec2._told.clear()
    return server


def refused(**arguments) -> str:
    with pytest.raises(PyinfraError) as error:
        ec2.hosts(**{"env": "prod", "address": "private", **arguments})
    return str(error.value)


def elastic(instance: str) -> str:
    """An elastic address for it."""
    client = boto3.client("ec2")
    found = client.allocate_address(Domain="vpc")
    client.associate_address(InstanceId=instance, AllocationId=found["AllocationId"])
    return found["PublicIp"]


@pytest.mark.parametrize("name", ["prod", "onprem"])
def test_the_shipped_inventories_are_accepted(aws, name):
    public = {name: elastic(launch(name, roles, address)) for name, roles, address in (
        ("data1", "mongodb redis chromadb", "10.0.1.20"), ("edge1", "app nginx", "10.0.1.10")
    )}  # fmt: skip
    topology = context.load(ROOT / f"inventories/{name}.py")
    assert list(setting_errors(topology)) == []
    assert [here.name for here in topology.with_role("mongodb")] == ["data1"]
    if name == "onprem":
        box, data1 = topology.hosts["gpu1"], topology.hosts["data1"]
        assert data1.data["ssh_hostname"] == public["data1"]
        assert box.settings(all_roles()["link"]).endpoint_of(data1) == f"{public['data1']}:51820" and not box.is_dialed
        assert box.address("mongodb") == data1.link_address
        assert box.address("redis") == "127.0.0.1" and topology.hosts["edge1"].address("redis") == "10.0.1.20"


def test_tags_make_groups_and_data(aws):
    launch("data1", "mongodb redis", "10.0.1.20")
    launch("app1", "app, docker", "10.0.1.10")
    launch("plain", "base", "10.0.1.30")
    launch("other", "app", "10.0.1.40", env="staging")
    found = ec2.hosts(env="prod", address="private", data={"ssh_user": "ubuntu"})
    data1, app1, plain = (
        (name, {"ssh_hostname": address, "private_address": address, "ssh_user": "ubuntu"})
        for name, address in (("data1", "10.0.1.20"), ("app1", "10.0.1.10"), ("plain", "10.0.1.30"))
    )
    assert found == {"prod": [app1, data1, plain], "mongodb": [data1], "redis": [data1], "app": [app1], "docker": [app1], "base": [plain]}


def test_several_regions_and_filters(aws):
    launch("near", "app", "10.0.1.1")
    launch("far", "app", "10.0.2.1", region="us-east-1")
    here = launch("one", "app", "10.0.1.9")
    found = ec2.hosts(env="prod", address="private", regions=[REGION, "us-east-1"], filters={"tag:Name": ["near", "far"]})
    assert [name for name, _ in found["app"]] == ["far", "near"]
    assert [name for name, _ in ec2.hosts(env="prod", address="private", filters={"instance-id": here})["app"]] == ["one"]


def test_more_than_a_page(aws, monkeypatch):
    for number in range(12):
        launch(f"app{number:02}", "app", f"10.0.1.{number + 10}")
    paginate = Paginator.paginate
    monkeypatch.setattr(Paginator, "paginate", lambda self, **more: paginate(self, PaginationConfig={"PageSize": 5}, **more))
    assert len(ec2.hosts(env="prod", address="private")["app"]) == 12


def test_stopped_ones_are_named_and_keep_their_flows_and_those_that_are_gone_are_gone(aws, capsys):
    client = boto3.client("ec2")
    launch("data1", "mongodb", "10.0.1.20")
    launch("app1", "app", "10.0.1.10")
    asleep, gone = launch("app2", "app", "10.0.1.11"), launch("app3", "app", "10.0.1.12")
    client.stop_instances(InstanceIds=[asleep])
    client.terminate_instances(InstanceIds=[gone])
    groups = ec2.hosts(env="prod", address="private")
    assert [name for name, _ in groups["app"]] == ["app1"]
    ec2.hosts(env="prod", address="private")
    assert capsys.readouterr().err == f"--> ec2: app2 ({asleep}) is stopped: left out\n"
    hosts = {name: ([group for group, members in groups.items() if name in dict(members)], data) for name, data in groups["prod"]}
    opening, = (item for item in Topology(hosts, all_roles()).hosts["data1"].openings() if item.port == 27017)
    assert opening.networks(4) == ["10.0.1.10", "10.0.1.11"]


def test_a_spot_instance_bears_its_id(aws):
    ids = [launch("worker", "app", f"10.0.1.{n}", InstanceMarketOptions={"MarketType": "spot"}) for n in (1, 2)]
    names = [name for name, _ in ec2.hosts(env="prod", address="private")["app"]]
    assert sorted(names) == sorted(f"worker-{item[-8:]}" for item in ids)


def test_another_account_by_a_role(aws):
    launch("app1", "app")
    arn = "arn:aws:iam::222222222222:role/groundwork"
    said = refused(assume_role=arn, external_id="shop")
    assert "no instance has tag:env = prod in eu-central-1, asked as arn:aws:sts::222222222222:assumed-role/groundwork/groundwork" in said
    account = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
    there = boto3.client("ec2", aws_access_key_id=account["AccessKeyId"], aws_secret_access_key=account["SecretAccessKey"],
                         aws_session_token=account["SessionToken"])  # fmt: skip
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "env", "Value": "prod"}, {"Key": "Name", "Value": "theirs"}, {"Key": "role", "Value": "app"}]}]
    there.run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1, TagSpecifications=tags)
    assert [name for name, _ in ec2.hosts(env="prod", address="private", assume_role=arn)["prod"]] == ["theirs"]


# For a minute


def test_an_answer_is_good_for_a_minute(aws, monkeypatch):
    launch("app1", "app")
    first = ec2.hosts(env="prod", address="private")
    launch("app2", "app", "10.0.1.6")
    assert ec2.hosts(env="prod", address="private") == first
    (file,) = (cache.directory() / "ec2").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    assert "testing" not in file.read_text()
    monkeypatch.setattr(ec2.time, "time", lambda now=time.time(): now + ec2.CACHE_SECONDS)
    assert len(ec2.hosts(env="prod", address="private")["app"]) == 2


@pytest.mark.parametrize("spoil", [lambda file: file.chmod(0o644), lambda file: file.write_text('[{"id"'), lambda file: file.write_text("[1]")])
def test_a_kept_answer_that_is_damaged_or_anybodys_is_none(aws, spoil):
    launch("app1", "app")
    ec2.hosts(env="prod", address="private")
    launch("app2", "app", "10.0.1.6")
    spoil(next((cache.directory() / "ec2").iterdir()))
    assert len(ec2.hosts(env="prod", address="private")["app"]) == 2


def test_somebody_else_is_not_answered_from_it(aws, monkeypatch):
    launch("app1", "app")
    ec2.hosts(env="prod", address="private")
    launch("app2", "app", "10.0.1.6")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert len(ec2.hosts(env="prod", address="private")["app"]) == 2


# Bad input


def test_an_empty_answer_says_what_was_asked_and_what_there_is(aws):
    assert refused().endswith("; there is none at all")
    launch("app1", "app", env="production")
    said = refused(filters={"tag:team": ["a", "b"]})
    assert "no instance has tag:env = prod, tag:team = a or b in eu-central-1, asked as arn:aws:" in said
    assert said.endswith("1 other instances are there, with env = production")


def test_stopped_ones_alone_are_no_inventory(aws):
    asleep = launch("app1", "app")
    boto3.client("ec2").stop_instances(InstanceIds=[asleep])
    assert refused() == f"ec2: no instance runs with tag:env = prod in eu-central-1: app1 ({asleep}) is stopped"


def test_no_credentials(aws, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "there are no AWS credentials" in refused() and "AWS_PROFILE" in refused()


def test_a_profile_that_is_not_there(aws):
    assert "no profile 'shop' in ~/.aws/config, which has none" in refused(profile="shop")


def test_no_region_and_no_such_region(aws, monkeypatch):
    assert "there is no region 'eu-centrel-1' (did you mean eu-central-1?)" in refused(regions="eu-centrel-1")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert 'no region is set: say regions="eu-central-1"' in refused()


def test_no_permission_names_who_and_on_what(aws, monkeypatch):
    iam = boto3.client("iam")
    iam.create_user(UserName="anna")
    key = iam.create_access_key(UserName="anna")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    requests.post(f"{aws}/moto-api/reset-auth", data="0", timeout=10)
    try:
        said = refused()
    finally:
        requests.post(f"{aws}/moto-api/reset-auth", data="inf", timeout=10)
    assert "is not allowed ec2:DescribeInstances on eu-central-1: " in said
    assert key["SecretAccessKey"] not in said


def test_nobody_answers(aws, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(ec2, "_CONFIG", ec2.Config(retries={"max_attempts": 1}))
    assert "AWS does not answer in eu-central-1" in refused()


def test_a_role_that_is_somebody_elses(aws):
    other = launch("bastion", "bastion")
    said = refused()
    assert f"bastion ({other}, eu-central-1): its tag role, 'bastion', must be of base, " in said and "filters=" in said
    launch("nothing", None, "10.0.1.6", env="stage")
    assert "has no tag role, which must be of base, " in refused(env="stage")


def test_two_of_one_name_and_a_name_that_is_none(aws):
    ids = sorted(launch("app1", "app", f"10.0.1.{n}") for n in (1, 2))
    assert refused() == f"ec2: two instances are called app1, {ids[0]} and {ids[1]}: give one another tag Name"
    launch("my box", "app", "10.0.1.3", env="stage")
    assert "its tag Name, 'my box', must be a host name" in refused(env="stage")


def test_no_public_address(aws):
    item = launch("data1", "mongodb")
    assert refused(address="public").startswith(f"ec2: no public address: data1 ({item}). ")
    assert refused(address="elastic") == "ec2: address = 'elastic': must be 'public', 'private' or 'ssm'"


# Through SSM


def test_through_ssm_when_ssh_knows_the_way(aws, tmp_path):
    item = launch("data1", "mongodb")
    said = refused(address="ssm")
    stanza = said.split("Append to it:\n\n")[1]
    assert "Host i-*\n    ProxyCommand aws ssm start-session --target %h" in stanza and f"--region {REGION}\n" in stanza
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text(stanza)
    ec2.ssh.get_ssh_config.cache.clear()
    found = ec2.hosts(env="prod", address="ssm")
    assert found["mongodb"] == [("data1", {"ssh_hostname": item, "private_address": "10.0.1.5"})]
    asked = subprocess.run(["ssh", "-F", tmp_path / ".ssh/config", "-G", item], capture_output=True, text=True, check=True).stdout
    assert f"proxycommand aws ssm start-session --target {item} " in asked.replace("%h", item)
    assert "profile= instead" in refused(address="ssm", assume_role="arn:aws:iam::123456789012:role/x")


# As an inventory


def test_an_inventory_of_five_lines(aws, tmp_path):
    launch("data1", "mongodb", "10.0.1.20")
    inventory = tmp_path / "prod.py"
    inventory.write_text(
        "from groundwork import ec2\n\n"
        'globals().update(ec2.hosts(env="prod", regions="eu-central-1", address="private",\n'
        '                           data={"ssh_user": "ubuntu"}))\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "pyinfra", str(inventory), "debug-inventory"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "10.0.1.20" in done.stderr and "mongodb" in done.stderr
    inventory.write_text('from groundwork import ec2\n\nglobals().update(ec2.hosts(env="prod", regions="eu-central-7"))\n')
    done = subprocess.run(
        [sys.executable, "-m", "pyinfra", "-y", str(inventory), "deploy.py"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and f"{inventory}:3: ec2: regions: there is no region 'eu-central-7'" in done.stderr
    assert "Traceback" not in done.stderr
