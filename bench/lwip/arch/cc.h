/* What lwIP needs from a platform. This platform is a guest without a C library. */
#ifndef BENCH_LWIP_CC_H
#define BENCH_LWIP_CC_H

#include <stdint.h>

void lwip_failed(const char *message);
uint32_t lwip_random(void);

#define LWIP_PLATFORM_DIAG(x)
#define LWIP_PLATFORM_ASSERT(message) lwip_failed(message)
#define LWIP_RAND()                   lwip_random()

#endif
