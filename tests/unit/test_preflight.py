"""Bad input: one clear error, before any host is touched, and a status that is not 0."""

from __future__ import annotations

import shutil

import pytest
from tests.unit.pyinfra_fake import ROOT, group_data, inventory, run

CASES = {
    "unknown key": ("mongodb_prot = 27018", "mongodb_prot: unknown key; did you mean mongodb_port?"),
    "wrong type": ('mongodb_port = "many"', "mongodb_port = 'many': must be a whole number"),
    "port out of range": ("mongodb_port = 70000", "mongodb_port = 70000: must be less than or equal to 65535"),
    "duplicate user": (
        'mongodb_users = [{"name": "a", "database": "d"}, {"name": "a", "database": "e"}]',
        "mongodb_users: 'a' is there twice",
    ),
    "nested key missing": ('mongodb_users = [{"name": "a"}]', "mongodb_users[0]['database']: must be set"),
    "a name that is none": (
        'mongodb_users = [{"name": "an na", "database": "d"}]',
        "mongodb_users[0]['name'] = 'an na': must be letters, digits, _ and - (63 at most",
    ),
    "nested key misspelled": (
        'mongodb_users = [{"name": "a", "database": "d", "role": []}]',
        "mongodb_users[0]['role'] = []: unknown key; did you mean roles? Allowed are name, database, roles",
    ),
    "key deep inside misspelled": (
        'mongodb_collections = [{"database": "d", "name": "n", "timeseries": {"timeField": "t", "metafield": "m"}}]',
        "mongodb_collections[0]['timeseries']['metafield'] = 'm': unknown key; did you mean metaField? "
        "Allowed are timeField, metaField, granularity",
    ),
    "text in the place of a dict": (
        'mongodb_users = ["anna"]',
        "mongodb_users[0] = 'anna': must be a dict with name, database, roles",
    ),
    "no way to check host keys": (
        'ssh_strict_host_key_checking = "maybe"',
        "ssh_strict_host_key_checking = 'maybe': must be 'accept-new', 'yes', 'no', 'off' or 'ask'",
    ),
    "ssh user as a number": ("ssh_user = 7", "ssh_user = 7: must be a text"),
    "none of several types": (
        'app_environment = {"DEBUG": [1]}\napp_source = "examples/app"',
        "app_environment['DEBUG']: must be a text or a whole number or True or False or a Secret(\"…\")",
    ),
    "neither name nor address": (
        'base_time_servers = ["a b"]',
        "base_time_servers[0] = 'a b': must be a host name such as app.example.org or an IP address",
    ),
    "no owner of a collection": (
        'mongodb_collections = [{"database": "x", "name": "y"}]',
        "mongodb_collections: x.y: no user of mongodb_users has readWrite on that database",
    ),
    "version of another series": ('mongodb_version = "6.0.1"', "mongodb_version: 6.0.1 is not of the series 7.0"),
    "no address": ('private_address = "db1"', "private_address = 'db1': must be an IP address such as 10.0.0.5"),
    "flow from nowhere": (
        'flows = [{"source": "moon", "role": "mongodb", "port": 1}]',
        "flows: source 'moon' is no role, no external, no network",
    ),
    "a setting's source from nowhere": (
        'base_ssh_sources = ["moon"]',
        "base_ssh_sources: source 'moon' is no role, no external, no network",
    ),
    "flow to no port": (
        'flows = [{"source": "internet", "role": "mongodb", "port": True}]',
        "flows[0]['port'] = True: must be a whole number",
    ),
    "external that is none": ('externals = ["db.example.org"]', "externals[0] = 'db.example.org': must be external("),
    "an option for a package": (
        'app_packages = ["-oDebug::x=1"]\napp_source = "examples/app"',
        "app_packages[0] = '-oDebug::x=1'",
    ),
    "no source there": ('app_source = "examples/ap"', "app_source = 'examples/ap': "),
    "everybody at mongodb": (
        'flows = [{"source": "internet", "role": "mongodb", "port": 27017}]',
        'flows: "internet" to mongodb is refused',
    ),
    "a public network at mongodb without TLS": (
        'flows = [{"source": "198.51.100.0/24", "role": "mongodb", "port": 27017}]',
        "flows: 198.51.100.0/24 reaches mongodb from 198.51.100.0/24, which is no private network, and without TLS",
    ),
    "no such authority": (
        'mongodb_tls_authority = "nowhere.pem"',
        "mongodb_tls_authority = 'nowhere.pem': No such file or directory",
    ),
}
ELSEWHERE = {
    "two roles on one port": ("mongodb_port = 22", "port 22 is wanted by base and mongodb"),
    "too little memory": ("hardware_memory = 512", "512 MiB of memory leave 409 MiB for mongodb, which needs"),
}
"""What no single line is to blame for: the host is named."""


