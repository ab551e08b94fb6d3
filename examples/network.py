"""Gives a guest a network by the descriptor of a TAP interface, and waits until it has answered pings.

python examples/network.py echo.elf tap0 PINGS

The interface is made before, as root:

ip tuntap add tap0 mode tap user $USER; ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up

While the program runs, `ping 10.0.0.2` reaches the guest.
"""

import fcntl
import os
import struct
import sys

from tender import Image, NetFd, Vm, VmConfig

# Source: linux/if_tun.h and linux/if.h.
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000


def open_tap(name: str) -> int:
    """Returns a descriptor of the interface."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    except OSError:
        os.close(fd)
        raise
    return fd


def main(path: str, name: str, pings: str) -> None:
    try:
        fd = open_tap(name)
    except OSError as error:
        sys.exit(f"{name} cannot be opened as a TAP interface: {error.strerror}")
    try:
        config = VmConfig(mem=16, args=(f"--pings={pings}",), net={"service0": NetFd(fd)})
        with Image.open(path) as image, Vm(image, config) as vm:
            result = vm.run(timeout=60).check()
    finally:
        os.close(fd)  # a VM works on a duplicate: the descriptor stayed ours
    counters = result.counters
    print(f"the guest took {counters.net_rx_packets} frames and sent {counters.net_tx_packets}")


if __name__ == "__main__":
    if len(sys.argv) != 4 or not sys.argv[3].isdecimal():
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
