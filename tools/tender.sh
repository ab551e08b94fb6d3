#!/bin/sh
# The command `tender`. Starting the interpreter is most of a small unikernel's boot, so this goes the short
# way: python3 without site-packages (-S), straight into the package installed beside this file. Any other
# layout takes the long way, `python3 -m tender`. No subshell on the short way: each would cost a fork.

here=$0
while [ -L "$here" ]; do
    target=$(readlink "$here")
    case $target in
    /*) here=$target ;;
    *) here=${here%/*}/$target ;;
    esac
done
case $here in
*/*) bin=${here%/*} ;;
*) bin=. ;;
esac

# By a link named as one of Solo5's tools, it is that tool (tender/cli/main.py, COMMANDS and FRONTS).
case ${0##*/} in
solo5-hvt | solo5-hvt.2 | solo5-spt | solo5-elftool) set -- "${0##*/}" "$@" ;;
esac

python=python3
[ -x "$bin/python3" ] && python=$bin/python3

# -X utf8: words reach the guest byte for byte, whatever the locale.
for launch in "$bin"/../lib/python3*/site-packages/tender/cli/launch.py \
    "$bin"/../lib/python3*/dist-packages/tender/cli/launch.py; do
    [ -f "$launch" ] && exec "$python" -I -S -X utf8 "$launch" "$@"
done
exec "$python" -X utf8 -m tender "$@"