def _refused(done, message: str) -> None:
    """One error, in words, with a status, and no host so much as logged in to."""
    assert done.returncode != 0
    assert message in done.stderr
    assert "1 thing to put right, nothing was changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Connected" not in done.stderr and "Starting operation" not in done.stderr


def _with(directory, text: str):
    group_data(directory, "all", f"# settings\n{text}\n")
    return inventory(directory, ["mongodb", "app"] if "app_" in text else ["mongodb"])


@pytest.mark.parametrize("case", CASES)
def test_refused_in_words(tmp_path, case):
    text, message = CASES[case]
    path = _with(tmp_path, text)
    if case == "no address":
        path.write_text(path.read_text().replace('"private_address": "10.0.0.5",', ""))
    _refused(run(path, "deploy.py", "-y"), f"{tmp_path}/group_data/all.py:2: {message}")


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_combination_is_refused_in_words(tmp_path, case):
    text, message = ELSEWHERE[case]
    done = run(_with(tmp_path, text), "deploy.py", "-y")
    _refused(done, message)
    assert "(on @fake/one)" in done.stderr


def test_what_only_the_host_can_tell_is_refused_before_a_change(tmp_path):
    """Which series are published depends on the distribution: the host was asked, and left alone."""
    done = run(_with(tmp_path, 'mongodb_series = "4.4"'), "deploy.py", "-y")
    assert done.returncode != 0 and "Traceback" not in done.stderr and "Starting operation" not in done.stderr
    assert "all.py:2: mongodb_series: the vendor publishes no 4.4 for debian bookworm" in done.stderr


def test_the_last_assignment_counts_and_is_named(tmp_path):
    path = _with(tmp_path, "mongodb_port = 27017\n\nmongodb_port = 0")
    _refused(run(path, "deploy.py", "-y"), "all.py:4: mongodb_port = 0:")


def test_of_two_hosts_the_right_one_is_named(tmp_path):
    path = inventory(tmp_path, ["mongodb"])
    right = '_two = ("@fake/two", {**_host[1], "private_address": "10.0.0.6", "redis_port": 6380})\n'
    wrong = '_three = ("@fake/three", {**_host[1], "private_address": "10.0.0.7", "redis_port": 0})\n'
    path.write_text(path.read_text() + right + wrong + "redis = [_two, _three]\n")
    line = path.read_text().splitlines().index(wrong.strip()) + 1
    _refused(run(path, "deploy.py", "-y"), f"try_out.py:{line}: redis_port = 0:")


def test_what_two_hosts_share_is_said_once(tmp_path):
    path = _with(tmp_path, 'app_source = "examples/ap"')
    path.write_text(path.read_text() + 'app += [("@fake/two", {**_host[1], "private_address": "10.0.0.6"})]\n')
    done = run(path, "deploy.py", "-y")
    _refused(done, "all.py:2: app_source = 'examples/ap'")
    assert "(on @fake/one, @fake/two)" in done.stderr


def test_all_errors_come_together(tmp_path):
    group_data(tmp_path, "all", 'mongodb_port = 0\nmongodb_prot = 1\nenvironment = 3\n')
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y")
    assert "3 things to put right" in done.stderr


def test_what_does_not_go_together_is_said_with_what_is_refused_alone(tmp_path):
    """But nothing of what needs the refused setting itself: the port that is none is wanted by nobody."""
    users = 'mongodb_users = [{"name": "a", "database": "d"}, {"name": "a", "database": "e"}]'
    flow = 'flows = [{"source": "moon", "role": "mongodb", "port": 1}]'
    group_data(tmp_path, "all", f'redis_port = 0\n{users}\n{flow}\nmongodb_port = 22\n')
    done = run(inventory(tmp_path, ["mongodb", "redis"]), "deploy.py", "-y")
    assert "3 things to put right, nothing was changed" in done.stderr and "Traceback" not in done.stderr
    for words in ("all.py:1: redis_port = 0:", "all.py:2: mongodb_users: 'a' is there twice", "all.py:3: flows: source 'moon'"):
        assert words in done.stderr


def test_a_name_that_is_no_address(tmp_path):
    path = tmp_path / "names.py"
    path.write_text('docker = ["web1"]\nredis = ["web1"]\n')
    _refused(run(path, "deploy.py", "-y"), "private_address is not set, and 'web1' is not an address")


