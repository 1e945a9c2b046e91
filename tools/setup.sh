#!/usr/bin/env bash
# Sets this checkout up: Python packages in .venv, SIPp from the system's packages, and a real Asterisk.
# Quick when there is nothing to do. Usage: tools/setup.sh [run|test|fuzz]   (test adds what only the tests need;
# fuzz is Python packages alone)
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-run}
began=$SECONDS

say() { printf '[setup %3ds] %s\n' "$((SECONDS - began))" "$*"; }
fail() { printf '[setup] %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else fail "needs root for: $* - run this once as root, or install sudo"
    fi
}

updated=0
install_packages() {
    command -v apt-get >/dev/null || fail "this needs $* - install them with your system's package manager, then try again"
    if [ $updated = 0 ]; then
        say "reading the package lists"
        as_root apt-get update -qq || fail "apt-get update failed: check the network and the package sources"
        updated=1
    fi
    say "installing system packages: $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null \
        || fail "apt-get could not install $*"
}

python=""
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || { install_packages python3 python3-venv; python=python3; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed: set PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv

stamp=.venv/.set-up-$what-$(cat setup.cfg pyproject.toml setup.py audiosocket/_*.[ch] | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
    say "making .venv with $("$python" --version)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    say "installing Python packages (a minute when nothing is cached)"
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --progress-bar off -e ".[$what]" \
        || fail "pip could not install the packages: see its messages above"
    rm -f .venv/.set-up-"$what"-*
    touch "$stamp"
fi

[ "$what" != fuzz ] || { say "ready"; exit 0; }

missing=()
command -v sipp >/dev/null || missing+=(sip-tester)
[ "$what" != test ] || command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
if command -v apt-get >/dev/null; then
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
fi
if [ "$what" = test ]; then
    # What hosts as network namespaces are made of: a user's PATH may lead to none of it although it is installed.
    for need in ip:iproute2 nft:nftables nsenter:util-linux openssl:openssl openvpn:openvpn sysctl:procps \
        wg:wireguard-tools wireguard-go:wireguard-go; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
    done
fi
[ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"

.venv/bin/python -m tools.asterisk provide | while IFS= read -r line; do say "$line"; done
say "ready"
