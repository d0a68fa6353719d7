#!/usr/bin/env bash
# Download and unpack the BAIR robot pushing data (softmotion30_44k, about 30 GB, and as much again unpacked).
#     scripts/data/download_bair.sh DIR
#     scripts/data/download_bair.sh --test_only DIR     # the 256 test clips alone, one file of 190 MB (CC BY 4.0)
# Run it again after an interruption: it goes on where it stopped. BAIR_URL=... takes the archive, or that file, from a mirror.
set -u

test_only=
if [ "${1-}" = --test_only ]; then
    test_only=1
    shift
fi
if [ "$test_only" ]; then
    url=${BAIR_URL:-https://storage.googleapis.com/download.tensorflow.org/data/bair_test_traj_0_to_255.tfrecords}
    name=bair_test_traj_0_to_255.tfrecords
else
    url=${BAIR_URL:-http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar}
    name=bair_robot_pushing_dataset_v0.tar
fi
margin=$((1 << 20)) # bytes to leave free

die() { echo "download_bair.sh: error: $*" >&2; exit 2; }
size_of() { if [ -f "$1" ]; then wc -c < "$1" | tr -d ' '; else echo 0; fi; }

case "$#${1:--}" in 1[!-]*) ;; *) die "give the folder to download to: scripts/data/download_bair.sh [--test_only] DIR" ;; esac
dir=$1 tar=$1/$name
command -v curl > /dev/null || die "curl is missing; install it (apt-get install curl, brew install curl)"
ready=$([ "$test_only" ] && echo "$tar" || echo "$dir/softmotion30_44k")
[ ! -e "$ready" ] || { echo "$ready is there already; nothing to do"; exit 0; }
mkdir -p "$dir" || die "$dir: cannot be made; choose another folder"
if command -v flock > /dev/null; then # two downloads would write to one file
    exec 9< "$dir"
    flock -n 9 || die "$dir: another download writes there; wait for its end, or choose another folder"
fi

# Free disk first: what is left of the download, and all of an archive again unpacked.
here=$(size_of "$tar")
if [ "$here" = 0 ]; then
    total=$(curl -sfIL "$url" | tr -d '\r' | awk 'tolower($1) == "content-length:" { n = $2 } END { print n }')
    [ -n "$total" ] || die "$url: does not answer; try again later, or give a mirror: BAIR_URL=..."
    part=$(size_of "$tar.part")
    [ "$part" -le "$total" ] || die "$tar.part: longer than the file at $url; remove it and run this again"
else
    total=$here part=$here
fi
free=$(($(df -Pk "$dir" | awk 'NR == 2 { print $4 }') * 1024))
need=$((total - part + (${test_only:-0} ? 0 : total) + margin))
[ "$free" -ge "$need" ] ||
    die "$dir: $((free >> 20)) MiB free, $((need >> 20)) MiB needed; free some space or choose another folder"

if [ "$here" = 0 ]; then
    echo "downloading $url: $((total >> 20)) MiB, $((part >> 20)) MiB of them here already"
    if [ "$part" -lt "$total" ]; then
        curl -fL --retry 5 --retry-delay 5 -C - -o "$tar.part" $([ -t 2 ] || echo -sS) "$url" ||
            die "$url: the download broke off; run this again to go on (or remove $tar.part to start anew)"
    fi
    [ "$(size_of "$tar.part")" = "$total" ] || die "$tar.part: not $total bytes; remove it and run this again"
    mv "$tar.part" "$tar" || die "$tar: cannot be written"
fi

if [ "$test_only" ]; then
    echo "next: python -m scripts.data.convert_bair $tar DST --split 192/32/32"
    exit 0
fi

echo "unpacking $tar"
rm -rf "$dir/.unpacking" && mkdir "$dir/.unpacking" || die "$dir/.unpacking: cannot be written"
tar -xf "$tar" -C "$dir/.unpacking" ||
    die "$tar: cannot be unpacked; if the disk is not full, the file is damaged: remove it and run this again"
[ -d "$dir/.unpacking/softmotion30_44k" ] || die "$tar: holds no softmotion30_44k; remove it and run this again"
mv "$dir/.unpacking/softmotion30_44k" "$dir/softmotion30_44k" && rm -r "$dir/.unpacking"
for split in train test; do
    echo "$dir/softmotion30_44k/$split: $(find "$dir/softmotion30_44k/$split" -name '*.tfrecords' | wc -l | tr -d ' ') files"
done
echo "$tar is no longer needed; remove it to free $((total >> 20)) MiB"
echo "next: python -m scripts.data.convert_bair $dir DST"
