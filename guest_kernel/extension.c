/*
 * The note that asks for the gate page and for the features that need it. gate.c uses the features
 * that the tender grants. The note has a file of its own, and guest.ld links it by its name. So a
 * unikernel that defines a symbol `tender_extension_note` of its own does not get this note.
 */
#include "tender/guest.h"

TENDER_EXTENSION_NOTE(TENDER_FEATURE_GATE | TENDER_FEATURE_BLOCK_BATCH | TENDER_FEATURE_NET_BATCH);
