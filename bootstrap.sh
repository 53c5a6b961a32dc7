#!/bin/sh
# Makes the controller's environment in $1: a Python with what requirements.txt pins, by uv.
# Installs what Debian or Ubuntu needs for that, when it is missing and we may.
set -eu
venv=${1:-.venv}
uv=$(sed -n 's/^uv==/uv==/p' requirements.txt)

missing=
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3 python3-venv"
command -v git >/dev/null || missing="$missing git"
command -v ssh >/dev/null || missing="$missing openssh-client"
if [ -n "$missing" ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Please install$missing first; then run this again." >&2
    exit 1
  fi
  echo "==> installing$missing"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $missing >/dev/null
fi

# Behind a proxy that looks into TLS, only the machine's own store knows its authority. (uv's two names.)
export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1
echo "==> environment in $venv, from requirements.txt"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check "$uv"
"$venv/bin/uv" pip install -q --python "$venv/bin/python" -r requirements.txt
# Compiled now, and not by the first run; nor by each one, half a second of it, where Python is told to write nothing
# (PYTHONDONTWRITEBYTECODE) or the environment is somebody else's. (uv's --compile-bytecode leaves out what is installed
# already; a file that is no Python of today is nobody's concern.)
"$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" groundwork tasks facts operations lab || :
