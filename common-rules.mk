# SPDX-License-Identifier: BSD-3-Clause
# Included by every Makefile.am.
AM_CPPFLAGS = -D_GNU_SOURCE -I$(top_builddir) -I$(top_srcdir)/common
# All code can be part of the plugin, a shared object.
AM_CFLAGS = -std=gnu11 -fPIC -fvisibility=hidden -pthread $(WARN_CFLAGS) \
	$(SANITIZER_CFLAGS)
AM_LDFLAGS = -pthread $(SANITIZER_CFLAGS)
ARFLAGS = cr

# What the programs of other folders link with, each with all that it needs.
COMMON_LIBS = $(top_builddir)/common/libcommon.a $(GNUTLS_LIBS)
BLOCK_LIBS = $(top_builddir)/block/libblock.a $(COMMON_LIBS) $(LIBNBD_LIBS) \
	$(ZLIB_LIBS) $(ZSTD_LIBS)
SERVER_LIBS = $(top_builddir)/server/libserver.a $(BLOCK_LIBS) \
	$(JANSSON_LIBS) $(GNUTLS_LIBS)
CLIENT_LIBS = $(top_builddir)/client/libclient.a $(BLOCK_LIBS) \
	$(JANSSON_LIBS) $(GNUTLS_LIBS)
