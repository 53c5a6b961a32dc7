#!/bin/sh
# What a first run can't do without, and no more: the same packages from the same repositories in one apt transaction,
# the same Python environments by the same uv, and the same services started, with no configuration of ours.
# bench/first_run.py sends it to a bare host with what it needs beside it, and runs it there as root.
#
#   sh floor.sh PACKAGE…
set -eu
cd "$(dirname "$0")"

install -D -m 644 key.asc /etc/apt/keyrings/mongodb-org.asc
install -m 644 mongodb-org.sources /etc/apt/sources.list.d/mongodb-org.sources
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
apt-get -qq update
apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install "$@" >/dev/null

install -d -m 700 /var/cache/groundwork/uv
gzip -d uv.gz && chmod 755 uv
export UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1 UV_NO_CONFIG=1 UV_CACHE_DIR=/var/cache/groundwork/uv
for name in chromadb app; do
    ./uv venv --quiet --python /usr/bin/python3 /opt/$name
    ./uv pip install --quiet --compile-bytecode --no-build --require-hashes --python /opt/$name/bin/python -r $name.txt
done

# The packages start docker, containerd, redis, nginx, fail2ban and unattended-upgrades themselves.
systemctl enable --quiet --now mongod.service nftables.service
mkdir -p /srv && cp -r app /srv/app
systemd-run --quiet --unit=chromadb -p Type=exec -p Restart=always -p StateDirectory=chromadb \
    /opt/chromadb/bin/chroma run --path /var/lib/chromadb
systemd-run --quiet --unit=app -p Type=notify -p WorkingDirectory=/srv/app -p RuntimeDirectory=app \
    -E MONGO_URI=mongodb://127.0.0.1/items -E MONGO_DB=items -E REDIS_URL=redis://127.0.0.1 \
    -E CHROMA_SERVER_HOST=127.0.0.1 -E CHROMA_SERVER_PORT=8000 \
    /opt/app/bin/gunicorn -w 3 -k uvicorn_worker.UvicornWorker -b unix:/run/app/app.sock app.main:app