def test_a_missing_secret_says_where_it_was_looked_for(tmp_path):
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y", secrets=False)
    _refused(done, "secret: mongodb/admin: neither in the environment (GROUNDWORK_SECRET_MONGODB_ADMIN) nor in")
    assert "add --generate mongodb/admin " in done.stderr


def test_a_host_without_a_role(tmp_path):
    done = run(inventory(tmp_path, ["others"]), "deploy.py", "-y")
    _refused(done, "@fake/one: is in no role's group (base, ")


def test_a_group_without_a_host(tmp_path):
    """One role alone, asked for where no host has it, would end with status 0 and nothing done."""
    path = inventory(tmp_path, ["mongodb"])
    path.write_text(path.read_text() + "redis = []\n")
    done = run(path, "tasks.redis.redis", "-y")
    assert done.returncode != 0 and "none of the hosts is in the group redis: @fake/one" in done.stderr
    assert "Connecting to hosts" not in done.stderr and "Traceback" not in done.stderr


def test_a_group_that_is_nearly_a_role(tmp_path):
    done = run(inventory(tmp_path, ["mongodb", "reddis"]), "deploy.py", "-y")
    _refused(done, "try_out.py: group reddis: is no role; did you mean redis?")


def test_two_hosts_with_one_address(tmp_path):
    path = inventory(tmp_path, ["mongodb"])
    path.write_text(path.read_text() + 'redis = [("@fake/two", _host[1])]\n')
    done = run(path, "deploy.py", "-y")
    _refused(done, "private_address: @fake/one and @fake/two have the same, 10.0.0.5")


def test_two_hosts_of_one_name(tmp_path):
    """pyinfra would make one host of both, with the later's address."""
    path = inventory(tmp_path, ["mongodb"])
    line = len(path.read_text().splitlines()) + 1
    path.write_text(path.read_text() + '_a = ("@fake/two", {"private_address": "10.0.0.6"})\n')
    path.write_text(path.read_text() + 'redis = [_a]\ndocker = [("@fake/two", {"private_address": "10.0.0.7"})]\n')
    done = run(path, "deploy.py", "-y")
    assert done.returncode != 0 and f"{path}:{line},{line + 2}: two hosts are called @fake/two" in done.stderr
    assert "Traceback" not in done.stderr and "Connecting to hosts" not in done.stderr


def test_one_host_that_is_written_twice(tmp_path):
    path = inventory(tmp_path, ["mongodb"])
    path.write_text(path.read_text() + 'redis = [("@fake/one", {**_host[1]})]\ndocker = ["@fake/one"]\nchromadb = [("@fake/one", {})]\n')
    assert run(path, "deploy.py", "-y", "--dry").returncode == 0


def test_what_is_no_host(tmp_path):
    path = inventory(tmp_path, ["mongodb"])
    path.write_text(path.read_text() + 'redis = [("one",)]\n')
    done = run(path, "deploy.py", "-y")
    assert done.returncode != 0 and "redis: a host is its name, or a pair" in done.stderr and "Traceback" not in done.stderr


def test_a_host_in_the_place_of_a_group(tmp_path):
    """pyinfra would read the letters of its name as hosts."""
    path = inventory(tmp_path, ["mongodb"])
    path.write_text(path.read_text() + 'web1 = ("web1", {"private_address": "10.0.0.7"})\n')
    done = run(path, "deploy.py", "-y")
    line = len(path.read_text().splitlines())
    assert done.returncode != 0 and f"{path}:{line}: pyinfra would read 'web1' as a group with the hosts 'w', 'e', 'b'…" in done.stderr
    assert "(_web1)" in done.stderr and "Traceback" not in done.stderr and "Connecting to hosts" not in done.stderr


def test_from_another_directory_nothing_is_done(tmp_path):
    path = inventory(tmp_path, ["mongodb"])
    done = run(path, str(ROOT / "deploy.py"), "-y", directory=tmp_path)
    assert done.returncode != 0 and "config.py was not read: run pyinfra in" in done.stderr


@pytest.mark.parametrize("operation", [str(ROOT / "deploy.py"), "tasks.redis.redis"])
def test_from_another_directory_nothing_is_connected_to(tmp_path, operation):
    """Group data is read in any case, and says so before a connection."""
    done = run(ROOT / "inventories" / "static.py", operation, "-y", directory=tmp_path)
    assert done.returncode != 0 and f"run pyinfra in the repository's root: cd {ROOT} (and then" in done.stderr
    assert "Traceback" not in done.stderr and "Connecting to hosts" not in done.stderr


def test_a_limit_that_matches_nothing(tmp_path):
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y", "--limit", "typo")
    assert done.returncode != 0 and "--limit typo matches none of the hosts: @fake/one" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_terminal_it_says_what_to_add(tmp_path):
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py")
    assert done.returncode != 0 and "nobody to ask: add -y" in done.stderr


