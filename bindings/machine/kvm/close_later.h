/*
 * Giving a VM back without waiting for it.
 *
 * The last close of a VM's descriptor waits in the kernel: for readers of its page tables, for those of its
 * memory slots; 10 to 20 ms at 250 ticks a second, of which next to nothing is work. Nobody needs the answer,
 * and many such waits at once take no longer than one. So each is a thread's that does nothing else.
 */
#ifndef TENDER_CLOSE_LATER_H
#define TENDER_CLOSE_LATER_H

/* Closes `fd`, soon; at once where no thread can be had, or where CLOSES_MAX are under way. Any thread. */
void close_later(int fd);

#define CLOSES_MAX                                                                                           \
    8 /* each may leave the C library a stack, to be used again: mappings, which make a boot dearer */

#endif
