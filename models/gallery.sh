#!/bin/sh
# Draws the gallery of the README with nothing but the release binary:
#
#     models/gallery.sh target/release/aquatint [OUT]
#
# OUT (docs/gallery by default) gets prompts.png, twelve prompts at fixed seeds, four in a row, and samplers-4.png,
# samplers-8.png, samplers-20.png and samplers-50.png, one picture a sampler after so many steps, five in a row, in the
# order of samplers.txt.
set -eu

if [ $# -lt 1 ] || [ ! -x "$1" ]; then
    echo "usage: models/gallery.sh path/to/aquatint [OUT]" >&2
    exit 2
fi
aquatint=$1
out=${2:-docs/gallery}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
mkdir -p "$out"

number=0
prompts=""
while read -r prompt; do
    number=$((number + 1))
    picture=$work/prompt-$(printf %02d "$number").png
    "$aquatint" generate "$prompt" --seed "$number" -o "$picture" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
    prompts="$prompts $picture"
done <<'PROMPTS'
a red apple
a smiling cat face
a yellow star
a blue heart
a rocket
a pizza
a dog face
a green tree
a rainbow
a birthday cake
a soccer ball
a sun with a face
PROMPTS
# The names hold no spaces: they are all ours.
# shellcheck disable=SC2086
"$aquatint" grid $prompts --columns 4 --force -o "$out/prompts.png"

# The table's names begin its lines, two spaces in; other lines say what a name is also called.
samplers=$("$aquatint" samplers | sed -n '/^Samplers/,/^$/s/^  \([a-z0-9_]\{1,\}\) .*/\1/p')
echo "$samplers" >"$out/samplers.txt"
for steps in 4 8 20 50; do
    pictures=""
    for sampler in $samplers; do
        picture=$work/$sampler-$steps.png
        case $sampler in
        *_cfg_pp) guidance="-g 1.5" ;; # their scale is another
        *) guidance="" ;;
        esac
        # shellcheck disable=SC2086
        "$aquatint" generate "a red apple" --seed 1 --sampler "$sampler" --steps $steps $guidance -o "$picture" \
            2>"$work/log" || { cat "$work/log" >&2; exit 1; }
        pictures="$pictures $picture"
    done
    # shellcheck disable=SC2086
    "$aquatint" grid $pictures --columns 5 --shrink 2 --force -o "$out/samplers-$steps.png"
done
ls -l "$out"
