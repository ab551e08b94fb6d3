/*
 * The note that asks for the gate page and what is called by it (gate.c uses what is there). guest.ld pulls
 * it in by its name, from this file of its own: a unikernel that defines `tender_extension_note` as something
 * else does without.
 */
#include "tender/guest.h"

TENDER_EXTENSION_NOTE(TENDER_FEATURE_GATE | TENDER_FEATURE_BLOCK_BATCH | TENDER_FEATURE_NET_BATCH);
