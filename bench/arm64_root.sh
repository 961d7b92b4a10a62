#!/usr/bin/env bash
# Makes .arm64/: a small arm64 Debian with Python, onnxruntime's arm64 wheel and what replays a bundle, to be entered by
#     chroot .arm64 /usr/bin/qemu-aarch64-static /usr/bin/python3
# Nothing in it is configured or started, so it needs neither binfmt nor a running daemon. Once; again when the
# onnxruntime of $PYTHON's environment (the version to install) is another. About 40 packages, 250 MB unpacked.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

missing() {
  echo "no emulated arm64 Linux: $1"
  exit 0 # the tests skip, and say so
}

version=$("$PYTHON" -c 'from importlib.metadata import version; print(version("onnxruntime"))')
if [ "$(cat .arm64/.made 2> /dev/null)" = "$version" ]; then exit 0; fi
[ "$(id -u)" = 0 ] || missing "chroot needs root"
for tool in apt-get dpkg-deb chroot; do
  command -v $tool > /dev/null || missing "$tool is missing (this needs Debian)"
done
if ! command -v qemu-aarch64-static > /dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user-static ||
    missing "qemu-user-static cannot be installed"
fi

new=$PWD/.arm64.new
rm -rf "$new"
mkdir -p "$new/apt/lists/partial" "$new/apt/archives/partial"
: > "$new/apt/status" # no package is installed yet: every dependency is downloaded
apt_arm64() {
  apt-get -qq -oAPT::Architecture=arm64 -oAPT::Architectures=arm64 -oAPT::Install-Recommends=false \
    -oAPT::Sandbox::User=root -oDir::State="$new/apt" -oDir::State::Lists="$new/apt/lists" \
    -oDir::State::status="$new/apt/status" -oDir::Cache="$new/apt" "$@"
}
apt_arm64 update || missing "no arm64 packages where this machine's come from"
apt_arm64 install -y --download-only python3-minimal libpython3-stdlib libstdc++6 > /dev/null
for package in "$new"/apt/archives/*.deb; do dpkg-deb -x "$package" "$new"; done

# pip takes a wheel for an older glibc only when told of it.
glibc=$(dpkg-deb -f "$new"/apt/archives/libc6_*.deb Version | sed -E 's/^2\.([0-9]+).*/\1/')
platforms=()
for minor in $(seq "$glibc" -1 17); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-compile --only-binary=:all: \
  --target "$new/usr/lib/python3/dist-packages" "${platforms[@]}" --platform manylinux2014_aarch64 \
  --python-version "$(readlink "$new/usr/bin/python3" | sed 's/python//')" \
  "onnxruntime==$version" numpy msgspec safetensors

cp "$(command -v qemu-aarch64-static)" "$new/usr/bin/"
rm -rf "$new/apt" .arm64
echo "$version" > "$new/.made"
mv "$new" .arm64
echo "made .arm64: onnxruntime $version for arm64, on Debian's Python"
