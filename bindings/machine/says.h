/* Messages that the native command and Python share, as printf() formats: says_signal, ... */
#ifndef TENDER_SAYS_H
#define TENDER_SAYS_H

#define SAYS(name, format) static const char says_##name[] __attribute__((unused)) = format;
#include "says.def"

#endif
