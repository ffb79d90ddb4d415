#!/usr/bin/env bash
# Installs the servers of other makers that tests run against when they are there: moto (S3), Azurite (Azure blobs) and
# nginx (http). Nothing is installed twice, and nothing lands in the clone.
#
#     source .ci/servers.sh    # also exports the variables by which the tests find them
#
# What cannot be installed is left out and said, with the log of the attempt in install.log; the tests then leave it out
# too, and say so.

slicemill_servers() {
    local home=${SLICEMILL_SERVERS:-${XDG_CACHE_HOME:-$HOME/.cache}/slicemill/servers}
    local log=$home/install.log
    mkdir -p "$home" && : >"$log"

    local moto=
    # Beside each other: each waits for a registry most of the time.
    if [ ! -x "$home/moto/bin/moto_server" ]; then
        {
            python3 -m venv "$home/moto" &&
                "$home/moto/bin/pip" install -q 'moto[s3]==5.2.*' flask flask-cors || rm -rf "$home/moto"
        } >>"$log" 2>&1 &
        moto=$!
    fi
    if ! command -v npm >/dev/null || ! command -v nginx >/dev/null; then
        local packages=()
        command -v npm >/dev/null || packages+=(nodejs npm)
        command -v nginx >/dev/null || packages+=(nginx-light)
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >>"$log" 2>&1 || true
    fi
    if [ ! -x "$home/azurite/node_modules/.bin/azurite-blob" ]; then
        npm install --silent --no-audit --no-fund --prefix "$home/azurite" azurite@3 >>"$log" 2>&1 ||
            rm -rf "$home/azurite"
    fi
    [ -z "$moto" ] || wait "$moto" || true

    slicemill_server SLICEMILL_MOTO "$home/moto/bin/moto_server"
    slicemill_server SLICEMILL_AZURITE "$home/azurite/node_modules/.bin/azurite-blob"
    slicemill_server SLICEMILL_NGINX "$(command -v nginx || echo nginx)"
}

# Exports a variable when the program that it is to name is there.
slicemill_server() {
    if [ -x "$2" ]; then
        export "$1=$2"
        echo "$1=$2"
    else
        echo "$1: not installed; tests against it are left out"
    fi
}

slicemill_servers
