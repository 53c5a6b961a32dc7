"""apt repositories: the source as apt reads it, and keys known by their fingerprint."""

from __future__ import annotations

import base64

import pytest

from facts.packages import Sources
from operations.repository import fingerprints, key_error, more_components, source

FINGERPRINT = "1CB00574BF8EAA96175443C7E006EF5422E71218"
KEY = """-----BEGIN PGP PUBLIC KEY BLOCK-----
Comment: made by gpg 2.2 for this test, which is what named its fingerprint

mDMEawRHcRYJKwYBBAHaRw8BAQdAA7UZPfCXQcSeScVcvpcj6zojpV86Dd0DTKka
YT1dOVe0BFRlc3SIkAQTFggAOBYhBBywBXS/jqqWF1RDx+AG71Qi5xIYBQJrBEdx
AhsDBQsJCAcCBhUKCQgLAgQWAgMBAh4BAheAAAoJEOAG71Qi5xIYNU4BAL3Q/IzI
m5JDocXKEUqtGtmrHUKuciliDZfL4R8QKsAKAQD6UtciumEacEdvUOtnq/qAA1p6
24rrQtdLGZ6l1Ik7Dg==
=rWK8
-----END PGP PUBLIC KEY BLOCK-----
"""


def test_a_keys_fingerprint():
    assert fingerprints(KEY) == [FINGERPRINT]
    assert key_error(KEY, FINGERPRINT) is None
    assert key_error(KEY, "") is None


def test_another_key_or_one_more_is_refused():
    assert "shall hold " + "0" * 40 in key_error(KEY, "0" * 40)
    assert "1CB0" in key_error(KEY + KEY, FINGERPRINT)


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "<html>404</html>",
        base64.b64encode(b"\x98\x33\x04").decode(),
        KEY.replace("mDME", "mDM!"),
        KEY.replace("PUBLIC KEY", "PRIVATE KEY"),
        "\n".join(line for line in KEY.splitlines() if not line.startswith("YT1d")),
    ],
)
def test_what_is_no_key_is_refused(broken):
    assert key_error(broken, "")


def test_a_source():
    suites = ["jammy", "jammy-updates"]
    text = source("/k.asc", ["https://a/x"], suites, ["main"], "https://a/key", FINGERPRINT)
    fields = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert fields == {
        "Types": "deb",
        "URIs": "https://a/x",
        "Suites": "jammy jammy-updates",
        "Components": "main",
        "Signed-By": "/k.asc",
    }
    assert "# Key: https://a/key " + FINGERPRINT in text


def test_a_flat_source_has_no_components_and_an_operators_path_is_not_told():
    text = source("/k.asc", ["https://a/x"], ["./"], [], "/home/anna/key.asc", "")
    assert "Components" not in text and "anna" not in text and "# Key" not in text


HOSTS_OWN = """\
F|/etc/apt/sources.list
L|# deb http://old.example/debian bookworm main non-free
L|deb [arch=amd64 signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian/ bookworm-backports main
L|deb-src http://mirror.example/debian bookworm main
F|/etc/apt/sources.list.d/debian.sources
L|Types: deb deb-src
L|URIs: http://mirror.example/debian
L|Suites: bookworm bookworm-updates
L|Components: main
L|# a comment
L| contrib
L|Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
L|
L|Types: deb
L|URIs: http://mirror.example/debian-security
L|Suites: bookworm-security
L|Components: main contrib non-free non-free-firmware
L|
L|Types: deb
L|Enabled: no
L|URIs: http://off.example/debian
L|Suites: bookworm
L|Components: main
F|/etc/apt/sources.list.d/docker.sources
L|Types: deb
L|URIs: https://vendor.example/debian
L|Suites: bookworm
L|Components: stable
""".splitlines()
NON_FREE = ["contrib", "non-free", "non-free-firmware"]


def test_more_components_come_from_where_the_host_has_the_others():
    text = more_components(Sources().process(HOSTS_OWN), "bookworm", NON_FREE)
    stanzas = [dict(line.split(": ", 1) for line in stanza.splitlines() if line[:1] != "#") for stanza in text.split("\n\n")]
    signed = {"Signed-By": "/usr/share/keyrings/debian-archive-keyring.gpg"}
    common = {"Types": "deb", "URIs": "http://mirror.example/debian"}
    assert [stanza for stanza in stanzas if stanza] == [
        {**common, "Suites": "bookworm-backports", "Components": "contrib non-free non-free-firmware", "Signed-By": "/usr/share/keyrings/debian.gpg"},
        {**common, "Suites": "bookworm", "Components": "non-free non-free-firmware", **signed},
        {**common, "Suites": "bookworm-updates", "Components": "non-free non-free-firmware", **signed},
    ]


def test_a_host_that_has_them_gets_nothing_more():
    lines = [line.replace("main", "main restricted").replace("bookworm", "noble") for line in HOSTS_OWN]
    assert more_components(Sources().process(lines), "noble", ["restricted"]) == ""
    assert more_components([], "noble", ["restricted"]) == ""
