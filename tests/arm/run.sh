#!/usr/bin/env bash
# The runtime on Arm: installed from its wheel in an arm64 Debian, run by qemu, with the same answers as here (`make test-arm`).
#
# Usage: run.sh PYTHON ENGINE [ROOT]   a Python with the project installed, an engine directory, where the Debian is made or lies
set -euo pipefail
python=$(realpath -s "$1") engine=$(realpath "$2") root=$(realpath -m "${3:-out/arm64}")
cd "$(dirname "$0")/../.."

for program in debootstrap qemu-aarch64-static; do
  command -v $program >/dev/null || { echo "Error: There is no $program here; apt install debootstrap qemu-user-static" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "Error: A root file system is made by root alone; run this with sudo." >&2; exit 1; }
mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64

if [ ! -x "$root/v/bin/jakiro-run" ]; then
  [ -x "$root/usr/bin/python3" ] || debootstrap --arch=arm64 --variant=minbase --include=python3,python3-venv bookworm "$root"
  rm -rf "$root/wheels" && mkdir -p "$root/wheels"
  "$python" -m pip wheel -q --no-deps -w "$root/wheels" .
  # downloaded here, since pip is slow in qemu; the versions are those that JetPack 6's Python would get
  "$python" -m pip download -q --only-binary=:all: --python-version 3.11 -d "$root/wheels" \
    $(for glibc in 36 34 31 28 27 17; do echo --platform manylinux_2_${glibc}_aarch64; done) --platform manylinux2014_aarch64 \
    "numpy<2.3" tokenizers jinja2 click rich "onnxruntime<1.24"
  chroot "$root" /bin/sh -c "python3 -m venv /v && /v/bin/pip install -q --no-index --find-links /wheels jakiro-export onnxruntime"
fi

rm -rf "$root/engine" && cp -r "$engine" "$root/engine"
trap 'umount "$root/sys" "$root/proc"' EXIT
mount --bind /proc "$root/proc" && mount --bind /sys "$root/sys"
differ=0
for how in "" "--no-speculation" "--temperature 0.8 --seed 3" "--temperature 1.2 --seed 5 --no-speculation"; do
  arguments="--prompt Hello --raw --max-new-tokens 40 --threads 1 --stats none $how"
  here=$("${python%/*}/jakiro-run" --engine "$engine" $arguments | sha256sum)
  there=$(chroot "$root" /v/bin/jakiro-run --engine /engine $arguments 2>/dev/null | sha256sum)
  [ "$here" = "$there" ] && result=same || { result=DIFFERENT; differ=1; }
  echo "$(chroot "$root" uname -m): $result tokens as here${how:+ with $how}"
done
exit $differ
