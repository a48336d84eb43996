#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Does the oracle see what it is there for?  Each mutant breaks one invariant
# of the block layer, in a scratch copy; oracle-disk must find every one of
# them, and nothing wrong with the sources as they are.
. ./functions.sh
requires python3 pkg-config

flags="-std=gnu11 -w -D_GNU_SOURCE -O2 -pthread -I$top_builddir
-I$top_srcdir/common -I$top_srcdir/block -I$top_srcdir/tests/oracle
$(pkg-config --cflags libnbd zlib libzstd)"
libs="-pthread $(pkg-config --libs libnbd zlib libzstd gnutls)"
export TMPDIR=$tmp
points=${POINTS:-1000}
survivors=0

mkdir "$tmp/o" "$tmp/m"
for f in "$top_srcdir"/{common,block}/*.c \
         "$top_srcdir"/tests/oracle/{history,jitter,writer,oracle-disk}.c; do
    # shellcheck disable=SC2086
    ${CC:-cc} $flags -c "$f" -o "$tmp/o/$(basename "$f" .c).o"
done

# run_with FILE: link FILE in the place of the original of that name; run.
run_with ()
{
    local name
    name=$(basename "$1" .c)
    rm -rf "$tmp/l" && mkdir "$tmp/l" && ln -s "$tmp"/o/*.o "$tmp/l"
    rm "$tmp/l/$name.o"
    # shellcheck disable=SC2086
    ${CC:-cc} $flags -c "$1" -o "$tmp/l/$name.o" || fail "cannot compile $1"
    # shellcheck disable=SC2086
    ${CC:-cc} "$tmp"/l/*.o -o "$tmp/oracle" $libs || fail "cannot link $1"
    timeout 120 "$tmp/oracle" "$points" >"$tmp/out" 2>&1
}

# mutant NAME FILE OLD NEW [OLD NEW]...
mutant ()
{
    local name=$1 file=$2
    shift 2
    python3 - "$top_srcdir/$file" "$tmp/m/$(basename "$file")" "$@" <<'PY' ||
import sys
text = open(sys.argv[1]).read()
for old, new in zip(sys.argv[3::2], sys.argv[4::2]):
    if old not in text:
        sys.exit('no longer in the source: ' + old)
    text = text.replace(old, new, 1)
open(sys.argv[2], 'w').write(text)
PY
        fail "mutant \"$name\" does not apply to $file"
    if run_with "$tmp/m/$(basename "$file")"; then
        echo "SURVIVED  $name"
        survivors=$((survivors + 1))
    else
        echo "found     $name: $(grep -v SEED "$tmp/out" | head -n 1 |
                                 cut -c -90)"
    fi
}

cp "$top_srcdir/block/disk.c" "$tmp/m"
run_with "$tmp/m/disk.c" || { cat "$tmp/out"; fail "the oracle cries wolf"; }

mutant "I1: a write is marked when it is over" block/disk.c \
    '  ret = dirty_mark (d->dirty, off, len);
  if (ret == 0)
    ret = cbw' '  ret = cbw' \
    '  ret = blk_pwrite (d->node, buf, len, off, flags);
  change_end (d);' '  ret = blk_pwrite (d->node, buf, len, off, flags);
  change_end (d);
  gate_enter (&d->gate);
  dirty_mark (d->dirty, off, len);
  gate_leave (&d->gate);'
mutant "I1: only the first granule is marked" block/dirty.c \
    'bitmap_set (d->recording[i], off, len)' \
    'bitmap_set (d->recording[i], off, 1)'
mutant "I1: one mark in 1000 is lost" block/dirty.c \
    'for (i = 0; i < d->nr_recording; i++)' \
    'static _Atomic unsigned n;
  for (i = 0; n++ % 1000 && i < d->nr_recording; i++)'
mutant "I1: the successor does not record" block/dirty.c \
    'd->recording[n++] = bm->successor->bitmap;' ';'
mutant "I2: merging back forgets the old bits" block/dirty.c \
    'old = thaw_locked (bm, false);' 'old = thaw_locked (bm, true);' \
    '  bitmap_merge (bm->bits->bitmap, bm->successor->bitmap);' ''
mutant "I2: merging back forgets the new bits" block/dirty.c \
    '  bitmap_merge (bm->bits->bitmap, bm->successor->bitmap);' ''
mutant "I2: dropping forgets the new bits" block/dirty.c \
    'old = thaw_locked (bm, true);' 'old = thaw_locked (bm, false);'
mutant "I2: an aborted session drops" block/session-point.c \
    'dirty_merge_back (disk_dirty (sd->disk), sd->bitmap)' \
    'dirty_drop (disk_dirty (sd->disk), sd->bitmap, &sd->base)'
mutant "I3: nothing is copied before a write" block/cbw.c \
    'if (__builtin_expect (cbw->first == NULL, 1))' 'if (1)'
mutant "I3: only the first block is copied" block/cbw.c \
    'end = MIN (round_up (off + len, CBW_BLOCK_SIZE), v->size);' \
    'end = MIN (round_up (off + 1, CBW_BLOCK_SIZE), v->size);'
mutant "I3: only the first view is served" block/cbw.c \
    'for (struct cbw_view *v = cbw->first; v; v = v->next) {
    int ret = before_write' 'for (struct cbw_view *v = cbw->first; v; v = 0) {
    int ret = before_write'
mutant "I3: a block counts as copied before it is" block/cbw.c \
    '    ret = buf ? copy_claimed' '    bitmap_set (v->copied, off, *len);
    ret = buf ? copy_claimed'
mutant "I3: two writers copy the same block" block/cbw.c \
    '  reqlist_wait (&v->exclusive, &v->lock, off, MIN (unit, *len));
  n = reqlist_free_prefix (&v->exclusive, off, *len);' '  n = *len;'
mutant "I4: a write does not wait for a reader" block/cbw.c \
    '  reqlist_wait (&v->shared, &v->lock, off, *len);' ''
mutant "I5: the gate does not wait for those inside" block/gate.c \
    '  while (atomic_load (&gate->state) & GATE_NR_MASK)
    lock_wait (&gate->lock, &gate->changed);' '' \
    '    & GATE_EMPTY;' '    & GATE_CLOSED;'
mutant "I5: newcomers do not wait for the gate" block/gate.c \
    '  if (__builtin_expect (old & GATE_CLOSED, 0))
    enter_slowly' '  if (0)
    enter_slowly'
mutant "a trim is not a change" block/disk.c \
    '  ret = change_begin (d, off, len);
  if (ret < 0)
    return ret;
  ret = blk_trim (d->node, len, off, flags);
  change_end (d);' '  ret = blk_trim (d->node, len, off, flags);'
mutant "zero units: the end of an item is left out" block/copy.c \
    'r == 0 && pos < item->len; pos += n' \
    'r == 0 && pos + 4096 < item->len; pos += n'
mutant "merging skips a word" block/bitmap.c \
    '    pos = (w + 1) << WORD_SHIFT;
  }
  atomic_fetch_add_explicit (&dst' '    pos = (w + 2) << WORD_SHIFT;
  }
  atomic_fetch_add_explicit (&dst'

[ $survivors -eq 0 ] || fail "$survivors mutants survived"
