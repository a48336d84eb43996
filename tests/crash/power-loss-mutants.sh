#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Does power-loss see what it is there for?  Each mutant breaks one rule of the
# store, in a scratch copy of one file; it must be found within so many
# machines.  (Two more are in power-loss.sh.)
. ./functions.sh
requires python3

objects=$(ls "$top_builddir"/tests/crash/{power-loss,model,sim,sim-image,sim-io}.o)
libs="$top_builddir/block/libblock.a $top_builddir/common/libcommon.a
$(pkg-config --libs libnbd zlib libzstd gnutls)"
flags="-std=gnu11 -w -D_GNU_SOURCE -O2 -pthread -I$top_builddir
-I$top_srcdir/common -I$top_srcdir/block $(pkg-config --cflags libnbd)"
survivors=0

# mutant NAME THREADS FILE OLD NEW [OLD NEW]...: in a world of kind $kind
kind=right
mutant ()
{
    local name=$1 threads=$2 file=$3
    shift 3
    python3 - "$top_srcdir/$file" "$tmp/mutant.c" "$@" <<'PY' ||
import sys
text = open(sys.argv[1]).read()
for old, new in zip(sys.argv[3::2], sys.argv[4::2]):
    if old not in text:
        sys.exit('no longer in the source: ' + old)
    text = text.replace(old, new, 1)
open(sys.argv[2], 'w').write(text)
PY
        fail "mutant \"$name\" does not apply to $file"
    # shellcheck disable=SC2086
    ${CC:-cc} $flags -c "$tmp/mutant.c" -o "$tmp/mutant.o" ||
        fail "cannot compile mutant \"$name\""
    # The mutant comes first, so that the library's own is not needed.
    # shellcheck disable=SC2086
    ${CC:-cc} -pthread $objects "$tmp/mutant.o" $libs -o "$tmp/mutant" ||
        fail "cannot link mutant \"$name\""
    if timeout 100 "$tmp/mutant" 80000 "$kind" "$threads" >"$tmp/out" 2>&1; then
        echo "SURVIVED  $name"
        survivors=$((survivors + 1))
    elif ! grep -q '^power-loss: SEED=' "$tmp/out"; then
        fail "mutant \"$name\" did not run: $(tail -n 3 "$tmp/out")"
    else
        echo "found     $name: $(tail -n 1 "$tmp/out" | cut -c -150)"
    fi
}

mutant "a region counts as active before its intent is durable" 3 \
    block/intent.c \
    '  lock_release (&in->lock);
  error = write_batch (in, nr);' \
    '  for (i = 0; i < nr; i++)
    atomic_store (&in->regions.state[batch[i]],
                  INTENT_ACTIVE | INTENT_TOUCHED);
  lock_release (&in->lock);
  error = write_batch (in, nr);'
mutant "the arrays are not synced before intents go" 0 block/intent.c \
    '  error = in->ops.sync_arrays (in->opaque);
  lock_acquire' '  lock_acquire'
mutant "a table goes over the slot that holds" 0 block/store-layout.c \
    's->slot, s->slot_len, s->older_slot,
                     STORE_IO_DURABLE);
  if (r < 0)
    return r;' 's->slot, s->slot_len, STORE_SLOT_SIZE - s->older_slot,
                     STORE_IO_DURABLE);
  if (r < 0)
    return r;'
mutant "the table is not durable when the gate opens" 0 block/store-layout.c \
    's->older_slot,
                     STORE_IO_DURABLE);
  if (r < 0)
    return r;' 's->older_slot,
                     0);
  if (r < 0)
    return r;'
mutant "a new size is not synced" 0 block/disk-store.c \
    '    (void) blk_flush (d->node);' '    ;'
kind=image
mutant "the bitmaps of an image are not flagged" 0 block/image-bitmaps.c \
    '    r = qcow2_bitmaps_flag (node, &bitmaps, err);' ''
kind=fail
mutant "a failure is not recorded" 0 block/store.c \
    '  is_durable = make_failure_durable (s);
  if' '  is_durable = true;
  if'

[ $survivors -eq 0 ] || fail "$survivors mutants survived"
