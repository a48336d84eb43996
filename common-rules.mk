# SPDX-License-Identifier: BSD-3-Clause
# Included by every Makefile.am.
AM_CPPFLAGS = -D_GNU_SOURCE -I$(top_builddir) -I$(top_srcdir)/common
AM_CFLAGS = -std=gnu11 -fvisibility=hidden -pthread $(WARN_CFLAGS) \
	$(SANITIZER_CFLAGS)
AM_LDFLAGS = -pthread $(SANITIZER_CFLAGS)
