"""An inventory from the tags of EC2 instances.

    from groundwork import ec2

    globals().update(ec2.hosts(env="prod", regions="eu-central-1"))

The tag `role` has the roles of an instance ("app redis"), `Name` its name, and `env` says to which inventory it
belongs. docs/ec2.md.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterable, Literal, Mapping, Sequence

import boto3
import click
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
)
from pyinfra.api.exceptions import PyinfraError
from pyinfra.connectors.sshuserclient import client as ssh

from groundwork import cache
from groundwork.roles import ORDER

CACHE_SECONDS = 60
"""For how long an answer is good: several commands in a row ask once."""

_CONFIG = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 4})

RUNNING = "running"
ASLEEP = ("stopping", "stopped")
"""They keep their private address: what the firewalls open to them stays."""

_DENIED = {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"}
_NOT_KNOWN = {"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch"}
_OVER = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}


@dataclass(frozen=True)
class Question:
    """What EC2 is asked."""

    regions: tuple[str, ...]
    filters: tuple[tuple[str, tuple[str, ...]], ...]
    profile: str | None = None
    assume_role: str | None = None
    external_id: str | None = None

    def __str__(self) -> str:
        asked = ", ".join(f"{name} = {' or '.join(values)}" for name, values in self.filters)
        return f"{asked} in {', '.join(self.regions)}"


@dataclass
class Instance:
    """What an inventory needs of an EC2 instance."""

    id: str
    region: str
    state: str
    private: str | None
    public: str | None
    tags: dict[str, str]
    replaceable: bool
    """A spot instance, or an auto-scaling group's: another may come with the same tags."""


