"""The lab reads pyinfra inventories, and refuses what it could not boot in one sentence."""

import pytest

from lab import lab_host, settings
from lab.__main__ import main
from lab.inventory import read
from lab.settings import LabError

ADDRESS = f"{settings.PREFIX}.11"


@pytest.fixture
def inventory(tmp_path):
    """Write an inventory file and return its path; N is the lab's network without its last octet, O the office's."""

    def write(text: str) -> str:
        file = tmp_path / "inventory.py"
        file.write_text(f"from lab import lab_host\nN, O = {settings.PREFIX!r}, {settings.OFFICE_PREFIX!r}\n{text}\n")
        return str(file)

    return write


def test_a_lab_host_is_a_pyinfra_host():
    name, data = lab_host("demo", ADDRESS, memory=1024, nginx_port=8080)
    assert name == "demo"
    assert data["ssh_hostname"] == data["private_address"] == ADDRESS
    assert data["ssh_strict_host_key_checking"] == "yes"
    assert data["hardware_memory"] == 1024
    assert data["nginx_port"] == 8080


def test_what_is_particular_to_a_host_is_kept(inventory):
    (host,) = read(inventory('a = [lab_host("a", N + ".11", user_data="#cloud-config", ssh_socket=True)]'))
    assert host.options == {"user_data": "#cloud-config", "ssh_socket": True}
    assert read(inventory('a = [lab_host("a", N + ".11")]'))[0].options == {}


def test_a_host_may_be_in_the_office(inventory):
    (cloud, office) = read(inventory('a = [lab_host("a", N + ".11"), lab_host("b", O + ".11")]'))
    assert (settings.bridge(cloud.address), settings.bridge(office.address)) == (settings.BRIDGE, settings.OFFICE_BRIDGE)


def test_hosts_are_found_once_in_lists_and_in_groups_with_data(inventory):
    hosts = read(inventory('_a = lab_host("a", N + ".11")\n_b = lab_host("b", N + ".12", suite="trixie")\n'
                           'web = [_a, "elsewhere.example"]\ndata = ([_a, _b], {"some_setting": 1})\nother = ["x"]'))  # fmt: skip
    assert [(host.name, host.address, host.suite) for host in hosts] == [
        ("a", f"{settings.PREFIX}.11", "bookworm"),
        ("b", f"{settings.PREFIX}.12", "trixie"),
    ]


@pytest.mark.parametrize(
    "text, says",
    [
        ('a = lab_host("demo", N + ".11")', "name it '_a'"),
        ('a = [lab_host("a", N + ".11"), lab_host("b", N + ".11")]', "b and a cannot both have the address"),
        ('a = [lab_host("a", N + ".11")]\nb = [lab_host("a", N + ".12")]', "a is declared twice"),
        ('a = [lab_host("a", "192.0.2.1")]', f"192.0.2.1 is not a host's address in the lab's networks {settings.NETWORK} "),
        ('a = [lab_host("a", "192.0.2.1")]', f" and {settings.OFFICE} (the office"),
        ('a = [lab_host("a", "nonsense")]', "nonsense is not a host's address"),
        ('a = [lab_host("a", N + ".1")]', "a and the controller cannot both"),
        ('a = [lab_host("a", O + ".1")]', "a and the controller cannot both"),
        ('a = [lab_host("a", O + ".11"), lab_host("b", O + ".11")]', "b and a cannot both have the address"),
        ('a = [lab_host("a", O + ".255")]', "not a host's address"),
        ('a = [lab_host("a", N + ".255")]', "not a host's address"),
        ('a = [lab_host("a", N + ".11", suite="sid")]', "no suite 'sid'"),
        ('a = [lab_host("A b", N + ".11")]', "'A b' is no host name"),
        ('a = ["elsewhere.example"]', "no lab host in this inventory"),
        ("a = 1 / 0", "could not be read: ZeroDivisionError"),
        ("a = (", "could not be read: SyntaxError"),
    ],
)
def test_what_could_not_be_booted_is_refused(inventory, text, says):
    with pytest.raises(LabError) as error:
        read(inventory(text))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused():
    with pytest.raises(LabError, match="there is no such inventory file"):
        read("nowhere.py")


def test_where_no_lab_can_run_one_sentence_says_what_to_do_instead(monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["list"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lab: The lab needs root")
    assert "Point an inventory at any host with SSH and sudo instead" in shown.err
    assert shown.err.count("\n") == 1
