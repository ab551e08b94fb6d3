/*
 * The configuration of lwIP for tcp_guest.c: one thread, TCP over IPv4, checksums by the guest, windows that
 * keep a link busy. The sizes limit the guest's memory, because it has no other heap.
 */
#define NO_SYS                1
#define SYS_LIGHTWEIGHT_PROT  0
#define LWIP_NETCONN          0
#define LWIP_SOCKET           0
#define LWIP_IPV4             1
#define LWIP_IPV6             0
#define LWIP_UDP              0
#define LWIP_DHCP             0
#define LWIP_ARP              1
#define LWIP_STATS            0
#define LWIP_NO_UNISTD_H      1
#define LWIP_NO_CTYPE_H       1
#define LWIP_NO_LIMITS_H      1
#define INT_MAX               __INT_MAX__
#define TCP_SNDLOWAT          (32 * 1024)
#define LWIP_NO_INTTYPES_H    1
#define X8_F                  "02x"
#define U16_F                 "u"
#define S16_F                 "d"
#define X16_F                 "x"
#define U32_F                 "u"
#define S32_F                 "d"
#define X32_F                 "x"
#define SZT_F                 "lu"
#define MEM_ALIGNMENT         8
#define MEM_SIZE              (8 * 1024 * 1024)
#define MEMP_NUM_TCP_PCB      64
#define MEMP_NUM_TCP_SEG      4096
#define MEMP_NUM_PBUF         2048
#define PBUF_POOL_SIZE        1024
#define PBUF_POOL_BUFSIZE     1600
#define TCP_MSS               1460
#define LWIP_WND_SCALE        1
#define TCP_RCV_SCALE         3
#define TCP_WND               (128 * TCP_MSS)
#define TCP_SND_BUF           (128 * TCP_MSS)
#define TCP_SND_QUEUELEN      1024
#define LWIP_CHKSUM_ALGORITHM 3
#define TCP_LISTEN_BACKLOG    1
