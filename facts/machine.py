"""What a host is."""

from pyinfra.api import FactBase

from groundwork.topology import LINK_INTERFACE
from groundwork.topology import Machine as MachineData

BOOT = "/proc/sys/kernel/random/boot_id"
"""Tells one boot from another (random(4)); systemd-nspawn gives each boot of a container its own."""

SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""Four bytes of attributes, and 1 where it is on (UEFI specification, "Globally Defined Variables")."""


class Machine(FactBase):
    """Distribution, hardware and room of a host, in one question.

    Gives a `groundwork.topology.Machine`, or None where the answer can't be read.
    """

    FIRST = "distribution="
    """What the answer begins with."""

    def command(self) -> str:
        return (
            f'. /etc/os-release; echo "{self.FIRST}$ID"; echo "codename=$VERSION_CODENAME"; '
            'echo "architecture=$(dpkg --print-architecture)"; echo "cores=$(nproc)"; '
            'read -r name memory unit </proc/meminfo; echo "memory=$memory"; '  # MemTotal is the first line (proc(5))
            # systemd's own note ("Container Interface"), and those of Docker and Podman.
            'echo "container=$(cat /run/systemd/container 2>/dev/null || ls /.dockerenv /run/.containerenv 2>/dev/null)"; '
            f"for mark in {_marks()}; do [ -e $mark ] && echo mark=$mark; done; "
            "[ -d /var/lib/groundwork ] && echo known=yes; "
            # Enabled or active, as is-enabled and is-active have it: one call to systemd in place of two.
            "systemctl show -p UnitFileState,ActiveState ssh.socket 2>/dev/null | "
            "grep -qE '^(UnitFileState=(enabled|static|alias|indirect|generated)|ActiveState=(active|reloading))' && echo ssh_socket=yes; "
            # NVIDIA's, of the class of displays and 3D controllers: their sound, too, is a device of its own.
            "for card in $(grep -ls 0x10de /sys/bus/pci/devices/*/vendor); do card=${card%/vendor}; "
            "grep -qs ^0x03 $card/class && sed 's/^0x/card=/' $card/device; done; "
            f"[ -e {SECURE_BOOT} ] && [ \"$(od -An -tu1 -j4 -N1 {SECURE_BOOT} 2>/dev/null | tr -d ' ')\" = 1 ] && echo secure_boot=yes; "
            # Its generator says that it is to run at this boot, and its last stage what came of it.
            "cd /run/cloud-init 2>/dev/null && [ -e enabled ] && { [ ! -e result.json ] || [ ! -d /var/lib/groundwork ]; } && "
            "! grep -qs '\"errors\": \\[\\]' result.json && echo booting=yes; "
            f"ip -o route show | sed -n '/ dev {LINK_INTERFACE}\\( \\|$\\)/d; s/^\\([0-9.]*\\/[0-9]*\\) .*dev \\([^ ]*\\).*/network=\\1 \\2/p'; "
            "df --output=avail -k / | sed -n '2s/^ */disk_free=/p'"
        )

    def process(self, output):
        output = list(output)
        found = dict(line.split("=", 1) for line in output if "=" in line)
        return MachineData(
            distribution=found["distribution"],
            codename=found.get("codename", ""),
            architecture=found["architecture"],
            memory=int(found["memory"]) // 1024,
            cores=int(found["cores"]),
            container=found["container"] not in ("none", ""),
            disk_free=int(found["disk_free"]) // 1024,
            known="known" in found,
            marks=frozenset(line[5:] for line in output if line.startswith("mark=")),
            networks=tuple(tuple(line[8:].split()) for line in output if line.startswith("network=")),
            ssh_socket="ssh_socket" in found,
            cards=tuple(line[5:] for line in output if line.startswith("card=")),
            secure_boot="secure_boot" in found,
            booting="booting" in found,
        )


def _marks() -> str:
    from groundwork.roles import all_roles  # which imports this

    return " ".join(settings.mark for settings in all_roles().values())