def test_a_value_in_the_place_of_a_secret_is_not_printed(tmp_path):
    group_data(tmp_path, "all", 'nginx_tls_key = "the-key-itself"\nnginx_frontend = "examples/frontend"\n')
    done = run(inventory(tmp_path, ["nginx"]), "deploy.py", "-y")
    assert done.returncode != 0 and "nginx_tls_key" in done.stderr
    assert "the-key-itself" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "inventory_name, operation, message",
    [
        ("no_such.py", "deploy.py", "no_such.py: there is no such inventory file"),
        ("try_out.py", "tasks/nginx.py", "one role alone is tasks.nginx.nginx"),
        ("try_out.py", "tasks.nginx", "one role alone is tasks.nginx.nginx"),
        ("try_out.py", "tasks.redis.redis", "none of the hosts is in the group redis: @fake/one"),
    ],
)
def test_what_would_do_nothing_is_an_error(tmp_path, inventory_name, operation, message):
    inventory(tmp_path, ["mongodb"])
    done = run(tmp_path / inventory_name, operation, "-y")
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_wait_is_refused(tmp_path):
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y", "--no-wait")
    assert done.returncode != 0 and "--no-wait" in done.stderr


def test_a_misspelled_template_variable(tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests"))
    template = checkout / "templates" / "mongodb" / "mongosh.conf.j2"
    before = template.read_text()
    template.write_text(before + "{{ settings.prot }}\n")
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y", directory=checkout)
    line = before.count("\n") + 1
    _refused(done, f"templates/mongodb/mongosh.conf.j2:{line}: 'tasks.mongodb.Settings object' has no attribute 'prot'")
    assert "for /etc/mongosh.conf on @fake/one" in done.stderr


def test_a_value_on_the_command_line_is_named_so(tmp_path):
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y", "--data", "mongodb_port=99999")
    _refused(done, "--data mongodb_port: mongodb_port = 99999:")


def test_data_without_a_value(tmp_path):
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y", "--data", "mongodb_port")
    assert done.returncode != 0 and "--data mongodb_port: say it as KEY=VALUE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text, message",
    [
        ("mongodb_port = 27017\nmongodb_users = [", "all.py:3: SyntaxError: '[' was never closed"),
        ("mongodb_users = [anna]", "all.py:2: NameError: name 'anna' is not defined"),
        ('from groundwork.secrets import Secret\nx = Secret("A B")', "all.py:3: a secret is given by its name"),
        (
            'from groundwork.topology import external\nexternals = [external("office", networks=["10.0.0.0/33"])]',
            "all.py:3: external('office'): networks: '10.0.0.0/33' is not a network such as",
        ),
    ],
)
def test_an_inventory_that_can_not_be_read(tmp_path, text, message):
    done = run(_with(tmp_path, text), "deploy.py", "-y")
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr and "Connecting to hosts" not in done.stderr


@pytest.mark.parametrize(
    "content, message", [(None, "there is no such file"), ("rubbish", "is no private key that can be read")]
)
def test_an_ssh_key_that_can_not_be_used(tmp_path, content, message):
    key = tmp_path / "id_ed25519"
    if content:
        key.write_text(content)
    done = run(_with(tmp_path, f"ssh_key = {str(key)!r}"), "deploy.py", "-y")
    _refused(done, f"all.py:2: ssh_key = {str(key)!r}: {message}")


def test_from_inside_inventories(tmp_path):
    """There, lab.py would be taken for the package lab."""
    done = run(ROOT / "inventories" / "lab.py", "../deploy.py", "-y", directory=ROOT / "inventories")
    assert done.returncode != 0 and "run pyinfra in the repository's root: cd .." in done.stderr
    assert "Traceback" not in done.stderr


def test_serial_is_refused(tmp_path):
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y", "--serial")
    assert done.returncode != 0 and "--serial is refused" in done.stderr


@pytest.mark.parametrize("limit", [["nosuch"], ["one", "--limit", "nosuch"]])
def test_every_limit_must_match(tmp_path, limit):
    done = run(inventory(tmp_path, ["mongodb"], base_hostname="one"), "deploy.py", "-y", "--limit", *[w.replace("one", "mongodb") for w in limit])
    assert done.returncode == 1 and "--limit nosuch matches none of the hosts" in done.stderr


def test_an_inventory_without_hosts(tmp_path):
    path = tmp_path / "none.py"
    path.write_text("redis = []\n")
    done = run(path, "deploy.py", "-y")
    assert done.returncode == 1 and "has no hosts" in done.stderr
