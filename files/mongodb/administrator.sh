# Makes the first administrator, while nobody but root can knock: mongod listens on one unix socket in a
# 0700 directory and on no TCP port, where the localhost exception lets the first user be made and no
# other. $1 is the data directory. The script for Python, which holds the password, is standard input.
set -eu
data=$1
unit=groundwork-mongodb-administrator
private=/run/$unit
marker=/var/lib/groundwork/mongodb-administrator

# A run that was cut off may have left it running, holding the data directory.
systemctl stop $unit 2>/dev/null || true
mkdir -p /var/lib/groundwork
cut_off=
if [ -e $marker ]; then
  cut_off=yes
  # One that started on it meanwhile would go on with files that are put aside below.
  systemctl stop mongod
fi
# While the marker is there, the data directory holds nothing but what this script made, and mongod.service
# does not start (its drop-in).
touch $marker

trap 'systemctl stop $unit 2>/dev/null || true' EXIT

start() {
  systemd-run --quiet --unit=$unit --collect -p User=mongodb -p Group=mongodb \
    -p RuntimeDirectory=$unit -p RuntimeDirectoryMode=0700 -p TimeoutStopSec=120 \
    /usr/bin/mongod --auth --dbpath "$data" --bind_ip $private/mongod.sock --wiredTigerCacheSizeGB 0.25
  end=$(($(date +%s) + 60))
  until [ -S $private/mongod.sock ]; do
    if [ "$(date +%s)" -ge $end ] || ! systemctl is-active --quiet $unit; then return 1; fi
    sleep 0.05
  done
}

if ! start && [ "$cut_off" ]; then
  # A host that lost its power in the very first start has files that mongod does not take. Put aside, not removed.
  systemctl stop $unit 2>/dev/null || true
  systemctl reset-failed $unit 2>/dev/null || true
  rm -rf $marker.half
  mkdir -m 700 $marker.half
  find "$data" -mindepth 1 -maxdepth 1 ! -name lost+found -exec mv -t $marker.half {} +
  start || true
fi
if ! [ -S $private/mongod.sock ]; then
  echo 'mongod did not start on the empty data directory:' >&2
  journalctl --no-pager -o cat -n 20 -u $unit >&2
  exit 1
fi
/usr/bin/python3 -I -S -
systemctl stop $unit
rm -f $marker
sync /var/lib/groundwork
