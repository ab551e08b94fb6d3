/*
 * Releases a VM without waiting for it.
 *
 * The last close of a VM's descriptor waits in the kernel: for readers of its page tables, and for readers of
 * its memory slots. This takes 10 to 20 ms at 250 ticks a second, and almost none of it is work. No caller
 * needs the result, and many such waits at the same time take no longer than one. So each close runs on a
 * thread that does nothing else.
 */
#ifndef TENDER_CLOSE_LATER_H
#define TENDER_CLOSE_LATER_H

/* Closes `fd` soon. Closes it immediately if no thread can be made, or if CLOSES_MAX closes are running. Any
 * thread may call it. */
void close_later(int fd);

#define CLOSES_MAX                                                                                           \
    8 /* each may leave a stack in the C library's cache: such mappings make a boot more expensive */

#endif
