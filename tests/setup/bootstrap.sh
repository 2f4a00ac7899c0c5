#!/usr/bin/env bash
# Make this checkout ready for its tests: Debian packages, .venv, VictoriaLogs. Quick when it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
policy_is_ours=no
cleanup() {
    rm -f "$log"
    [ "$policy_is_ours" = no ] || rm -f "$policy"
}
trap cleanup EXIT

# step TEXT COMMAND...: run it in silence; all that it said if it fails.
step() {
    local text=$1
    shift
    echo "bootstrap: $text"
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        echo "bootstrap: failed: $text" >&2
        exit 1
    fi
}

# The newest usable python3 from 3.10 on; a version manager's shim can be there and not work.
newest_python() {
    local name
    for name in python3.{19..10} python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# Packages that are not installed, of those that the tests (first line) and building Borg need.
missing_packages() {
    local package packages python
    packages="rsync openssh-server openssh-client systemd util-linux mount sudo procps
        xfsprogs btrfs-progs e2fsprogs
        gcc pkg-config libacl1-dev libssl-dev liblz4-dev libzstd-dev libxxhash-dev"
    if python=$(newest_python); then
        "$python" -c 'import ensurepip, venv' 2>/dev/null || packages+=" python3-venv"
        "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
            packages+=" python3-dev"
    else
        packages+=" python3 python3-venv python3-dev"
    fi
    # Docker's own packages do as well, and can't be installed beside Debian's.
    command -v dockerd >/dev/null || packages+=" docker.io"
    # One call for all: dpkg-query takes a while, and fails where it knows one of them only by name.
    local installed
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $packages 2>/dev/null || true)
    for package in $packages; do
        grep -qx "installed $package" <<<"$installed" || echo "$package"
    done
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # An installed openssh-server must not start serving: our sshd is another one.
    if [ ! -e "$policy" ]; then
        policy_is_ours=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get install -qy --no-install-recommends "$@"
}

if command -v dpkg-query >/dev/null; then
    missing=$(missing_packages | xargs)
    if [ -n "$missing" ]; then
        if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
            echo "bootstrap: missing Debian packages, install them as root: $missing" >&2
            exit 1
        fi
        # Word splitting is wanted: one argument a package.
        step "installing Debian packages: $missing" install_packages $missing
    fi
fi

# A venv that was moved, or whose Python is gone, has an executable that does not run.
if ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(newest_python) || { echo "bootstrap: no Python 3.10 or newer" >&2; exit 1; }
    step "creating .venv with $("$python" -V)" "$python" -m venv --clear .venv
fi
hash=$(sha256sum pyproject.toml)
if [ "$(cat .venv/installed-from 2>/dev/null)" != "$hash" ]; then
    step "installing vl-borg-hooks[borg,test] into .venv" \
        .venv/bin/python -m pip install --disable-pip-version-check -e '.[borg,test]'
    echo "$hash" >.venv/installed-from
fi

step "borgmatics of other versions, pipx, uv" .venv/bin/python tests/setup/environments.py

status=0
.venv/bin/python tests/setup/victoria_logs.py >/dev/null || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 3 ] || exit "$status"
