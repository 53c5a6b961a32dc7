#!/bin/sh
# Makes bench/.venv/ansible (requirements.txt beside this file) and bench/.venv/stock (pyinfra alone, as in the main environment).
set -eu
cd "$(dirname "$0")/.."
main=.venv/bin/python
uv=.venv/bin/uv
export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1

# The newest Python that is installed; pyenv's, too, whose names on the PATH may lead nowhere.
newest() {
  for python in "$HOME"/.pyenv/versions/3.1[2-4]*/bin/python python3.14 python3.13 python3.12 "$main"; do
    if "$python" -c '' 2>/dev/null; then echo "$python"; return; fi
  done
}

echo "==> environments in bench/.venv"
rm -rf bench/.venv
"$uv" venv -q --python "$(newest)" bench/.venv/ansible
"$uv" pip install -q --python bench/.venv/ansible/bin/python -r bench/requirements.txt
"$uv" venv -q --python "$main" bench/.venv/stock
"$uv" pip freeze -q --python "$main" --exclude-editable >bench/.venv/constraints.txt
"$uv" pip install -q --python bench/.venv/stock/bin/python pyinfra pyyaml -c bench/.venv/constraints.txt
# As ours is (bootstrap.sh): pyinfra keeps no compiled module that it imports late.
for python in bench/.venv/*/bin/python; do "$python" -m compileall -qq -j 0 "${python%/bin/python}/lib" || :; done
