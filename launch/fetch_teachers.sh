#!/usr/bin/env bash
# Downloads the published CIFAR-100 teachers, imports them as runs, and prints their published and measured accuracy.
# Usage: launch/fetch_teachers.sh [--from=DIR] [--store=DIR] [--data_dir=DIR] [NAME...]
#   NAME: resnet56, resnet110, resnet32x4, wrn_40_2, vgg13 or resnet50_cifar. The default is all of them.
#   --from=DIR: use DIR/NAME_vanilla/ckpt_epoch_240.pth or DIR/NAME.pth instead of downloading.
# The files are stored in DATA_DIR/teachers with their sha256. A file that has changed since then is refused.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
first="${MDISTILLER_URL:-https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar}"
second="${REPDISTILLER_URL:-http://shape2prog.csail.mit.edu/repo}"
from="" store="runs" data_dir="data" names=()
for argument in "$@"; do
  case "$argument" in
    --from=*) from="${argument#*=}" ;;
    --store=*) store="${argument#*=}" ;;
    --data_dir=*) data_dir="${argument#*=}" ;;
    -*) echo "kdjax: unknown flag $argument. There are: --from, --store, --data_dir." >&2; exit 2 ;;
    *) names+=("$argument") ;;
  esac
done
[ "${#names[@]}" -gt 0 ] || names=(resnet56 resnet110 resnet32x4 wrn_40_2 vgg13 resnet50_cifar)

# The folder of a teacher on the servers.
folder_of() { case "$1" in resnet50_cifar) echo ResNet50_vanilla ;; *) echo "${1}_vanilla" ;; esac; }
# The accuracy (%) of a teacher in the README of RepDistiller.
published() {
  case "$1" in
    resnet56) echo 72.34 ;; resnet110) echo 74.31 ;; resnet32x4) echo 79.42 ;;
    wrn_40_2) echo 75.61 ;; vgg13) echo 74.64 ;; resnet50_cifar) echo 79.34 ;;
    *) echo "kdjax: unknown teacher '$1'. There are: resnet56, resnet110, resnet32x4, wrn_40_2, vgg13, resnet50_cifar." >&2
       return 2 ;;
  esac
}
for name in "${names[@]}"; do published "$name" >/dev/null || exit 2; done

kept="$data_dir/teachers"
mkdir -p "$kept"
fetch() { curl --fail --location --silent --show-error --connect-timeout 20 --retry 2 --output "$2.part" "$1" && mv "$2.part" "$2"; }

# Writes a teacher's file to $kept/NAME.pth, from --from=DIR, the archive of the first server, or the second server.
obtain() {
  local name="$1" file="$kept/$1.pth" folder; folder="$(folder_of "$1")"
  if [ -n "$from" ]; then
    for candidate in "$from/$folder/ckpt_epoch_240.pth" "$from/$name.pth"; do
      if [ -f "$candidate" ]; then cp "$candidate" "$file.part" && mv "$file.part" "$file"; return; fi
    done
    echo "kdjax: $from has neither $folder/ckpt_epoch_240.pth nor $name.pth." >&2; return 2
  fi
  if [ -f "$file" ]; then return; fi
  local archive="$kept/cifar_teachers.tar"
  if [ -f "$archive" ] || fetch "$first" "$archive"; then
    local member; member="$(tar -tf "$archive" | grep -E "(^|/)$folder/ckpt_epoch_240\.pth$" | head -1 || true)"
    if [ -n "$member" ]; then tar -xOf "$archive" "$member" > "$file.part" && mv "$file.part" "$file"; return; fi
  fi
  fetch "$second/$folder/ckpt_epoch_240.pth" "$file" && return
  rm -f "$file.part" "$archive.part"
  echo "kdjax: $name could not be downloaded from $first nor $second; if you have the file, set --from=DIR." >&2; return 1
}

# Stores the sha256 of a file that is new, and compares it if the file is known.
verify() {
  local sums="$kept/sha256sums.txt" name="$1" old new
  new="$(sha256sum "$kept/$name.pth" | cut -d' ' -f1)"
  old="$(grep "  $name.pth\$" "$sums" 2>/dev/null | cut -d' ' -f1 || true)"
  if [ -z "$old" ]; then echo "$new  $name.pth" >> "$sums"; return; fi
  [ "$old" = "$new" ] || { echo "kdjax: $kept/$name.pth is not the file of $sums; delete one of the two." >&2; return 2; }
}

launch/setup.sh
for name in "${names[@]}"; do
  obtain "$name"
  verify "$name"
  "${KDJAX_VENV:-.venv}/bin/python" -m kdjax.import_torch --file="$kept/$name.pth" --model="$name" --data=cifar100 \
    --run="cifar100/$name-published" --store="$store" --data_dir="$data_dir" >/dev/null
done
echo "| teacher | run | published | measured |"
echo "|---|---|---|---|"
for name in "${names[@]}"; do
  here="$("${KDJAX_VENV:-.venv}/bin/python" -c '
import json, sys
accuracy = json.load(open(sys.argv[1]))["last"]["test"]["accuracy"]
print(f"{100 * accuracy:.2f}")' "$store/cifar100/$name-published/result.json")"
  echo "| $name | cifar100/$name-published | $(published "$name") | $here |"
done