def hosts(
    *,
    env: str,
    regions: str | Sequence[str] = (),
    address: Literal["public", "private", "ssm"] = "public",
    filters: Mapping[str, str | Sequence[str]] | None = None,
    profile: str | None = None,
    assume_role: str | None = None,
    external_id: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The groups of an inventory: one for each role that a tag `role` names, and one with all hosts, called as `env`.

    Stopped instances are left out and named; what the firewalls open to them stays. An answer is kept for
    CACHE_SECONDS.

    Args:
        env: value of the tag `env`.
        regions: one or several; by default the profile's, or AWS_DEFAULT_REGION.
        address: where SSH connects: the public address, the private one (behind a jump host of ~/.ssh/config, or
            a VPN), or "ssm", the instance's id through AWS Systems Manager, with port 22 closed.
        filters: more of EC2's filters: {"tag:team": "shop", "vpc-id": ["vpc-1", "vpc-2"]}.
        profile: of ~/.aws/config.
        assume_role: ARN of a role in another account.
        external_id: that this role asks for.
        data: for each host, such as {"ssh_user": "ubuntu", "ssh_key": "~/.ssh/prod"}.
    Raises:
        PyinfraError: where there is no answer, an empty one, or one that no inventory can be made of.
    """
    if address not in ("public", "private", "ssm"):
        raise PyinfraError(f"ec2: address = {address!r}: must be 'public', 'private' or 'ssm'")
    wanted = {"tag:env": env, **(filters or {})}
    lists = {name: (values,) if isinstance(values, str) else tuple(values) for name, values in wanted.items()}
    session = _session(profile)
    given = (regions,) if isinstance(regions, str) else tuple(regions)
    question = Question(given or _own_region(session), tuple(lists.items()), profile, assume_role, external_id)
    _check_regions(session, question.regions)
    found = _kept(question)
    fresh = found is None
    if fresh:
        found = _asked(session, question)
    groups = _groups(question, found, env, address, dict(data or {}))
    if fresh:  # an answer that is refused is asked anew: somebody mends it meanwhile
        _keep(question, found)
    return groups


# Asking


def _session(profile: str | None) -> boto3.Session:
    try:
        return boto3.Session(profile_name=profile)
    except ProfileNotFound:
        known = ", ".join(boto3.Session().available_profiles) or "none"
        raise PyinfraError(f"ec2: there is no profile {profile!r} in ~/.aws/config, which has {known}") from None


def _own_region(session: boto3.Session) -> tuple[str, ...]:
    if session.region_name:
        return (session.region_name,)
    raise PyinfraError('ec2: no region is set: say regions="eu-central-1", or set AWS_DEFAULT_REGION')


def _check_regions(session: boto3.Session, regions: Iterable[str]) -> None:
    known = [name for part in session.get_available_partitions() for name in session.get_available_regions("ec2", part)]
    for region in regions:
        if region not in known:
            near = difflib.get_close_matches(region, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise PyinfraError(f"ec2: regions: there is no region {region!r}{hint}")


def _asked(session: boto3.Session, question: Question) -> list[Instance]:
    try:
        acting = _acting(session, question)
    except (BotoCoreError, ClientError) as error:
        raise PyinfraError(f"ec2: {_why(error, question, 'sts:AssumeRole', question.assume_role or '', None)}") from None
    found = []
    for region in question.regions:
        try:
            found += _instances(acting, region, [{"Name": name, "Values": list(values)} for name, values in question.filters])
        except (BotoCoreError, ClientError) as error:
            raise PyinfraError(f"ec2: {_why(error, question, 'ec2:DescribeInstances', region, acting)}") from None
    if not any(item.state == RUNNING for item in found):
        raise PyinfraError(_nothing(acting, question, found))
    return found


def _acting(session: boto3.Session, question: Question) -> boto3.Session:
    """The session, or that of the role that is assumed."""
    if not question.assume_role:
        return session
    asked = {"ExternalId": question.external_id} if question.external_id else {}
    sts = session.client("sts", region_name=question.regions[0], config=_CONFIG)
    keys = sts.assume_role(RoleArn=question.assume_role, RoleSessionName="groundwork", **asked)["Credentials"]
    return boto3.Session(
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )


def _instances(session: boto3.Session, region: str, filters: list[dict[str, Any]]) -> list[Instance]:
    """Those that are not gone, or going."""
    states = {"Name": "instance-state-name", "Values": ["pending", RUNNING, *ASLEEP]}
    pages = session.client("ec2", region_name=region, config=_CONFIG).get_paginator("describe_instances")
    return [
        _instance(item, region)
        for page in pages.paginate(Filters=[*filters, states])
        for reservation in page["Reservations"]
        for item in reservation["Instances"]
    ]


def _instance(item: Mapping[str, Any], region: str) -> Instance:
    tags = {tag["Key"]: tag["Value"] for tag in item.get("Tags", ())}
    return Instance(
        id=item["InstanceId"],
        region=region,
        state=item["State"]["Name"],
        private=item.get("PrivateIpAddress"),
        public=item.get("PublicIpAddress"),
        tags={name: tags[name] for name in ("Name", "role", "env") if name in tags},
        replaceable=item.get("InstanceLifecycle") == "spot" or "aws:autoscaling:groupName" in tags,
    )


# What went wrong


def _why(error: Exception, question: Question, action: str, where: str, acting: boto3.Session | None) -> str:
    login = f"aws sso login --profile {question.profile}" if question.profile else "aws sts get-caller-identity"
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return (
            "there are no AWS credentials, or half of them: set AWS_PROFILE, or profile= in the inventory, or run "
            "`aws configure`"
        )
    if isinstance(error, (SSOError, CredentialRetrievalError)):
        return f"the AWS credentials can't be read ({error}): `{login}`"
    if isinstance(error, (EndpointConnectionError, HTTPClientError)):
        return f"AWS does not answer in {where}: {error}"
    if not isinstance(error, ClientError):
        return f"{action} on {where}: {error}"
    code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
    if code in _DENIED:
        return f"{_who(acting)} is not allowed {action} on {where}: {message}"
    if code in _OVER:
        return f"the AWS credentials have expired: `{login}`"
    if code in _NOT_KNOWN:
        return f"AWS does not accept the credentials in {where} ({code}): is the region enabled, and the key the right one? `{login}`"
    if code.startswith("Invalid") or code == "FilterLimitExceeded":
        return f"what was asked is refused: {message} (asked: {question})"
    return f"{action} on {where}: {code}: {message}"


def _who(acting: boto3.Session | None) -> str:
    """Whom AWS takes us for; everybody may ask that."""
    if acting is None:
        return "the caller"
    try:
        return acting.client("sts", region_name="us-east-1", config=_CONFIG).get_caller_identity()["Arn"]
    except (BotoCoreError, ClientError):
        return "the caller"


def _nothing(acting: boto3.Session, question: Question, found: list[Instance]) -> str:
    """What was asked, of whom, and what there is instead."""
    if found:
        names = ", ".join(f"{item.tags.get('Name', item.id)} ({item.id}) is {item.state}" for item in found)
        return f"ec2: no instance runs with {question}: {names}"
    try:
        others = [item for region in question.regions for item in _instances(acting, region, [])]
    except (BotoCoreError, ClientError):
        others = []
    envs = sorted({item.tags["env"] for item in others if "env" in item.tags})
    there = f"{len(others)} other instances are there, with env = {', '.join(envs) or 'nothing'}" if others else "there is none at all"
    return f"ec2: no instance has {question}, asked as {_who(acting)}; {there}"


# Kept for a minute


def _file(question: Question) -> Path:
    """By what is asked, and by whom: an answer to somebody else is none."""
    who = {name: os.environ[name] for name in sorted(os.environ) if name.startswith("AWS_")}
    text = json.dumps([asdict(question), who], sort_keys=True)
    return cache.directory() / "ec2" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _kept(question: Question) -> list[Instance] | None:
    path = _file(question)
    try:
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077 or not 0 <= time.time() - status.st_mtime < CACHE_SECONDS:
            return None
        return [Instance(**item) for item in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return None


def _keep(question: Question, found: list[Instance]) -> None:
    path = _file(question)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)  # 0600
        with os.fdopen(handle, "w") as file:
            json.dump([asdict(item) for item in found], file)
        os.replace(name, path)
    except OSError:
        pass  # it is asked again


# Groups


def _groups(
    question: Question, found: list[Instance], env: str, address: str, data: dict[str, Any]
) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    named = _named(found)
    running = {name: item for name, item in named.items() if item.state == RUNNING}
    _tell([f"{name} ({item.id}) is {item.state}" for name, item in named.items() if item.state != RUNNING])
    _check(question, running, address)
    asleep: dict[str, list[str]] = {}
    for name, item in named.items():
        for role in _roles(name, item) if item.state in ASLEEP and item.private else ():
            asleep.setdefault(role, []).append(item.private)
    shared = {**data, **({"stopped": asleep} if asleep else {})}
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {env: []}
    for name, item in running.items():
        outside = {"public_address": item.public, "link_endpoint": item.public} if item.public else {}
        own = {"ssh_hostname": _destination(item, address), "private_address": item.private, **outside, **shared}
        for group in (env, *_roles(name, item)):
            groups.setdefault(group, []).append((name, own))
    return groups


def _named(found: list[Instance]) -> dict[str, Instance]:
    """Each by its tag Name; with its id where another may come under that name."""
    named: dict[str, Instance] = {}
    for item in sorted(found, key=lambda item: (item.tags.get("Name", ""), item.id)):
        name = item.tags.get("Name") or item.id
        if not re.fullmatch(r"[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?", name):
            raise PyinfraError(f"ec2: {item.id}: its tag Name, {name!r}, must be a host name (letters, digits, - and .)")
        if item.replaceable and name != item.id:
            name = f"{name}-{item.id.removeprefix('i-')[-8:]}"
        if name in named:
            raise PyinfraError(f"ec2: two instances are called {name}, {named[name].id} and {item.id}: give one another tag Name")
        named[name] = item
    return named


def _roles(name: str, item: Instance) -> list[str]:
    """The tag `role`, taken apart."""
    tag = item.tags.get("role", "")
    roles = [role for role in dict.fromkeys(re.split(r"[\s,+/:]+", tag)) if role]
    if not roles or set(roles) - set(ORDER):
        has = f"its tag role, {tag!r}, must be" if tag else "has no tag role, which must be"
        raise PyinfraError(
            f"ec2: {name} ({item.id}, {item.region}): {has} of {', '.join(ORDER)}, with blanks between (base alone for a host "
            "with nothing else). Is the instance somebody else's, leave it out with filters="
        )
    return roles


def _destination(item: Instance, address: str) -> str | None:
    return {"public": item.public, "private": item.private, "ssm": item.id}[address]


def _check(question: Question, running: Mapping[str, Instance], address: str) -> None:
    if without := [f"{name} ({item.id})" for name, item in running.items() if not _destination(item, address)]:
        raise PyinfraError(f'ec2: no {address} address: {", ".join(without)}. address="private" connects behind a jump host, "ssm" through AWS')
    if address == "ssm":
        _check_ssm(question, list(running.values()))


def _check_ssm(question: Question, running: list[Instance]) -> None:
    """Whether ssh finds the way, which only the user's own ssh_config can say."""
    if question.assume_role and not question.profile:
        raise PyinfraError(
            f'ec2: address = "ssm" with assume_role: name the profile of ~/.aws/config that assumes {question.assume_role} (its '
            "role_arn) with profile= instead, because it is the aws command that connects"
        )
    config = ssh.get_ssh_config(None)
    if without := [item for item in running if config is None or "proxycommand" not in config.lookup(item.id)]:
        stanzas = "\n".join(_ssm_stanza(question, region, without) for region in dict.fromkeys(item.region for item in without))
        raise PyinfraError(f'ec2: address = "ssm": ~/.ssh/config does not say how to get to {without[0].id}. Append to it:\n\n{stanzas}\n')


def _ssm_stanza(question: Question, region: str, without: list[Instance]) -> str:
    """As in AWS Systems Manager's manual, "Allow and control permissions for SSH connections"."""
    ids = " ".join(item.id for item in without if item.region == region) if len(question.regions) > 1 else "i-*"
    profile = f" --profile {question.profile}" if question.profile else ""
    return (
        f"Host {ids}\n    ProxyCommand aws ssm start-session --target %h --document-name AWS-StartSSHSession "
        f"--parameters portNumber=%p --region {region}{profile}"
    )


_told: set[str] = set()


def _tell(lines: Iterable[str]) -> None:
    """Once a run, though pyinfra reads an inventory twice."""
    for line in lines:
        if line not in _told:
            click.echo(f"--> ec2: {line}: left out", err=True)
        _told.add(line)
