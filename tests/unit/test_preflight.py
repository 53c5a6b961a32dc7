"""Bad input: one clear error, before any host is touched, and a status that is not 0."""

from __future__ import annotations

import pytest
from tests.unit.pyinfra_fake import ROOT, group_data, inventory, run

CASES = {
    "unknown key": ("mongodb_prot = 27018", "all.py:2: mongodb_prot: unknown key; did you mean mongodb_port?"),
    "wrong type": ('mongodb_port = "many"', "all.py:2: mongodb_port = 'many': input should be a valid integer"),
    "port out of range": ("mongodb_port = 70000", "mongodb_port = 70000: input should be less than or equal to 65535"),
    "duplicate user": (
        'mongodb_users = [{"name": "a", "database": "d"}, {"name": "a", "database": "e"}]',
        "mongodb_users: 'a' is there twice",
    ),
    "nested key": ('mongodb_users = [{"name": "a"}]', "mongodb_users[0]['database']: field required"),
    "no owner of a collection": (
        'mongodb_collections = [{"database": "x", "name": "y"}]',
        "no user of mongodb_users has readWrite on that database",
    ),
    "version of another series": ('mongodb_version = "6.0.1"', "mongodb_version: 6.0.1 is not of the series 7.0"),
    "unpublished series": ('mongodb_series = "4.4"', "the vendor publishes no 4.4 for debian bookworm"),
    "no address": ('private_address = "db1"', "'db1' is not an IP address such as 10.0.0.5"),
    "flow from nowhere": (
        'flows = [{"source": "moon", "role": "mongodb", "port": 1}]',
        "flows: source 'moon' is no role, no external, no network",
    ),
    "flow to no port": (
        'flows = [{"source": "internet", "role": "mongodb", "port": True}]',
        "flows[0]['port'] = True: input should be a valid integer",
    ),
    "external that is none": ('externals = ["db.example.org"]', "externals[0] = 'db.example.org'"),
    "two roles on one port": ("mongodb_port = 22", "port 22 is wanted by base and mongodb"),
    "an option for a package": (
        'app_packages = ["-oDebug::x=1"]\napp_source = "examples/app"',
        "app_packages[0] = '-oDebug::x=1'",
    ),
    "too little memory": ("hardware_memory = 512", "512 MiB of memory leave 409 MiB for mongodb, which needs"),
    "everybody on 0.0.0.0": (
        'mongodb_bind_addresses = ["0.0.0.0"]\nflows = [{"source": "internet", "role": "mongodb", "port": 27017}]',
        "mongodb_bind_addresses: 0.0.0.0 is refused",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_in_words(tmp_path, case):
    text, message = CASES[case]
    group_data(tmp_path, "all", f"# settings\n{text}\n")
    path = inventory(tmp_path, ["mongodb", "app"] if "app_" in text else ["mongodb"])
    if case == "no address":
        path.write_text(path.read_text().replace('"private_address": "10.0.0.5",', ""))
    done = run(path, "deploy.py", "-y")
    assert done.returncode != 0
    assert message in done.stderr
    assert "nothing was changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Starting operation" not in done.stderr


def test_all_errors_come_together(tmp_path):
    group_data(tmp_path, "all", 'mongodb_port = 0\nmongodb_prot = 1\nenvironment = 3\n')
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y")
    assert "3 things to put right" in done.stderr


def test_a_missing_secret_says_where_it_was_looked_for(tmp_path):
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y", secrets=False)
    assert done.returncode != 0
    assert "mongodb/admin" in done.stderr and "GROUNDWORK_SECRET_MONGODB_ADMIN" in done.stderr
    assert "Starting operation" not in done.stderr


def test_a_host_without_a_role(tmp_path):
    done = run(inventory(tmp_path, ["mongodbs"]), "deploy.py", "-y")
    assert done.returncode != 0 and "is in no role's group" in done.stderr


def test_a_group_that_is_nearly_a_role(tmp_path):
    done = run(inventory(tmp_path, ["mongodb", "reddis"]), "deploy.py", "-y")
    assert done.returncode != 0 and "group reddis: is no role; did you mean redis?" in done.stderr


def test_two_hosts_with_one_address(tmp_path):
    path = inventory(tmp_path, ["mongodb"])
    path.write_text(path.read_text() + 'redis = [("@fake/two", _host[1])]\n')
    done = run(path, "deploy.py", "-y")
    assert done.returncode != 0
    assert "private_address: @fake/one and @fake/two have the same, 10.0.0.5" in done.stderr


def test_from_another_directory_nothing_is_done(tmp_path):
    path = inventory(tmp_path, ["mongodb"])
    done = run(path, str(ROOT / "deploy.py"), "-y", directory=tmp_path)
    assert done.returncode != 0 and "config.py was not read: run pyinfra in" in done.stderr


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


def test_a_misspelled_template_variable(tmp_path, request):
    template = ROOT / "templates" / "mongodb" / "mongosh.conf.j2"
    before = template.read_text()
    request.addfinalizer(lambda: template.write_text(before))
    template.write_text(before + "{{ settings.prot }}\n")
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y")
    assert done.returncode != 0
    assert "templates/mongodb/mongosh.conf.j2" in done.stderr and "prot" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_value_on_the_command_line_is_named_so(tmp_path):
    done = run(inventory(tmp_path, ["mongodb"]), "deploy.py", "-y", "--data", "mongodb_port=99999")
    assert done.returncode != 0 and "--data mongodb_port" in done.stderr
